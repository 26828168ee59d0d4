"""A tracking folder alone is enough: what waits in it arrives once, whatever became of MLflow or of the run there."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from refusals import refused
from stores_of_runs import DOWN, history, runs_of, tracking_at

from azneobert.errors import RegistryError
from azneobert.tracking import lock
from azneobert.tracking.delivery import deliver_folder, fresh_folder, something_waits
from azneobert.tracking.record import RunInfo, read_record, read_run_id
from azneobert.tracking.tracker import Tracker

INFO = RunInfo(
    "toy-phase1",
    params={"model": {"layers": 2}, "seed": 7},
    tags={"azneobert.phase": "phase1"},
    description="phase1 of recipe toy.",
    artifacts={"lineage.json": {"git_commit": "abc", "versions": {"torch": "2"}}},
    identity={"seed": 7},
)
POINTS = [(1, 1.0), (2, 2.0), (3, 3.0)]


def tracked(folder: Path, uri: str, status: str = "FINISHED", steps: range = range(1, 4), info: RunInfo = INFO) -> None:
    tracker = Tracker(folder, tracking_at(uri), info)
    for step in steps:
        tracker.log(step, {"a": float(step)})
    tracker.finish(status)


def test_a_run_that_mlflow_was_away_from_is_delivered_whole_with_its_own_times(mlflow_uri: str, tmp_path: Path) -> None:
    began = time.time_ns() // 1_000_000
    tracked(tmp_path / "run", DOWN, "KILLED")
    ended = time.time_ns() // 1_000_000
    assert read_run_id(tmp_path / "run") is None
    assert something_waits(tmp_path / "run")
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 3
    [run] = runs_of(mlflow_uri)
    assert run.info.run_id == read_run_id(tmp_path / "run")
    assert (run.info.run_name, run.info.status) == ("toy-phase1", "KILLED")
    assert began <= run.info.start_time <= run.info.end_time <= ended
    assert run.data.params == {"model.layers": "2", "seed": "7"}
    assert run.data.tags["azneobert.phase"] == "phase1"
    assert run.data.tags["mlflow.note.content"] == "phase1 of recipe toy."
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= run.data.tags.keys()
    lineage = MlflowClient(mlflow_uri).download_artifacts(run.info.run_id, "lineage.json")
    assert json.loads(Path(lineage).read_text()) == INFO.artifacts["lineage.json"]
    assert history(mlflow_uri, run.info.run_id, "a") == POINTS
    assert not something_waits(tmp_path / "run")
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 0
    assert [found.info.end_time for found in runs_of(mlflow_uri)] == [run.info.end_time]
    assert history(mlflow_uri, run.info.run_id, "a") == POINTS


def test_only_the_end_was_missed(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    tracker.log(1, {"a": 1.0})
    tracker.deliver()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DOWN)
    tracker.log(2, {"a": 2.0})
    tracker.finish("FINISHED")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    [run] = runs_of(mlflow_uri)
    assert (run.info.status, run.info.end_time) == ("RUNNING", None)
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.status == "FINISHED"
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 1
    [run] = runs_of(mlflow_uri)
    assert (run.info.status, run.info.end_time) == ("FINISHED", record.ended_ms)
    assert history(mlflow_uri, run.info.run_id, "a") == POINTS[:2]


@pytest.mark.parametrize("how", ["deleted", "unknown"])
@pytest.mark.parametrize("who", ["deliver", "tracker"])
def test_a_run_that_mlflow_has_no_more_is_made_anew_with_every_point(
    how: str, who: str, mlflow_uri: str, empty_mlflow: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    tracked(folder, mlflow_uri)
    former = read_run_id(folder)
    if how == "deleted":
        MlflowClient(mlflow_uri).delete_run(former)
    else:
        mlflow_uri = f"sqlite:///{tmp_path}/other.db"
        shutil.copy(empty_mlflow, tmp_path / "other.db")
    if who == "deliver":
        assert deliver_folder(folder, tracking_at(mlflow_uri)) == 3
    else:
        tracked(folder, mlflow_uri, steps=range(3, 4))
    [run] = runs_of(mlflow_uri)
    assert former != run.info.run_id == read_run_id(folder)
    assert history(mlflow_uri, run.info.run_id, "a") == POINTS
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "7"


def test_a_run_that_is_deleted_while_it_goes_on_is_made_anew(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    tracker.log(1, {"a": 1.0})
    MlflowClient(mlflow_uri).delete_run(tracker.deliver())
    tracker.log(2, {"a": 2.0})
    tracker.finish("FINISHED")
    [run] = runs_of(mlflow_uri)
    assert run.info.run_id == tracker.run_id
    assert history(mlflow_uri, run.info.run_id, "a") == POINTS[:2]


def test_a_deleted_experiment_is_one_line_that_says_how_to_bring_it_back(mlflow_uri: str, tmp_path: Path) -> None:
    tracked(tmp_path / "run", mlflow_uri)
    client = MlflowClient(mlflow_uri)
    client.delete_experiment(client.get_experiment_by_name("tested").experiment_id)
    with refused(RegistryError, mlflow_uri, "experiment tested is deleted", "mlflow experiments restore"):
        deliver_folder(tmp_path / "run", tracking_at(mlflow_uri))


def test_a_folder_that_a_live_run_delivers_from_is_left_alone(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(DOWN), INFO)
    tracker.log(1, {"a": 1.0})
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) is None
    assert runs_of(mlflow_uri) == []
    tracker.finish("FINISHED")
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 1


def test_a_resumed_run_is_running_again_and_gets_a_new_end_and_what_its_description_gained(
    mlflow_uri: str, tmp_path: Path
) -> None:
    tracked(tmp_path / "run", mlflow_uri, "KILLED")
    [first] = runs_of(mlflow_uri)
    info = RunInfo("toy-phase1", {"seed": 8, "more": 1}, {"azneobert.phase": "again"}, "resumed")
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), info)
    assert runs_of(mlflow_uri)[0].info.status == "RUNNING"
    tracker.finish("FINISHED")
    [run] = runs_of(mlflow_uri)
    assert run.info.status == "FINISHED"
    assert run.info.start_time == first.info.start_time
    assert run.info.end_time > first.info.end_time
    assert run.data.params == {"model.layers": "2", "seed": "7", "more": "1"}  # MLflow's parameters never change
    assert (run.data.tags["azneobert.phase"], run.data.tags["mlflow.note.content"]) == ("again", "resumed")


def test_a_killed_run_keeps_what_it_needs_and_its_identity(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(DOWN), INFO)
    tracker.log(1, {"a": 1.0})
    shutil.copytree(tmp_path / "run", tmp_path / "killed")  # what a kill would leave
    tracker.finish("FINISHED")
    record = read_record(tmp_path / "killed")
    assert record is not None
    assert (record.info, record.status, record.ended_ms) == (INFO, "RUNNING", None)
    assert deliver_folder(tmp_path / "killed", tracking_at(mlflow_uri)) == 1
    [run] = runs_of(mlflow_uri)
    assert (run.info.run_name, run.info.status) == ("toy-phase1", "RUNNING")


DAMAGED = [b"", b"{", b"\xff\xfe", b"null", b"[]", b"{}", b'{"run_id": 7}', b'{"run_id": "a", "tags": 3}', b"[" * 9999]


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("who", ["deliver", "tracker"])
def test_a_damaged_record_is_set_aside_in_one_line_and_every_point_arrives(
    content: bytes, who: str, mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    tracked(folder, mlflow_uri)
    former = read_run_id(folder)
    (folder / "run.json").write_bytes(content)
    assert read_run_id(folder) is None
    if who == "deliver":
        assert deliver_folder(folder, tracking_at(mlflow_uri)) == 3
    else:
        tracked(folder, mlflow_uri, steps=range(3, 4))
    assert [copy.read_bytes() for copy in folder.glob("run.json.damaged-*")] == [content]
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith("azneobert")]
    assert f"{folder}/run.json" in said
    assert "\n" not in said
    run_id = read_run_id(folder)
    assert run_id != former
    assert run_id is not None
    assert history(mlflow_uri, run_id, "a") == POINTS


def test_a_folder_of_before_goes_on_under_its_run(mlflow_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(mlflow_uri)
    run_id = client.create_run(client.create_experiment("tested"), run_name="older").info.run_id
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"run_id": run_id, "described": True}))
    (tmp_path / "run" / "points.jsonl").write_text('{"step": 1, "time_ms": 5, "values": {"a": 1.0}}\n')
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 1
    assert [run.info.status for run in runs_of(mlflow_uri)] == ["RUNNING"], "how it ended is not known"
    tracked(tmp_path / "run", mlflow_uri, steps=range(1, 4))
    [run] = runs_of(mlflow_uri)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert history(mlflow_uri, run_id, "a") == POINTS


def test_a_fresh_folder_loses_no_point_of_the_former_run(mlflow_uri: str, tmp_path: Path) -> None:
    run = tmp_path / "finetune"
    assert fresh_folder(run) == run
    tracked(run / "tracking", mlflow_uri)
    fresh_folder(run)
    assert list(tmp_path.glob("finetune*")) == []
    for _ in range(2):
        tracked(run / "tracking", DOWN)
        fresh_folder(run)
    aside = list(tmp_path.glob("finetune*"))
    assert len(aside) == 2
    assert run not in aside
    assert [deliver_folder(folder / "tracking", tracking_at(mlflow_uri)) for folder in aside] == [3, 3]


def test_a_delivery_that_is_stopped_holds_a_run_up_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "_SECONDS", 0.3)
    with lock.folder_if_free(tmp_path) as free:
        assert free
        lock.hold_folder(tmp_path).release()
    assert "waiting for it" in caplog.text
    assert "going on beside it" in caplog.text
