"""Tracking files damaged, and disks full: no traceback, nothing silent, every undamaged point with MLflow once."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy import Overrides, Toy

from azneobert.errors import AzNeoBertError
from azneobert.recipe import Tracking
from azneobert.tracking.delivery import deliver_folder, something_waits
from azneobert.tracking.points import read_points
from azneobert.tracking.published import publish_record, restore_run
from azneobert.tracking.record import RunInfo, read_record
from azneobert.tracking.spool import Spool
from azneobert.tracking.tracker import Tracker

SEED = 19
STEPS = 12
INFO = RunInfo("toy-phase1", params={"seed": 7}, tags={"azneobert.phase": "phase1"}, description="A toy.")
DOWN = "http://127.0.0.1:1"


def tracking_at(uri: str) -> Tracking:
    return Tracking(mlflow_uri=uri, experiment="tested", wandb="off", wandb_project="azneobert")


def in_mlflow(uri: str) -> list[tuple[int, float]]:
    """The points of every run, by step; a point that came twice stands twice."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tested")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return sorted((m.step, m.value) for run in runs for m in client.get_metric_history(run.info.run_id, "a"))


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that has ended without MLflow, a third of its points marked as delivered all the same."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / "recorded"
    tracker = Tracker(folder, tracking_at(DOWN), INFO)
    for step in range(1, STEPS + 1):
        tracker.log(step, {"a": float(step)})
    tracker.finish("FINISHED")
    return folder


@pytest.mark.parametrize("name", ["points.jsonl", "run.json", "points.delivered"])
def test_flipped_bits_cost_at_most_the_line_they_are_in_and_are_said(
    name: str, recorded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(SEED)
    spool = Spool(recorded)
    marks = [mark for _, mark in spool.undelivered()]
    spool.set_delivered(marks[0])
    spool.set_delivered(sum(map(len, (recorded / "points.jsonl").read_bytes().splitlines(keepends=True)[:4])))
    spool.close()
    record = read_record(recorded)
    whole = (recorded / name).read_bytes()
    for bit in {dice.randrange(8 * len(whole)) for _ in range(500)} | set(range(8 * 40)) & set(range(8 * len(whole))):
        folder = Path(shutil.copytree(recorded, tmp_path / "damaged"))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(damaged)
        caplog.clear()
        reread = read_points(folder)
        something_waits(folder)
        spool = Spool(folder)
        sent = [point["step"] for batch, _ in spool.undelivered() for point in batch]
        spool.close()
        said = [message.getMessage() for message in caplog.records if message.levelno >= logging.WARNING]
        assert not any("\n" in line for line in said)
        kept = [point["step"] for point in reread]
        assert len(kept) >= STEPS - 2, bit
        assert kept == [step for step in range(1, STEPS + 1) if step in kept]
        assert [(p["step"], p["values"]) for p in reread] == [(step, {"a": float(step)}) for step in kept]
        assert [step for step in kept if step > 4] == [step for step in sent if step > 4], "all that waits is sent"
        changed = (
            kept != list(range(1, STEPS + 1)) or read_record(folder) != record or sent != list(range(5, STEPS + 1))
        )
        assert said or not changed, (bit, damaged)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["points.jsonl", "run.json", "points.delivered"])
@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"\xff", b"[" * 100_000, b"\n\n\n"])
def test_whatever_a_file_has_become_the_rest_is_delivered(
    name: str, content: bytes, recorded: Path, mlflow_uri: str
) -> None:
    (recorded / name).write_bytes(content)
    deliver_folder(recorded, tracking_at(mlflow_uri))
    deliver_folder(recorded, tracking_at(mlflow_uri))
    expected = [] if name == "points.jsonl" else [(step, float(step)) for step in range(1, STEPS + 1)]
    assert in_mlflow(mlflow_uri) == expected
    assert not something_waits(recorded)


