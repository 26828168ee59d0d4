"""Much that waits is sent by a process of its own, each point once, whatever becomes of that process."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from refusals import refused
from stores_of_runs import DOWN, INFO, history, runs_of, tracking_at

from azneobert.errors import RegistryError
from azneobert.tracking import backlog
from azneobert.tracking.delivery import deliver, deliver_folder
from azneobert.tracking.record import open_record
from azneobert.tracking.spool import Spool
from azneobert.tracking.tracker import Tracker

STEPS = 4000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which points have waited for an MLflow that was away; half of them were overtaken by a rewind."""
    folder = tmp_path_factory.mktemp("recorded")
    open_record(folder, INFO)
    spool = Spool(folder)
    values = {f"train/figure{number}": 1.0 for number in range(6)}
    for step in range(1, STEPS + 1):
        spool.append(step, values | {"train/loss": float(step), "train/tokens": step * 4096.0})
    spool.begin_segment(STEPS // 2)
    for step in range(STEPS // 2 + 1, STEPS + 1):
        spool.append(step, {"train/loss": -float(step)})
    spool.close()
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def expected() -> list[tuple[int, float]]:
    half = STEPS // 2
    return [(s, float(s)) for s in range(1, half + 1)] + [(s, -float(s)) for s in range(half + 1, STEPS + 1)]


def test_a_backlog_reaches_mlflow_once_and_no_thread_of_the_training_sends_it(
    folder: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: list[int] = []
    monkeypatch.setattr("azneobert.tracking.delivery.send_points", lambda *sent: own.append(len(sent[2])))
    tracker = Tracker(folder, tracking_at(mlflow_uri), INFO, segment=1, from_step=STEPS // 2)
    tracker.finish("FINISHED")
    [run] = runs_of(mlflow_uri)
    assert history(mlflow_uri, run.info.run_id, "train/loss") == expected()
    by_tokens = history(mlflow_uri, run.info.run_id, "train/loss_by_tokens")
    assert by_tokens == [(step * 4096, float(step)) for step in range(1, STEPS // 2 + 1)]
    assert own == []
    assert deliver_folder(folder, tracking_at(mlflow_uri)) == 0


@pytest.mark.long
def test_a_process_that_is_killed_is_one_line_and_the_next_delivery_goes_on(
    folder: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = backlog.subprocess.Popen
    monkeypatch.setattr(backlog.subprocess, "Popen", lambda *a, **k: _killed_after_a_batch(popen(*a, **k)))
    spool = Spool(folder)
    with refused(RegistryError, f"MLflow at {mlflow_uri}", "exit code -9"):
        deliver(folder, spool, tracking_at(mlflow_uri), beside_training=True)
    monkeypatch.undo()
    done = spool.backlog()["start"]
    assert done > 0, "what it had sent counts"
    spool.close()
    spool = Spool(folder)
    deliver(folder, spool, tracking_at(mlflow_uri), beside_training=True)
    spool.close()
    [run] = runs_of(mlflow_uri)
    assert history(mlflow_uri, run.info.run_id, "train/loss") == expected()


def _killed_after_a_batch(process):
    lines = process.stdout

    def first_and_kill():
        yield lines.readline()
        os.kill(process.pid, signal.SIGKILL)

    process.stdout = first_and_kill()
    return process


def test_a_store_that_does_not_answer_is_said_as_by_the_training_itself(folder: Path) -> None:
    spool = Spool(folder)
    with refused(RegistryError, f"MLflow at {DOWN}: "):
        list(backlog.sent_apart(tracking_at(DOWN), "a" * 32, spool))
    assert spool.backlog()["start"] == 0
    spool.close()
