"""A folder of checkpoints: whole ones only, the newest first, and no more than are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from refusals import refused
from toy import CheckpointMaker, equal_states, outcome, run_ranks, start_ranks

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.tensors import LazyTensors, shapes_of
from azneobert.checkpoint.universal import read_checkpoint
from azneobert.errors import CheckpointError


@pytest.fixture
def maker(toy_corpus: Path) -> CheckpointMaker:
    return CheckpointMaker(toy_corpus / "tokenizer.json")


def steps(folder: CheckpointFolder) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in folder.steps()]


def newest_step(folder: CheckpointFolder) -> int | None:
    found = folder.latest()
    return found[1].step if found else None


def damage(checkpoint: Path) -> None:
    (checkpoint / "weights.safetensors").write_bytes(b"torn")


def test_an_empty_folder_and_one_that_is_not_there_have_no_latest(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path, 2).latest() is None
    assert CheckpointFolder(tmp_path / "none", 2).latest() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_retention_keeps_the_newest_and_as_many_as_asked(keep: int, maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep)
    for step in (3, 6, 9, 12):
        maker.publish(folder, step)
        assert newest_step(folder) == step
        digest = hashlib.sha256((tmp_path / f"step-{step:08d}" / "manifest.json").read_bytes()).hexdigest()
        assert (tmp_path / "latest").read_text() == f"step-{step:08d} {digest}\n"
        assert (tmp_path / "latest").resolve().parent == tmp_path
    assert steps(folder) == [3, 6, 9, 12][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", *(p.name for p in folder.steps())]


def test_steps_are_ordered_by_number_even_where_they_outgrow_their_digits(
    maker: CheckpointMaker, tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path, 1)
    maker.publish(folder, 99_999_999)
    maker.publish(folder, 100_000_000)
    assert newest_step(folder) == 100_000_000


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning_that_says_why(
    maker: CheckpointMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, 3)
    for step in (3, 6, 9):
        maker.publish(folder, step)
    damage(folder.steps()[2])
    (folder.steps()[1] / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_step(folder) == 3
    assert len(caplog.records) == 2
    assert "step-00000009/weights.safetensors: truncated (4 bytes found" in caplog.text
    assert "step-00000006: no whole checkpoint there" in caplog.text
    assert "trying the one before it" in caplog.text
    assert steps(folder) == [3, 6, 9], "looking must not remove anything"


def test_where_all_are_damaged_there_is_no_latest(maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    for step in (3, 6):
        damage(maker.publish(folder, step))
    assert folder.latest() is None


def test_a_pointer_that_names_nothing_does_not_matter(maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    maker.publish(folder, 3)
    (tmp_path / "latest").write_text("step-99999999\n")
    assert newest_step(folder) == 3
    (tmp_path / "latest").unlink()
    assert newest_step(folder) == 3


def test_a_step_that_is_there_damaged_is_replaced_by_the_whole_one(maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    damage(maker.publish(folder, 3))
    target = maker.publish(folder, 3)
    assert equal_states(read_checkpoint(target)[0], maker.state())
    assert steps(folder) == [3]


@pytest.mark.parametrize("keep", [1, 2])
def test_retention_never_removes_what_was_just_published_beside_damaged_newer_ones(
    keep: int, maker: CheckpointMaker, tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path, keep)
    for step in (6, 9):
        damage(maker.publish(folder, step))
    assert folder.latest() is None  # so the run starts anew, and saves its step 3
    maker.publish(folder, 3)
    assert newest_step(folder) == 3


def test_retention_counts_whole_checkpoints_not_damaged_ones(maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    for step in (3, 6):
        maker.publish(folder, step)
    damage(folder.steps()[1])
    maker.publish(folder, 5)  # resumed from 3, asked to stop at 5
    damage(tmp_path / "step-00000005")
    assert newest_step(folder) == 3


def publish_when_told(maker: CheckpointMaker, path: Path, step: int, go: Path) -> None:
    """Publish, and in the middle of it wait for a file to appear."""
    state = maker.state()

    def load(name: str) -> torch.Tensor:
        while not go.exists():
            time.sleep(0.01)
        return state.exp_avg_sq[name]

    late = dataclasses.replace(state, exp_avg_sq=LazyTensors(shapes_of(state.exp_avg_sq), load))
    CheckpointFolder(path, 9).publish(late, maker.manifest(step), maker.tokenizer)


def test_what_a_killed_writer_left_is_never_a_checkpoint_and_is_removed_by_the_next(
    maker: CheckpointMaker, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints"
    folder = CheckpointFolder(path, 2)
    maker.publish(folder, 3)
    [(child, _)] = start_ranks(publish_when_told, maker, path, 6, tmp_path / "never", folder=tmp_path / "child")
    deadline = time.monotonic() + 60
    while not list(path.glob(".partial-*/exp_avg_sq.safetensors")):
        assert time.monotonic() < deadline
        assert child.is_alive()
        time.sleep(0.01)
    assert newest_step(folder) == 3
    child.kill()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert list(path.glob(".partial-*"))
    assert steps(folder) == [3]
    assert newest_step(folder) == 3
    maker.publish(folder, 6)
    assert steps(folder) == [3, 6]
    assert not list(path.glob(".partial-*"))


def test_a_writer_that_fails_leaves_the_former_checkpoint_in_place(maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", 1)
    maker.publish(folder, 3)
    with refused(CheckpointError, str(folder.path / "step-00000006"), "cannot be written: No such file or directory"):
        CheckpointMaker(tmp_path / "no-tokenizer.json").publish(folder, 6)
    assert newest_step(folder) == 3
    assert sorted(path.name for path in folder.path.iterdir()) == ["latest", "step-00000003"]
    assert (folder.path / "latest").read_text().split()[0] == "step-00000003"


# Pruning


def prune_in_vain(folder: CheckpointFolder, *parts: str) -> None:
    before = sorted(folder.path.rglob("*"))
    with refused(CheckpointError, str(folder.path), *parts):
        folder.prune()
    assert sorted(folder.path.rglob("*")) == before


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_keeps_the_newest_whole_ones_and_says_what_it_removed(
    keep: int, maker: CheckpointMaker, tmp_path: Path
) -> None:
    for step in (3, 6, 9, 12):
        maker.publish(CheckpointFolder(tmp_path, 9), step)
    (tmp_path / ".partial-step-00000015").mkdir()
    folder = CheckpointFolder(tmp_path, keep)
    removed = folder.prune()
    assert steps(folder) == [3, 6, 9, 12][-keep:]
    assert [path.name for path in removed] == [f"step-{step:08d}" for step in (3, 6, 9, 12)[:-keep]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", *(p.name for p in folder.steps())]
    assert folder.prune() == []


def test_pruning_counts_whole_checkpoints_and_removes_damaged_ones(
    maker: CheckpointMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 6, 9, 12):
        maker.publish(CheckpointFolder(tmp_path, 9), step)
    damage(tmp_path / "step-00000012")
    damage(tmp_path / "step-00000006")
    folder = CheckpointFolder(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        removed = folder.prune()
    assert steps(folder) == [3, 9]
    assert [path.name for path in removed] == ["step-00000006", "step-00000012"]
    assert (tmp_path / "latest").read_text().split()[0] == "step-00000009"
    assert "step-00000012/weights.safetensors: truncated (4 bytes found" in caplog.text


def test_pruning_removes_nothing_where_no_checkpoint_is_whole(maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 1)
    for step in (3, 6):
        damage(maker.publish(CheckpointFolder(tmp_path, 9), step))
    prune_in_vain(folder, "holds no whole checkpoint, so nothing is removed")


def test_pruning_an_empty_folder_is_refused(tmp_path: Path) -> None:
    prune_in_vain(CheckpointFolder(tmp_path, 1), "holds no whole checkpoint")


def test_pruning_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    prune_in_vain(CheckpointFolder(tmp_path / "none", 1), "holds no whole checkpoint")


def test_pruning_waits_for_a_checkpoint_that_is_being_written(maker: CheckpointMaker, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    for step in (3, 6):
        maker.publish(CheckpointFolder(path, 9), step)
    [(child, connection)] = start_ranks(publish_when_told, maker, path, 9, tmp_path / "go", folder=tmp_path / "child")
    while not list(path.glob(".partial-*/exp_avg_sq.safetensors")):
        assert child.is_alive()
        time.sleep(0.01)
    pruning = threading.Thread(target=CheckpointFolder(path, 1).prune)
    pruning.start()
    pruning.join(0.3)
    waits, found = pruning.is_alive(), steps(CheckpointFolder(path, 1))
    (tmp_path / "go").touch()
    pruning.join(30)
    assert outcome(child, connection) is None
    assert waits
    assert found == [3, 6]
    assert steps(CheckpointFolder(path, 1)) == [9]
    assert equal_states(read_checkpoint(path / "step-00000009")[0], maker.state())


def forks_while_it_publishes(maker: CheckpointMaker, path: Path) -> bool:
    """A data loader's worker is forked while the writer has the lock, and outlives it; then another save comes."""
    go = path.parent / "go"
    writing = threading.Thread(target=publish_when_told, args=(maker, path, 1, go))
    writing.start()
    while not list(path.glob(".partial-*/exp_avg_sq.safetensors")):
        time.sleep(0.01)
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    go.touch()
    writing.join()
    second = threading.Thread(target=maker.publish, args=(CheckpointFolder(path, 9), 2), daemon=True)
    second.start()
    second.join(5)
    waits = second.is_alive()
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    second.join()
    return waits


def test_a_process_forked_while_a_checkpoint_is_written_does_not_keep_the_lock(
    maker: CheckpointMaker, tmp_path: Path
) -> None:
    [waits] = run_ranks(forks_while_it_publishes, maker, tmp_path / "checkpoints", folder=tmp_path)
    assert not waits, "the next save waits for a process that has nothing to do with it"
