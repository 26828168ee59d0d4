"""Each point reaches MLflow exactly once, whatever happens on the way, and nothing on the way stops a training."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from refusals import refused
from stores_of_runs import DOWN, INFO, history, runs_of, tracking_at
from toy import run_ranks

from azneobert.errors import RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.mlflow_store import mlflow_client
from azneobert.tracking import tracker as tracker_module
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.points import read_points
from azneobert.tracking.record import RunInfo
from azneobert.tracking.tracker import Tracker

# MLflow


def test_a_run_has_its_name_parameters_tags_points_and_end(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    tracker.log(1, {"train/loss": 5.0})
    tracker.log(2, {"train/loss": 4.0, "eval/loss/news": 3.0})
    tracker.finish("FINISHED")
    [run] = runs_of(mlflow_uri)
    assert run.info.run_id == tracker.run_id
    assert (run.info.run_name, run.info.status) == ("toy-phase1", "FINISHED")
    assert run.data.params == {"model.layers": "2", "seed": "7"}
    assert run.data.tags["azneobert.phase"] == "phase1"
    assert history(mlflow_uri, run.info.run_id, "train/loss") == [(1, 5.0), (2, 4.0)]
    assert history(mlflow_uri, run.info.run_id, "validation/loss/news") == [(2, 3.0)]


def test_points_are_delivered_while_the_run_goes_on(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azneobert.tracking.tracker._SECONDS_BETWEEN_DELIVERIES", 0.1)
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    assert tracker.run_id is not None
    tracker.log(1, {"train/loss": 5.0})
    deadline = time.monotonic() + 30
    while history(mlflow_uri, tracker.run_id, "train/loss") != [(1, 5.0)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert runs_of(mlflow_uri)[0].info.status == "RUNNING"
    tracker.finish("KILLED")
    assert runs_of(mlflow_uri)[0].info.status == "KILLED"


def test_a_tracker_on_the_same_folder_continues_the_same_run(mlflow_uri: str, tmp_path: Path) -> None:
    first = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": float(step)})
    first.finish("KILLED")
    second = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    assert runs_of(mlflow_uri)[0].info.status == "RUNNING"
    for step in (2, 3, 4):  # the steps since its checkpoint come again
        second.log(step, {"train/loss": float(step)})
    second.finish("FINISHED")
    [run] = runs_of(mlflow_uri)
    assert run.info.status == "FINISHED"
    assert history(mlflow_uri, run.info.run_id, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_a_new_segment_records_its_steps_anew_in_the_same_run(mlflow_uri: str, tmp_path: Path) -> None:
    first = Tracker(tmp_path / "run", tracking_at(DOWN), INFO)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": 1.0})
    first.finish("KILLED")
    second = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO, segment=1, from_step=2)
    for step in (3, 4):
        second.log(step, {"train/loss": 2.0})
    second.finish("FINISHED")
    stands = [(p["segment"], p["step"]) for p in read_points(tmp_path / "run")]
    assert stands == [(0, 1), (0, 2), (1, 3), (1, 4)]
    [run] = runs_of(mlflow_uri)
    assert history(mlflow_uri, run.info.run_id, "train/loss") == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_points_whose_delivery_was_not_noted_arrive_once_all_the_same(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    for step in range(1, 6):
        tracker.log(step, {"train/loss": float(step), "train/lr": 0.5})
    run_id = tracker.deliver()
    (tmp_path / "run" / "points.delivered").unlink()  # killed between MLflow's answer and the note of it
    tracker.log(6, {"train/loss": 6.0, "train/lr": 0.5})
    tracker.finish("FINISHED")
    assert history(mlflow_uri, run_id, "train/loss") == [(step, float(step)) for step in range(1, 7)]
    assert len(history(mlflow_uri, run_id, "train/optimizer/lr")) == 6


def test_a_loss_that_is_not_a_number_does_not_hold_up_the_others(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    for step, loss in enumerate([1.0, float("nan"), float("inf"), 2.0], start=1):
        tracker.log(step, {"train/loss": loss})
    tracker.finish("FAILED")
    [run] = runs_of(mlflow_uri)
    found = history(mlflow_uri, run.info.run_id, "train/loss")
    assert [step for step, _ in found] == [1, 2, 3, 4]
    assert found[1][1] != found[1][1]
    assert (found[0][1], found[3][1]) == (1.0, 2.0)


def log_some(folder: Path, uri: str, steps: range, status: str) -> tuple[str | None, float, float]:
    began = time.monotonic()
    tracker = Tracker(folder, tracking_at(uri), INFO)
    started = time.monotonic()
    for step in steps:
        tracker.log(step, {"train/loss": float(step), "eval/loss": 1.0})
    logged = time.monotonic()
    tracker.finish(status)
    return tracker.run_id, logged - started, time.monotonic() - began


def test_mlflow_that_is_down_holds_nothing_up_and_gets_every_point_later_exactly_once(
    mlflow_uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    [(run_id, logging, total)] = run_ranks(log_some, folder, DOWN, range(1, 2001), "KILLED", folder=tmp_path)
    assert run_id is None
    assert logging < 5  # 2,000 steps; a single wait for the server would be more
    assert total < 30
    assert len(read_points(folder)) == 2000
    # The stage runs again, with MLflow up, and repeats the steps since its checkpoint.
    [(run_id, _, _)] = run_ranks(log_some, folder, mlflow_uri, range(1991, 2006), "FINISHED", folder=tmp_path)
    assert run_id is not None
    assert [run.info.run_id for run in runs_of(mlflow_uri)] == [run_id]
    for key in ("train/loss", "validation/loss"):
        assert [step for step, _ in history(mlflow_uri, run_id, key)] == list(range(1, 2006))
    [(again, _, _)] = run_ranks(log_some, folder, mlflow_uri, range(2000, 2006), "FINISHED", folder=tmp_path)
    assert again == run_id
    assert len(history(mlflow_uri, run_id, "train/loss")) == 2005


def test_mlflow_that_is_down_is_one_warning_that_says_where_the_points_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mlflow_uri: str
) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(DOWN), INFO)
    tracker.log(1, {"train/loss": 1.0})
    with refused(RegistryError, "MLflow at http://127.0.0.1:9"):
        tracker.deliver()
    tracker.finish("FINISHED")
    warnings = [r for r in caplog.records if r.name == "azneobert.tracking.tracker"]
    assert 1 <= len(warnings) <= 2
    for warning in warnings:
        assert "\n" not in warning.getMessage()
        assert str(tmp_path / "run") in warning.getMessage()


def hardly_patient(folder: Path, uri: str) -> tuple[float, float, float, list[str]]:
    """How long a run waits at its start, for its points and at its end, with 1 s and 2 s to wait; what it says."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "30"
    tracker_module._SECONDS_OF_THE_START, tracker_module._SECONDS_OF_THE_END = 1.0, 2.0
    said: list[str] = []
    tracker_module.log.warning = lambda words, *values: said.append(words % values)  # type: ignore[method-assign]
    mlflow_client(tracking_at(f"sqlite:///{folder.parent}/other.db"))  # what is slow to import
    times = [time.monotonic()]
    tracker = Tracker(folder, tracking_at(uri), INFO, system_metrics=True)
    times.append(time.monotonic())
    for step in range(1, 501):
        tracker.log(step, {"train/loss": 1.0})
    times.append(time.monotonic())
    tracker.finish("FINISHED")
    times.append(time.monotonic())
    start, points, end = (after - before for before, after in pairwise(times))
    return start, points, end, said


