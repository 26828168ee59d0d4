"""The monitor runs beside a run, comes back after an outage, ends before the run does, and harms nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.system_metrics import system_metrics_monitor
from stores_of_runs import INFO, runs_of, tracking_at

from azneobert.tracking.system_metrics import SystemMetrics
from azneobert.tracking.tracker import Tracker


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def cpu_steps(uri: str, run_id: str) -> list[int]:
    return [m.step for m in MlflowClient(uri).get_metric_history(run_id, "system/cpu_utilization_percentage")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setattr("azneobert.tracking.tracker._SECONDS_BETWEEN_DELIVERIES", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_tracker_records_them_to_the_end_and_leaves_no_thread(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO, system_metrics=True)
    run_id = tracker.deliver()
    wait_until(lambda: len(cpu_steps(mlflow_uri, run_id)) > 1)
    tracker.finish("FINISHED")
    assert monitors() == []
    assert [run.info.status for run in runs_of(mlflow_uri)] == ["FINISHED"]


@pytest.mark.usefixtures("quick")
def test_a_monitor_that_has_ended_is_started_again_after_its_last_step(mlflow_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(mlflow_uri)
    run_id = client.create_run(client.create_experiment("tested")).info.run_id
    metrics = SystemMetrics(mlflow_uri)
    metrics.keep(run_id)
    wait_until(lambda: len(cpu_steps(mlflow_uri, run_id)) > 1)
    client.set_terminated(run_id)  # it ends by itself, as when MLflow does not answer
    wait_until(lambda: monitors() == [])
    steps = len(cpu_steps(mlflow_uri, run_id))
    client.update_run(run_id, status="RUNNING")
    metrics.keep(run_id)
    metrics.keep(run_id)
    assert len(monitors()) == 1
    wait_until(lambda: len(cpu_steps(mlflow_uri, run_id)) > steps)
    metrics.stop()
    assert monitors() == []
    assert len(set(cpu_steps(mlflow_uri, run_id))) == len(cpu_steps(mlflow_uri, run_id))


@pytest.mark.usefixtures("quick")
def test_a_monitor_that_cannot_start_harms_nothing(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    def broken(*_: object, **__: object) -> None:
        tried.set()
        raise RuntimeError("no driver")

    monkeypatch.setattr(system_metrics_monitor, "SystemMetricsMonitor", broken)
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO, system_metrics=True)
    assert tried.wait(30)
    tracker.log(1, {"a": 1.0})
    tracker.finish("FINISHED")
    [run] = runs_of(mlflow_uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"a": 1.0}


def test_no_one_is_watched_unless_asked(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    assert monitors() == []
    tracker.finish("FINISHED")
