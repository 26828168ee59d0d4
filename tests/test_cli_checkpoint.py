"""`azneobert checkpoint` as a person types it: convert, compare, look, thin out; and what it says to wrong input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toy import CheckpointMaker, run_command

from azneobert.checkpoint.manifest import read_manifest, write_manifest
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.universal import write_checkpoint


@pytest.fixture
def checkpoints(toy_corpus: Path, tmp_path: Path) -> Path:
    maker = CheckpointMaker(toy_corpus / "tokenizer.json")
    for step in (3, 6, 9):
        maker.publish(CheckpointFolder(tmp_path / "run", 3), step)
    return tmp_path / "run"


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    return run_command(["checkpoint", *words], folder)


def test_a_checkpoint_goes_to_zero2_and_plain_and_comes_back_the_same(checkpoints: Path) -> None:
    here = checkpoints.parent
    code, printed, _ = run(here, "convert", "run", "zero2", "--to", "zero2", "--world-size", "3")
    assert (code, printed) == (0, "zero2: zero2 for 3 ranks\n")
    assert len(list((here / "zero2" / "pytorch_model").glob("*_optim_states.pt"))) == 3
    assert run(here, "convert", "zero2", "plain", "--to", "plain")[0] == 0
    assert run(here, "convert", "plain", "back", "--to", "universal")[0] == 0
    code, printed, errors = run(here, "diff", "run/step-00000009", "back")
    assert (code, errors) == (0, "")
    assert "the same tensors, bit for bit" in printed
    assert run(here, "verify", "zero2")[1].startswith("zero2: whole; zero2 checkpoint, step 9, ")
    assert sorted(path.name for path in here.iterdir() if path.name.startswith(".partial")) == []


def test_a_folder_of_steps_means_its_newest_whole_one(checkpoints: Path) -> None:
    (checkpoints / "step-00000009" / "weights.safetensors").write_bytes(b"torn")
    code, printed, errors = run(checkpoints.parent, "verify", "run")
    assert code == 0
    assert printed.startswith("run/step-00000006: whole; phase1, step 6")
    assert "step-00000009/weights.safetensors: truncated (4 bytes found" in errors


def test_inspect_shows_the_numbers_the_groups_and_where_it_came_from(checkpoints: Path) -> None:
    assert run(checkpoints.parent, "convert", "run", "zero2", "--to", "zero2")[0] == 0
    history = ("from step 0", "commit abc, changed or not is unknown; code def")
    for folder, shown in (("run", ("phase1", *history)), ("zero2", ("source.world_size", "source.bf16"))):
        code, printed, _ = run(checkpoints.parent, "inspect", folder)
        assert code == 0
        for text in (*shown, "248 in 2 tensors", "head.weight = encoder.embedding.weight", "weight_decay 0.01"):
            assert text in " ".join(printed.replace("│", " ").split())


def test_diff_names_what_differs_and_by_how_much(checkpoints: Path, toy_corpus: Path) -> None:
    maker = CheckpointMaker(toy_corpus / "tokenizer.json")
    state = maker.state()
    state.weights["encoder.final_norm.weight"][3] += 0.5  # type: ignore[index]
    other = replace(state, exp_avg={}, optimizer_step=8)
    (checkpoints.parent / "other").mkdir()
    write_checkpoint(checkpoints.parent / "other", other, maker.manifest(9), maker.tokenizer)
    code, printed, _ = run(checkpoints.parent, "diff", "run", "other")
    lines = [" ".join(line.replace("│", " ").split()) for line in printed.splitlines()]
    assert code == 1
    assert any("1 of 8" in line and line.endswith("0.5") for line in lines), printed
    assert sum("only in A" in line for line in lines) == 2
    assert any("7 in A, 8 in B" in line for line in lines)


def test_prune_keeps_the_newest_whole_ones_and_says_what_went(checkpoints: Path) -> None:
    (checkpoints / "step-00000009" / "manifest.json").unlink()
    code, printed, _ = run(checkpoints.parent, "prune", "run", "--keep", "1")
    assert code == 0
    assert printed == "removed step-00000003\nremoved step-00000009\nrun: step-00000006 left\n"
    assert (checkpoints / "latest").read_text().split()[0] == "step-00000006"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "nowhere", "new", "--to", "plain"], "nowhere: no such folder"),
        (["convert", "run", "run", "--to", "plain"], "run: is there already; name a new folder"),
        (["convert", "run", "new", "--to", "zero2", "--world-size", "0"], "--world-size 0: expected 1 or more"),
        (["convert", "run", "new", "--to", "plain", "--tied", "head"], "--tied: expected ALIAS=OWNER"),
        (["convert", "run", "new", "--to", "plain", "--tied", "a=b"], "--tied a=b: expected a name that"),
        (["convert", "run", "new", "--to", "plain", "--parameter-names", "no.txt"], "no.txt: cannot be read"),
        (["diff", "run", "empty"], "empty: holds no checkpoint; expected a folder with manifest.json (universal)"),
        (["prune", "empty", "--keep", "2"], "empty: holds no checkpoints; expected a folder with step-... in it"),
        (["verify", "empty"], "empty: holds no checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_input_is_one_line_and_leaves_nothing(words: list[str], said: str, checkpoints: Path) -> None:
    (checkpoints.parent / "empty").mkdir()
    before = sorted(checkpoints.parent.rglob("*"))
    code, printed, errors = run(checkpoints.parent, *words)
    assert (code, printed) == (1, "")
    assert errors.startswith(f"error: {said}")
    assert errors.count("\n") == 1
    assert sorted(checkpoints.parent.rglob("*")) == before


def test_where_no_step_is_whole_nothing_is_pruned(checkpoints: Path) -> None:
    for step in CheckpointFolder(checkpoints, 1).steps():
        shutil.rmtree(step)
        step.mkdir()
    code, _, errors = run(checkpoints.parent, "prune", "run", "--keep", "1")
    assert code == 1
    assert (
        errors.splitlines()[-1] == "error: run: holds no whole checkpoint, so nothing is removed; expected one or more"
    )
    assert len(CheckpointFolder(checkpoints, 1).steps()) == 3


def test_a_file_that_the_manifest_does_not_list_is_none_of_the_checkpoint(checkpoints: Path) -> None:
    whole = checkpoints / "step-00000009"
    manifest = read_manifest(whole)
    kept = {n: stated for n, stated in manifest.files.items() if n not in ("tokenizer.json", "buffers.safetensors")}
    write_manifest(whole, manifest, kept)
    (checkpoints.parent / "secret").write_text("secret")
    (whole / "tokenizer.json").unlink()
    (whole / "tokenizer.json").symlink_to(checkpoints.parent / "secret")
    (whole / "buffers.safetensors").write_bytes(b"of nobody")
    assert run(checkpoints.parent, "convert", "run/step-00000009", "copy", "--to", "universal")[0] == 0
    assert {f.name for f in (checkpoints.parent / "copy").iterdir()} == {*kept, "manifest.json"}


def test_a_linked_tokenizer_is_not_copied(checkpoints: Path) -> None:
    whole = checkpoints / "step-00000009"
    (whole / "tokenizer.json").rename(checkpoints.parent / "elsewhere.json")
    (whole / "tokenizer.json").symlink_to(checkpoints.parent / "elsewhere.json")
    code, _, errors = run(checkpoints.parent, "convert", "run/step-00000009", "copy", "--to", "universal")
    assert code == 1
    assert "tokenizer.json: is not a regular file, but a link" in " ".join(errors.split())
    assert not (checkpoints.parent / "copy").exists()