def test_an_mlflow_that_never_answers_is_waited_for_within_bounds(
    silent_server: str, mlflow_uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    [(start, points, end, said)] = run_ranks(hardly_patient, folder, silent_server, folder=tmp_path)
    assert start < 5
    assert points < 2
    assert end < 6
    assert [line.split("; ")[0].removeprefix(f"MLflow at {silent_server}: ") for line in said] == [
        "no answer in 1 s",
        "has not taken all in 2 s",
    ]
    assert deliver_folder(folder, tracking_at(mlflow_uri)) == 500
    [run] = runs_of(mlflow_uri)
    assert run.info.status == "FINISHED"


def test_a_database_that_another_program_has_locked_is_waited_for_within_bounds(
    mlflow_uri: str, tmp_path: Path
) -> None:
    folder, database = tmp_path / "run", mlflow_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        [(start, points, end, said)] = run_ranks(hardly_patient, folder, mlflow_uri, folder=tmp_path)
        other.execute("ROLLBACK")
    assert start < 5
    assert points < 2
    assert end < 6
    assert len(said) == 2
    assert deliver_folder(folder, tracking_at(mlflow_uri)) == 500


def test_deliveries_to_an_mlflow_that_is_away_become_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "_SECONDS_BETWEEN_DELIVERIES", 0.1)
    tries: list[float] = []

    def away(*_: object, **__: object) -> int:
        tries.append(time.monotonic())
        raise RegistryError("MLflow is away")

    monkeypatch.setattr(tracker_module, "deliver", away)
    tracker = Tracker(tmp_path / "run", tracking_at(DOWN), INFO)
    time.sleep(2.0)
    tracker.finish("FINISHED")
    assert 3 <= len(tries) <= 7  # after 0.1 s, 0.2 s, 0.4 s, ..., and at the end
    assert tries[3] - tries[2] > tries[2] - tries[1]


