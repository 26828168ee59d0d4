"""Writing in the background: a checkpoint is of the moment of its save, and what goes wrong is said."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import new_engine, steps
from mlflow import MlflowClient
from refusals import refused
from toy import CheckpointMaker, Toy, equal_states, outcome, run_ranks, start_ranks, train_rank

from azneobert.checkpoint import universal
from azneobert.checkpoint.manifest import MANIFEST, verify_checkpoint
from azneobert.checkpoint.rotation import BackgroundWriter, CheckpointFolder, DiskError
from azneobert.checkpoint.universal import TrainState, read_checkpoint
from azneobert.course import Course
from azneobert.errors import CheckpointError
from azneobert.files import sha256_file
from azneobert.locks import locked
from azneobert.training.inputs import Inputs, open_streams
from azneobert.training.position import Position
from azneobert.training.saving import Saver

START = Position(None, False, 0, Course(8, 32), 0, None, {})


@pytest.fixture
def maker(toy_corpus: Path) -> CheckpointMaker:
    return CheckpointMaker(toy_corpus / "tokenizer.json")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Whoever writes checkpoints here is kept from it meanwhile, as by another writer."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


def step_numbers(folder: CheckpointFolder) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in folder.steps()]


# What is written


def trains_on_while_it_is_saved(inputs: Inputs) -> tuple[TrainState | None, TrainState | None]:
    """The state at the moment of a save that begins to write only when training has gone on, and the state then."""
    engine = new_engine(inputs.recipe)
    stream = open_streams(inputs)[0]
    steps(engine, stream, range(1))
    at_the_save = engine.gather()
    with (
        Saver(inputs, engine, START, lambda: None) as saver,
        held(inputs.checkpoints.path) if engine.world.is_main else nullcontext(),
    ):
        saver.save(1)
        steps(engine, stream, range(1, 3))
        assert not (engine.world.is_main and inputs.checkpoints.steps())
        afterwards = engine.gather()
    return at_the_save, afterwards


@pytest.mark.parametrize(("engine", "processes"), [("plain", 1), ("plain", 2), ("zero2", 2)])
def test_a_checkpoint_is_of_the_moment_of_the_save_although_training_goes_on_at_once(
    engine: str, processes: int, make_toy: Callable[..., Toy]
) -> None:
    toy = make_toy({"runtime": {"engine": engine}})
    results = run_ranks(trains_on_while_it_is_saved, toy.inputs(), processes=processes, folder=toy.folder)
    at_the_save, afterwards = results[0]
    written, manifest = toy.result()
    assert manifest.step == written.optimizer_step == 1
    assert equal_states(written, at_the_save)
    assert all(not torch.equal(written.weights[n], t) for n, t in afterwards.weights.items())


def saves_twice(inputs: Inputs) -> list[TrainState | None]:
    """The states of two saves, the second asked for while the first is held up."""
    engine = new_engine(inputs.recipe)
    stream = open_streams(inputs)[0]
    states = []
    with Saver(inputs, engine, START, lambda: None) as saver:
        second = threading.Thread(target=saver.save, args=(2,))
        with held(inputs.checkpoints.path):
            for step in (1, 2):
                steps(engine, stream, range(step - 1, step))
                states.append(engine.gather())
                saver.save(1) if step == 1 else second.start()
            second.join(0.5)
            assert second.is_alive(), "the second save must wait for the first"
        second.join(60)
        assert not second.is_alive()
    return states


def test_a_save_waits_for_the_one_before_and_leaves_what_that_one_writes_alone(make_toy: Callable[..., Toy]) -> None:
    toy = make_toy()
    [states] = run_ranks(saves_twice, toy.inputs(), folder=toy.folder)
    folders = toy.checkpoints().steps()
    assert [folder.name for folder in folders] == ["step-00000001", "step-00000002"]
    for folder, state in zip(folders, states, strict=True):
        assert equal_states(read_checkpoint(folder)[0], state)
    assert not equal_states(*states)


def test_leaving_a_saver_waits_for_what_is_being_written(maker: CheckpointMaker, tmp_path: Path) -> None:
    writer = BackgroundWriter(CheckpointFolder(tmp_path, 2))
    with held(tmp_path):
        writer.submit(maker.state(), maker.manifest(1), maker.tokenizer)
        waiting = threading.Thread(target=writer.wait)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(60)
    assert verify_checkpoint(tmp_path / "step-00000001").step == 1


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size; everything on it is gone with the test."""
    mounted = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk-{size}"
        place.mkdir()
        try:
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no small file system can be mounted here: {getattr(error, 'stderr', None) or error}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    return ballast