def test_a_damaged_copy_of_a_published_run_is_refused_or_restored_but_for_the_damaged_line(
    recorded: Path, tmp_path: Path, mlflow_uri: str
) -> None:
    dice = random.Random(SEED)
    publish_record(recorded, tmp_path / "published")
    for number in range(12):
        place = Path(shutil.copytree(tmp_path / "published", tmp_path / "copy"))
        file = place / ("points.jsonl" if number % 2 else "run.json")
        damaged = bytearray(file.read_bytes())
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged)
        try:
            restore_run(place, tracking_at(mlflow_uri))
        except AzNeoBertError as error:
            assert "\n" not in str(error)  # noqa: PT017
        shutil.rmtree(place)
    restore_run(tmp_path / "published", tracking_at(mlflow_uri))


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            for _ in range(1000):
                file.write(bytes(4096))
        except OSError:
            pass
    return filler


def test_a_full_disk_loses_no_point_and_each_reaches_mlflow_once(
    small_disk: Path, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = small_disk / "tracking"
    tracker = Tracker(folder, tracking_at(mlflow_uri), INFO)
    tracker.log(1, {"a": 1.0})
    filler = fill(small_disk)
    for step in range(2, 401):
        tracker.log(step, {"a": float(step)})
    tracker.deliver()
    assert [step for step, _ in in_mlflow(mlflow_uri)] == list(range(1, 401)), "delivered while the disk is full"
    [waiting] = tmp_path.glob("azneobert-points-*")
    filler.unlink()
    tracker.log(401, {"a": 401.0})
    assert not waiting.exists()
    tracker.finish("FINISHED")
    assert [point["step"] for point in read_points(folder)] == list(range(1, 402))
    assert in_mlflow(mlflow_uri) == [(step, float(step)) for step in range(1, 402)]
    assert not something_waits(folder)
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "points.jsonl: cannot be written (No space left on device)" in line] == said[:1]
    assert sum("can be written again" in line for line in said) == 1


def test_points_of_a_process_that_ended_on_a_full_disk_come_back_at_the_next_start(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = small_disk / "tracking"
    spool = Spool(folder)
    spool.append(1, {"a": 1.0})
    filler = fill(small_disk)
    for step in range(2, 301):
        spool.append(step, {"a": float(step)})
    del spool  # killed
    again = Spool(folder)  # still full
    assert again.append(301, {"a": 301.0}) == {"a": 301.0}
    assert again.append(300, {"a": 300.0}) == {}
    assert [p["step"] for batch, _ in again.undelivered() for p in batch] == list(range(1, 302))
    again.close()
    filler.unlink()
    Spool(folder).close()
    assert [point["step"] for point in read_points(folder)] == list(range(1, 302))
    assert not list(tmp_path.glob("azneobert-points-*"))


def test_the_database_on_a_full_disk_is_one_line_that_names_it(
    small_disk: Path, tmp_path: Path, empty_mlflow: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    shutil.copy(empty_mlflow, small_disk / "mlflow.db")
    fill(small_disk)
    tracker = Tracker(tmp_path / "run", tracking_at(f"sqlite:///{small_disk}/mlflow.db"), INFO)
    for step in range(1, 3000):
        tracker.log(step, {"a": float(step)})
    tracker.finish("FINISHED")
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said
    assert all("\n" not in line for line in said)
    assert f"{small_disk}/mlflow.db: cannot be written, " in said[0]
    assert "MLflow" not in said[0]
    (small_disk / "filler").unlink()
    assert deliver_folder(tmp_path / "run", tracking_at(f"sqlite:///{small_disk}/mlflow.db")) is not None
    assert len(in_mlflow(f"sqlite:///{small_disk}/mlflow.db")) == 2999


def test_a_run_goes_on_while_its_tracking_cannot_be_written(
    make_toy: Callable[[Overrides | None], Toy], small_disk: Path
) -> None:
    toy = make_toy({"runtime": {"checkpoint_every": 100}, "tracking": {"experiment": "tested"}})
    tracking = toy.run().tracking
    tracking.parent.mkdir(parents=True)
    tracking.symlink_to(small_disk)
    filler = fill(small_disk)
    assert toy.train() is True
    assert toy.losses() == {}
    filler.unlink()
    Spool(tracking).close()
    assert sorted(toy.losses()) == list(range(1, 11))
    from mlflow import MlflowClient

    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    [run] = client.search_runs([client.get_experiment_by_name("tested").experiment_id])
    delivered = client.get_metric_history(run.info.run_id, "train/loss")
    assert run.info.status == "FINISHED"
    assert {metric.step: metric.value for metric in delivered} == toy.losses()
