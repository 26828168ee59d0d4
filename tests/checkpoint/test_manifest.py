"""One bit that is not as it was written makes a damaged checkpoint, never another run; formats before are read."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from toy import CheckpointMaker

from azneobert.checkpoint.manifest import (
    MANIFEST,
    MOMENTS,
    NewerFormatError,
    Segment,
    read_manifest,
    verify_checkpoint,
    write_manifest,
)
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.errors import CheckpointError


@pytest.fixture
def maker(toy_corpus: Path) -> CheckpointMaker:
    return CheckpointMaker(toy_corpus / "tokenizer.json")


@pytest.fixture
def folder(maker: CheckpointMaker, tmp_path: Path) -> Path:
    return maker.publish(CheckpointFolder(tmp_path, 9), 7)


def content_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def put(folder: Path, content: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(content))


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a manifest by hand, its hash left as it was."""
    put(folder, content_of(folder) | changes)


def as_format(folder: Path, version: int) -> dict[str, Any]:
    """Make a manifest what that format had: no segments and no hash, but a lineage that names code and engine."""
    content = content_of(folder)
    for key in ("sha256", "segments", "moments"):
        del content[key]
    content["format_version"] = version
    content["lineage"] = {
        "git_commit": "abc",
        "git_dirty": True,
        "code_sha256": "def",
        "versions": {"torch": "2.11.0"},
        "engine": {"name": "zero2", "world_size": 8},
        "mlflow_run_id": "f00",
        "started_from": None,
    }
    put(folder, content)
    return content


@pytest.mark.parametrize("version", [1, 2])
def test_the_formats_before_are_read_and_their_lineage_is_the_first_segment(version: int, folder: Path) -> None:
    content = as_format(folder, version)
    manifest = verify_checkpoint(folder)
    assert manifest.format_version == version
    assert manifest.lineage == content["lineage"]
    assert manifest.moments
    assert manifest.segments == (Segment(0, "abc", True, "def", {"torch": "2.11.0"}, "zero2", 8),)


def test_the_first_format_had_neither_buffers_nor_a_scheduler(folder: Path) -> None:
    from azneobert.checkpoint.universal import read_checkpoint

    content = as_format(folder, 1)
    state = json.loads((folder / "state.json").read_text())
    del state["scheduler"]
    (folder / "state.json").write_text(json.dumps(state | {"buffers": {}}))
    (folder / "buffers.safetensors").unlink()
    del content["files"]["buffers.safetensors"]
    written = (folder / "state.json").read_bytes()
    content["files"]["state.json"] = {"sha256": hashlib.sha256(written).hexdigest(), "size": len(written)}
    put(folder, content)
    found, _ = read_checkpoint(folder)
    assert (found.buffers, found.scheduler) == ({}, None)


def test_segments_come_back_as_they_were_written(maker: CheckpointMaker, folder: Path) -> None:
    manifest = read_manifest(folder)
    history = (Segment(0, "abc", False, "one", {"torch": "2"}, "plain", 1), Segment(5, engine="zero2", world_size=2))
    write_manifest(folder, replace(manifest, segments=history), manifest.files)
    assert read_manifest(folder).segments == history
    assert history[0].continues(replace(history[0], from_step=99))
    assert not history[0].continues(replace(history[0], world_size=2))
    assert Segment.read({"from_step": 3, "mood": "of a later program"}) == Segment(3)


# Damage


def is_refused(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return True
    return False


def test_one_bit_in_whatever_byte_of_the_manifest_is_a_damaged_checkpoint(folder: Path) -> None:
    whole = (folder / MANIFEST).read_bytes()
    assert len(whole) > 1000
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        (folder / MANIFEST).write_bytes(content)
        if not is_refused(folder):  # white space between the tokens may change: it says nothing
            assert json.loads(bytes(content)) == json.loads(whole), place


@pytest.mark.parametrize("key", ["sample_index", "first_sample"])
@pytest.mark.parametrize("version", [2, 3])
def test_another_sample_index_than_the_one_that_was_saved_is_refused(version: int, key: str, folder: Path) -> None:
    if version == 2:
        as_format(folder, 2)
    content = content_of(folder)
    content["stream"][key] += 4000
    content["samples"] = content["stream"]["sample_index"]
    put(folder, content)
    with pytest.raises(CheckpointError):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "azneobert-universal"}', "\x00", '{"format_version": 3}']
)
def test_what_is_no_manifest_is_a_damaged_one_in_one_line(text: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(text)
    with refused(CheckpointError, str(folder / MANIFEST), "damaged manifest", "use another checkpoint"):
        read_manifest(folder)


def test_a_pipe_in_the_place_of_the_manifest_is_not_waited_for(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with refused(CheckpointError, MANIFEST, "is not a regular file"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../tokenizer.json", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name: str, folder: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, manifest, manifest.files | {name: {"sha256": "0" * 64, "size": 1}})
    with refused(CheckpointError, "damaged manifest", "is not the name of a file in the folder"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", *MOMENTS])
def test_a_manifest_that_does_not_list_what_every_checkpoint_has_is_refused(name: str, folder: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, manifest, {n: stated for n, stated in manifest.files.items() if n != name})
    with refused(CheckpointError, "damaged manifest", name, "is not listed"):
        read_manifest(folder)


def test_a_checkpoint_under_another_step_s_name_is_passed_over(
    maker: CheckpointMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = CheckpointFolder(tmp_path, 9)
    whole = maker.publish(checkpoints, 3)
    maker.publish(checkpoints, 5).rename(tmp_path / "step-00000009")
    newest = checkpoints.latest()
    assert newest is not None
    assert newest[0] == whole
    assert "its manifest is of step 5" in caplog.text


# Formats to come


def test_a_newer_format_is_refused_saying_what_is_read(folder: Path) -> None:
    edit(folder, format_version=4, shards=8)
    with refused(NewerFormatError, MANIFEST, "format 4", "up to 3", "use the version"):
        read_manifest(folder)


def test_a_folder_of_another_program_is_refused(folder: Path) -> None:
    edit(folder, format="someone-elses")
    with refused(CheckpointError, "someone-elses"):
        read_manifest(folder)


def test_nothing_of_a_newer_format_is_removed_and_nothing_is_trained_over_it(
    maker: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoints = CheckpointFolder(tmp_path, 1)
    newer = [maker.publish(CheckpointFolder(tmp_path, 9), step) for step in (2, 4, 8)]
    for each in newer:
        edit(each, format_version=4)
    with refused(NewerFormatError, "step-00000008", "format 4"):
        checkpoints.latest()
    maker.publish(checkpoints, 5)
    maker.publish(checkpoints, 6)
    assert [path.name for path in checkpoints.steps()] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    maker.publish(CheckpointFolder(tmp_path, 9), 7)
    assert [path.name for path in checkpoints.prune()] == ["step-00000006"]
    assert [path.name for path in checkpoints.steps()] == [f"step-{step:08d}" for step in (2, 4, 7, 8)]
