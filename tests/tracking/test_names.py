"""What MLflow calls the figures: the training loss stands first on its chart page, and has tokens for an axis too."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient
from stores_of_runs import INFO, history, runs_of, tracking_at

from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.names import LOSS, LOSS_BY_TOKENS, figures_in_mlflow, name_in_mlflow
from azneobert.tracking.record import read_record, update_record
from azneobert.tracking.tracker import Tracker

RECORDED = [
    *(f"train/{name}" for name in ("loss", "grad_norm", "lr", "tokens", "tokens_per_second", "mfu", "memory_gib")),
    *("train/loader_share", "eval/loss", "eval/accuracy", "eval/loss/cc100", "eval/accuracy/cc100"),
    *("eval/loss_by_length/1024-2047", "eval/accuracy_by_length/1024-2047"),
    *("guards/skipped_updates", "guards/spike_score"),
]


def test_the_training_loss_comes_first_by_section_and_by_name() -> None:
    point = {"step": 3, "values": dict.fromkeys(RECORDED, 8192.0)}
    names = [name for name, _, _ in figures_in_mlflow(point)]
    assert len(set(names)) == len(RECORDED) + 1
    # As the page sorts: sections, which are all before the last slash, and names within them.
    assert sorted(names, key=lambda name: (name.rpartition("/")[0], name))[:2] == [LOSS, LOSS_BY_TOKENS]
    assert {step for name, _, step in figures_in_mlflow(point) if name != LOSS_BY_TOKENS} == {3}
    assert (LOSS_BY_TOKENS, 8192.0, 8192) in figures_in_mlflow(point)


def test_what_is_not_trainings_keeps_its_name() -> None:
    assert name_in_mlflow("test/accuracy/pretrained") == "test/accuracy/pretrained"
    assert name_in_mlflow("evaluation") == "evaluation"


def test_a_loss_without_tokens_and_tokens_without_a_loss_are_no_curve_by_tokens() -> None:
    for name in ("train/loss", "train/tokens"):
        assert len(figures_in_mlflow({"step": 1, "values": {name: 1.0}})) == 1


def test_tokens_beyond_32_bits_are_a_step(mlflow_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    tracker.log(1, {"train/loss": 2.5, "train/tokens": 2.0e12})
    run_id = tracker.deliver()
    tracker.finish("FINISHED")
    assert history(mlflow_uri, run_id, LOSS_BY_TOKENS) == [(2 * 10**12, 2.5)]


def test_a_run_that_mlflow_has_under_former_names_gets_all_points_under_these_once(
    mlflow_uri: str, tmp_path: Path
) -> None:
    tracker = Tracker(tmp_path / "run", tracking_at(mlflow_uri), INFO)
    for step in (1, 2):
        tracker.log(step, {"train/loss": float(step), "eval/loss": float(step), "train/tokens": step * 100.0})
    tracker.finish("FINISHED")
    [run] = runs_of(mlflow_uri)
    # As before: the record says nothing of names, and MLflow has none of the new ones.
    client = MlflowClient(mlflow_uri)
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["naming"] == 1
    update_record(tmp_path / "run", naming=None, run_id=client.create_run(run.info.experiment_id).info.run_id)
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.run_id != run.info.run_id
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 2
    assert deliver_folder(tmp_path / "run", tracking_at(mlflow_uri)) == 0
    assert history(mlflow_uri, str(record.run_id), "validation/loss") == [(1, 1.0), (2, 2.0)]
    assert history(mlflow_uri, str(record.run_id), LOSS_BY_TOKENS) == [(100, 1.0), (200, 2.0)]