def test_the_end_reaches_mlflow_from_a_disk_that_is_full(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    tracker.log(1, {"train/loss": 5.0})

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    tracker.finish("FAILED")
    [run] = runs_of(mlflow_uri)
    assert run.info.status == "FAILED"
    assert history(mlflow_uri, run.info.run_id, "train/loss") == [(1, 5.0)]


def test_two_stores_in_one_process_do_not_get_mixed_up(mlflow_uri: str, tmp_path: Path) -> None:
    down, up = tracking_at(DOWN), tracking_at(mlflow_uri)
    mlflow_client(down)
    assert tracking_uri(up) == mlflow_uri
    tracker = Tracker(tmp_path / "run", up, INFO)
    tracker.finish("FINISHED")
    assert tracker.run_id is not None


def test_the_environments_store_goes_before_the_recipes(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    tracker = Tracker(tmp_path / "run", tracking_at(DOWN), INFO)
    tracker.log(1, {"train/loss": 1.0})
    tracker.finish("FINISHED")
    assert [run.info.run_id for run in runs_of(mlflow_uri)] == [tracker.run_id]


def test_a_run_that_mlflow_will_not_take_the_description_of_is_still_made_only_once(
    mlflow_uri: str, tmp_path: Path
) -> None:
    # MLflow takes the run and refuses this tag, as a server does that goes down between two calls.
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), RunInfo("toy", {}, {"a|b": "c"}))
    for _ in range(2):
        with refused(RegistryError, "MLflow at"):
            tracker.deliver()
    tracker.finish("FAILED")
    assert len(runs_of(mlflow_uri)) == 1


# wandb


def wandb_run(folder: Path, uri: str, steps: range) -> str | None:
    tracker = Tracker(folder, tracking_at(uri, wandb="offline", wandb_project="toy"), INFO)
    for step in steps:
        tracker.log(step, {"train/loss": float(step), "eval/loss/news": 0.5})
    tracker.finish("FINISHED")
    return tracker.run_id


def wandb_history(folder: Path) -> list[dict[str, float]]:
    """The rows in wandb's own files: a header of 7 bytes, then LevelDB's log format around protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content = file.read_bytes()
        position, record = 7, b""
        while position + 7 <= len(content):
            left = 32768 - position % 32768  # no header crosses the border of a block
            if left < 7:
                position += left
                continue
            size, kind = struct.unpack("<HB", content[position + 4 : position + 7])
            chunk = content[position + 7 : position + 7 + size]
            record = record + chunk if kind in (3, 4) else chunk  # 1 whole, 2 first, 3 middle, 4 last
            position += 7 + size
            if kind in (1, 4) and (row := Record.FromString(record).history.item):
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row})
    return rows


@pytest.mark.long
def test_wandb_offline_gets_the_same_keys_at_the_same_steps_each_once(mlflow_uri: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'azneobert[wandb]'")
    folder = tmp_path / "run"
    [run_id] = run_ranks(wandb_run, folder, mlflow_uri, range(1, 4), folder=tmp_path)
    rows = wandb_history(folder)
    assert [(row["_step"], row["train/loss"], row["eval/loss/news"]) for row in rows] == [
        (1, 1.0, 0.5),
        (2, 2.0, 0.5),
        (3, 3.0, 0.5),
    ]
    assert [step for step, _ in history(mlflow_uri, run_id, "train/loss")] == [1, 2, 3]
    run_ranks(wandb_run, folder, mlflow_uri, range(3, 6), folder=tmp_path)  # a resume, one step again
    assert [row["_step"] for row in wandb_history(folder)] == [1, 2, 3, 4, 5]
    names = {file.name for file in folder.glob("wandb/offline-run-*/*.wandb")}
    assert names == {f"run-{(folder / 'wandb_id').read_text()}.wandb"}, "a resumed run is the same wandb run"


def wandb_without_a_key(folder: Path, uri: str) -> str | None:
    os.environ |= {"HOME": str(folder), "NETRC": str(folder / "netrc")}
    os.environ.pop("WANDB_API_KEY", None)
    tracker = Tracker(folder, tracking_at(uri, wandb="online"), INFO)
    tracker.log(1, {"train/loss": 1.0})
    tracker.finish("FINISHED")
    return tracker.run_id


def test_wandb_that_cannot_start_does_not_stop_a_run(mlflow_uri: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install 'azneobert[wandb]'")
    [run_id] = run_ranks(wandb_without_a_key, tmp_path / "run", mlflow_uri, folder=tmp_path)
    assert history(mlflow_uri, run_id, "train/loss") == [(1, 1.0)]


def test_where_mlflow_is_not_installed_the_points_wait_for_a_machine_that_has_it(
    mlflow_uri: str, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "sys.modules['mlflow'] = None  # what an import of it then says is what it says where there is none\n"
        "from pathlib import Path\n"
        "from azneobert.recipe import Tracking\n"
        "from azneobert.tracking.record import RunInfo\n"
        "from azneobert.tracking.tracker import Tracker\n"
        f"tracking = Tracking.model_validate_json({tracking_at(mlflow_uri).model_dump_json()!r})\n"
        f"tracker = Tracker(Path({str(tmp_path / 'run')!r}), tracking, RunInfo(name='bare', params={{}}, tags={{}}))\n"
        "tracker.log(1, {'train/loss': 5.0})\n"
        "tracker.finish('FINISHED')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "MLflow is not installed here; use `make setup`, or a machine that has it" in done.stderr
    assert "azneobert runs deliver" in done.stderr
    assert runs_of(mlflow_uri) == []
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 1
    [run] = runs_of(mlflow_uri)
    assert history(mlflow_uri, run.info.run_id, "train/loss") == [(1, 5.0)]