@pytest.mark.parametrize("then", ["wait", "submit"])
def test_a_checkpoint_that_does_not_fit_is_one_line_and_leaves_the_former_one_as_it_was(
    then: str, maker: CheckpointMaker, small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk("1m")
    folder = CheckpointFolder(disk / "checkpoints", 2)
    maker.publish(folder, 3)
    ballast = fill(disk)
    writer = BackgroundWriter(folder, retry_seconds=0.1, patience_seconds=0.3)
    writer.submit(maker.state(), maker.manifest(6), maker.tokenizer)
    parts = str(folder.path / "step-00000006"), "cannot be written: No space left on device; it takes 1", "MB are free"
    if then == "wait":
        with refused(CheckpointError, *parts):
            writer.wait()
    while "the training goes on" not in caplog.text:
        time.sleep(0.01)
    writer.check()  # which the loop does at each step: a full disk ends nothing
    names = sorted(path.name for path in folder.path.iterdir())
    assert [name for name in names if not name.startswith(".")] == ["latest", "step-00000003"]
    assert (folder.path / "latest").read_text().split()[0] == "step-00000003"
    assert equal_states(read_checkpoint(folder.path / "step-00000003")[0], maker.state())
    ballast.unlink()
    writer.submit(maker.state(), maker.manifest(9), maker.tokenizer)
    writer.wait()
    assert step_numbers(folder) in ([3, 9], [6, 9]), "6 only if there was room before 9 took its place"
    [said] = [record.getMessage() for record in caplog.records if "the training goes on" in record.getMessage()]
    assert [part for part in parts if part not in said] == []


def test_a_checkpoint_that_did_not_fit_is_written_once_there_is_room(
    maker: CheckpointMaker, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("1m")
    folder = CheckpointFolder(disk / "checkpoints", 2)
    maker.publish(folder, 3)
    ballast = fill(disk)
    writer = BackgroundWriter(folder, retry_seconds=0.1, patience_seconds=20)
    writer.submit(maker.state(), maker.manifest(6), maker.tokenizer)
    threading.Timer(0.5, ballast.unlink).start()
    writer.wait()
    assert step_numbers(folder) == [3, 6]


def test_a_disk_that_fills_at_the_rename_leaves_latest_at_the_newest_whole_checkpoint(
    maker: CheckpointMaker, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("2m")
    folder = CheckpointFolder(disk / "checkpoints", 2)
    maker.publish(folder, 3)
    rename = Path.rename

    def fill_and_rename(path: Path, target: Path) -> Path:
        fill(disk)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fill_and_rename)
    maker.publish(folder, 6)
    assert step_numbers(folder) == [3, 6]
    assert (folder.path / "latest").read_text().split() == ["step-00000006", sha256_file(folder.steps()[-1] / MANIFEST)]


def test_a_disk_without_room_for_latest_publishes_nothing(
    maker: CheckpointMaker, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("2m")
    folder = CheckpointFolder(disk / "checkpoints", 2)
    maker.publish(folder, 3)
    write = universal.write_checkpoint

    def write_and_fill(*arguments: Any) -> None:
        write(*arguments)
        fill(disk)

    monkeypatch.setattr(universal, "write_checkpoint", write_and_fill)
    with refused(DiskError, "step-00000006", "No space left on device"):
        maker.publish(folder, 6)
    assert sorted(path.name for path in folder.path.iterdir()) == ["latest", "step-00000003"]
    assert (folder.path / "latest").read_text().split()[0] == "step-00000003"


def too_large(maker: CheckpointMaker, what: str) -> TrainState:
    large = {"large": torch.zeros(1 << 19)}  # twice the disk
    return dataclasses.replace(maker.state(), **{what: large})


@pytest.mark.parametrize("what", ["weights", "exp_avg_sq", "buffers"])
def test_whatever_it_is_that_does_not_fit_the_writer_says_so(
    what: str, maker: CheckpointMaker, small_disk: Callable[[str], Path]
) -> None:
    folder = CheckpointFolder(small_disk("1m") / "checkpoints", 2)
    maker.publish(folder, 3)
    writer = BackgroundWriter(folder, patience_seconds=0)
    writer.submit(too_large(maker, what), maker.manifest(6), maker.tokenizer)
    with refused(CheckpointError, "step-00000006", "cannot be written"):
        writer.wait()
    assert sorted(path.name for path in folder.path.iterdir()) == ["latest", "step-00000003"]


def test_a_tokenizer_that_is_not_there_is_said_by_the_writer(maker: CheckpointMaker, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, 2)
    maker.publish(folder, 3)
    writer = BackgroundWriter(folder)
    writer.submit(maker.state(), maker.manifest(6), tmp_path / "no-tokenizer.json")
    with refused(CheckpointError, "step-00000006", "No such file or directory"):
        writer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000003"]


def on_disk(toy: Toy, disk: Path) -> Inputs:
    """A toy run whose checkpoints, and nothing else, lie on another disk."""
    inputs = toy.inputs()
    inputs.run.path.mkdir(parents=True)
    inputs.run.checkpoints.symlink_to(disk)
    return inputs


@pytest.mark.parametrize(("engine", "processes"), [("plain", 1), ("zero2", 2)])
def test_a_run_goes_on_beside_a_full_disk_and_saves_again_when_there_is_room(
    engine: str, processes: int, make_toy: Callable[..., Toy], small_disk: Callable[[str], Path]
) -> None:
    # 441 KB a checkpoint, of which two are kept.
    endless = {"phase1": {"steps": 5000}, "runtime": {"checkpoint_every": 2, "engine": engine}}
    toy = make_toy(endless).with_({"runtime": {"processes": processes}, "evaluation": {"every": 5000}})
    disk = small_disk("3m")
    inputs = on_disk(toy, disk)
    children = start_ranks(train_rank, inputs, processes=processes, folder=toy.folder)
    toy.wait_for_points(children[0][0], 8)
    deadline = time.monotonic() + 60
    newest = None
    while newest is None or inputs.checkpoints.steps()[-1] != newest:  # an old checkpoint that goes makes room
        newest = inputs.checkpoints.steps()[-1]
        ballast = fill(disk)
        toy.wait_for_points(children[0][0], max(toy.losses()) + 10)
        assert time.monotonic() < deadline
    assert verify_checkpoint(newest)
    assert (inputs.checkpoints.path / "latest").read_text().split()[0] == newest.name
    ballast.unlink()
    while inputs.checkpoints.steps()[-1] == newest:
        toy.wait_for_points(children[0][0], max(toy.losses()) + 1)
        assert time.monotonic() < deadline
    inputs.run.stop_file.touch()
    assert [outcome(*child) for child in children] == [False] * processes
    found = inputs.checkpoints.latest()
    assert found is not None
    assert found[1].step == max(toy.losses())
    assert not list(inputs.checkpoints.path.glob(".partial-*"))
    assert [run.info.status for run in runs_of(toy)] == ["KILLED"]


def runs_of(toy: Toy) -> list[Any]:
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    experiment = client.get_experiment_by_name(toy.recipe.tracking.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(
    processes: int, make_toy: Callable[..., Toy], small_disk: Callable[[str], Path]
) -> None:
    toy = make_toy({"runtime": {"processes": processes}})
    inputs = on_disk(toy, small_disk("1m"))
    with refused(CheckpointError, str(inputs.checkpoints.path), "are free, 3 checkpoints take", "keep_checkpoints"):
        run_ranks(train_rank, inputs, processes=processes, folder=toy.folder)
    assert toy.losses() == {}
    assert step_numbers(inputs.checkpoints) == []


def test_room_is_asked_for_the_checkpoints_that_are_still_missing_and_one_more(
    maker: CheckpointMaker, small_disk: Callable[[str], Path]
) -> None:
    folder = CheckpointFolder(small_disk("1m") / "checkpoints", 3)
    folder.check_room(200_000)
    with refused(CheckpointError, "4 checkpoints"):
        folder.check_room(300_000)
    for step in (1, 2, 3):
        maker.publish(folder, step)
    folder.check_room(300_000)  # the three that are kept stand; each further one takes the place of another
    with refused(CheckpointError, "1 checkpoints"):
        folder.check_room(1_100_000)


# A folder that may not be written


def publish_as_nobody(maker: CheckpointMaker, path: Path) -> str:
    os.seteuid(65534)
    try:
        maker.publish(CheckpointFolder(path, 2), 6)
    except CheckpointError as error:
        return str(error)
    return "published"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take away its own permission by becoming another user")
@pytest.mark.parametrize("mode", [0o700, 0o755], ids=oct)
def test_a_folder_without_permission_is_one_line_and_nothing_is_written(
    mode: int, maker: CheckpointMaker, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        base = Path(open_to_all)
        base.chmod(0o755)
        tokenizer = base / "tokenizer.json"
        tokenizer.write_bytes(maker.tokenizer.read_bytes())
        path = base / "checkpoints"
        maker.publish(CheckpointFolder(path, 2), 3)
        path.chmod(mode)
        before = sorted(path.rglob("*"))
        [message] = run_ranks(publish_as_nobody, CheckpointMaker(tokenizer), path, folder=tmp_path)
        assert message.endswith("step-00000006: cannot be written: Permission denied")
        assert "\n" not in message
        assert sorted(path.rglob("*")) == before
        assert verify_checkpoint(path / "step-00000003").step == 3


# A killed writer


def publish_on_and_on(maker: CheckpointMaker, path: Path, log: Path) -> None:
    """Publish the steps after the newest until killed, and note each that stands."""
    folder = CheckpointFolder(path, 2)
    newest = folder.latest()
    step = newest[1].step if newest else 0
    with log.open("ab", buffering=0) as notes:
        notes.write(b"0\n")
        while True:
            step += 1
            maker.publish(folder, step)
            notes.write(f"{step}\n".encode())


@pytest.mark.long
def test_fifty_kills_at_any_moment_of_publishing_never_cost_a_checkpoint_that_stood(
    maker: CheckpointMaker, tmp_path: Path
) -> None:
    path, log = tmp_path / "checkpoints", tmp_path / "log"
    log.touch()
    folder = CheckpointFolder(path, 2)
    delays = random.Random(50)
    newest_before, halves, kills = 0, 0, 0
    while kills < 50 or newest_before <= 50:  # on a busy machine a child hardly comes to publish before it is killed
        kills += 1
        begun = log.read_bytes().count(b"\n")
        [(child, _connection)] = start_ranks(publish_on_and_on, maker, path, log, folder=tmp_path / "child")
        deadline = time.monotonic() + 60
        while log.read_bytes().count(b"\n") == begun:
            assert child.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.1))
        child.kill()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        halves += bool(list(path.glob(".partial-*")))
        confirmed = max(int(note) for note in log.read_text().split())
        if not confirmed:
            continue
        newest = folder.latest()
        assert newest is not None
        assert newest[1].step >= max(confirmed, newest_before)
        newest_before = newest[1].step
        assert equal_states(read_checkpoint(newest[0])[0], maker.state())
        pointed = path / (path / "latest").read_text().split()[0]
        assert confirmed <= verify_checkpoint(pointed).step <= newest[1].step
    assert halves >= 3, "the kills hardly came in the middle of writing"
    maker.publish(folder, newest_before + 1)
    assert step_numbers(folder) == [newest_before, newest_before + 1]
    assert sorted(p.name for p in path.iterdir()) == ["latest", *(p.name for p in folder.steps())]
