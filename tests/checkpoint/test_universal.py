"""The universal checkpoint: what comes out is what went in, any tool can open it, and damage is one line."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refused
from toy import CheckpointMaker, equal_states

from azneobert.checkpoint.manifest import MOMENTS, read_manifest, verify_checkpoint
from azneobert.checkpoint.universal import (
    TrainState,
    all_weights,
    copy_without_moments,
    read_checkpoint,
    write_checkpoint,
)
from azneobert.errors import CheckpointError

FILES = (
    "weights.safetensors",
    "exp_avg.safetensors",
    "exp_avg_sq.safetensors",
    "buffers.safetensors",
    "state.json",
    "tokenizer.json",
)


@pytest.fixture
def maker(toy_corpus: Path) -> CheckpointMaker:
    return CheckpointMaker(toy_corpus / "tokenizer.json")


@pytest.fixture
def folder(maker: CheckpointMaker, tmp_path: Path) -> Path:
    (tmp_path / "step-00000007").mkdir()
    write_checkpoint(tmp_path / "step-00000007", maker.state(), maker.manifest(7), maker.tokenizer)
    return tmp_path / "step-00000007"


def test_a_round_trip_is_exact_to_the_last_bit(maker: CheckpointMaker, folder: Path) -> None:
    written, (state, manifest) = maker.state(), read_checkpoint(folder)
    assert equal_states(state, written)
    assert json.loads(json.dumps(written.groups)) == state.groups
    assert state.tied == written.tied
    assert_same_buffers(state, written)
    assert replace(manifest, files={}) == maker.manifest(7)
    assert all(tensor.dtype == torch.float32 for tensor in state.weights.values())


def assert_same_buffers(one: TrainState, other: TrainState) -> None:
    assert one.buffers.keys() == other.buffers.keys()
    for name, buffer in other.buffers.items():
        assert one.buffers[name].dtype == buffer.dtype
        assert torch.equal(one.buffers[name], buffer)


def test_a_state_without_buffers_has_no_file_for_them(maker: CheckpointMaker, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, replace(maker.state(), buffers={}), maker.manifest(1), maker.tokenizer)
    assert not (tmp_path / "buffers.safetensors").exists()
    assert read_checkpoint(tmp_path)[0].buffers == {}


def test_values_that_are_not_finite_and_the_smallest_ones_survive(maker: CheckpointMaker, tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.4028235e38])
    write_checkpoint(
        tmp_path, replace(maker.state(), weights=maker.state().weights | {"w": odd}), maker.manifest(1), maker.tokenizer
    )
    found = read_checkpoint(tmp_path)[0].weights["w"]
    assert torch.equal(found.view(torch.int32), odd.view(torch.int32))


def test_a_state_before_its_first_step_has_no_moments_and_comes_back_so(maker: CheckpointMaker, tmp_path: Path) -> None:
    fresh = replace(maker.state(), exp_avg={}, exp_avg_sq={}, optimizer_step=0)
    write_checkpoint(tmp_path, fresh, maker.manifest(0), maker.tokenizer)
    assert equal_states(read_checkpoint(tmp_path)[0], fresh)


def test_without_moments_the_weights_come_alone_with_step_zero(maker: CheckpointMaker, folder: Path) -> None:
    state, _ = read_checkpoint(folder, moments=False)
    assert (state.exp_avg, state.exp_avg_sq, state.optimizer_step) == ({}, {}, 0)
    assert all(torch.equal(state.weights[n], t) for n, t in maker.state().weights.items())


def test_tied_aliases_are_put_back_and_stored_once(maker: CheckpointMaker, folder: Path) -> None:
    state, _ = read_checkpoint(folder)
    assert "head.weight" not in state.weights
    assert torch.equal(all_weights(state)["head.weight"], maker.state().weights["encoder.embedding.weight"])


READER = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
for name, stated in manifest["files"].items():
    content = (folder / name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (stated["size"], stated["sha256"]), name
state = json.loads((folder / "state.json").read_text())
tensors = {kind: load_file(folder / f"{kind}.safetensors") for kind in ("weights", "exp_avg", "exp_avg_sq")}
assert {a.dtype for group in tensors.values() for a in group.values()} == {np.dtype("float32")}
assert not {"torch", "azneobert"} & set(sys.modules)
total = {kind: {n: float(a.astype("float64").sum()) for n, a in group.items()} for kind, group in tensors.items()}
print(json.dumps([manifest["step"], state["optimizer"]["step"], state["stream"], total]))
"""


def test_numpy_json_and_safetensors_alone_can_read_it(maker: CheckpointMaker, folder: Path) -> None:
    printed = subprocess.run([sys.executable, "-c", READER, folder], capture_output=True, text=True, check=True).stdout
    step, optimizer_step, stream, totals = json.loads(printed)
    state, manifest = maker.state(), maker.manifest(7)
    assert (step, optimizer_step, stream) == (7, state.optimizer_step, manifest.stream)
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        expected = {name: tensor.double().sum().item() for name, tensor in getattr(state, kind).items()}
        assert totals[kind] == pytest.approx(expected, rel=1e-12)


def test_every_file_is_readable_by_others_and_stated_in_the_manifest(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {*FILES, "manifest.json"}
    assert set(read_manifest(folder).files) == set(FILES)
    for name in FILES:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o644, name


def test_a_manifest_is_readable_by_others_however_strict_the_umask(maker: CheckpointMaker, tmp_path: Path) -> None:
    former = os.umask(0o077)
    try:
        write_checkpoint(tmp_path, maker.state(), maker.manifest(1), maker.tokenizer)
    finally:
        os.umask(former)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_one_line_that_names_it(name: str, folder: Path) -> None:
    file = folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with refused(CheckpointError, str(file), "sha256", "expected"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_one_line_that_names_it(name: str, folder: Path) -> None:
    file = folder / name
    os.truncate(file, file.stat().st_size - 1)
    with refused(CheckpointError, str(file), "truncated", f"{file.stat().st_size} bytes found"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line_that_names_it(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with refused(CheckpointError, str(folder / name), "is missing"):
        read_checkpoint(folder)


def test_a_folder_without_a_manifest_is_no_checkpoint(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with refused(CheckpointError, str(folder), "manifest.json is missing"):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": "azneobert-universal"}', '"text"'], ids=repr)
def test_a_damaged_manifest_is_one_line(content: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(content)
    with refused(CheckpointError, str(folder / "manifest.json"), "damaged manifest"):
        verify_checkpoint(folder)


def test_a_manifest_of_bytes_that_are_no_text_is_one_line(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with refused(CheckpointError, "damaged manifest"):
        verify_checkpoint(folder)


def test_a_copy_without_moments_is_a_whole_checkpoint_that_says_so(maker: CheckpointMaker, folder: Path) -> None:
    lean = folder.parent / "lean"
    lean.mkdir()
    assert not copy_without_moments(folder, lean).moments
    assert {file.name for file in lean.iterdir()} == {*FILES, "manifest.json"} - set(MOMENTS)
    manifest = verify_checkpoint(lean)
    assert replace(manifest, moments=True, files={}) == replace(read_manifest(folder), files={})
    state, _ = read_checkpoint(lean, moments=False)
    assert all(torch.equal(state.weights[n], t) for n, t in maker.state().weights.items())
    with refused(CheckpointError, str(lean), "holds no moments", "use a checkpoint that does"):
        read_checkpoint(lean)
