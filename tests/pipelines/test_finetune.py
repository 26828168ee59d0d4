"""The points of a fine-tuning wait where they last until MLflow takes them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from mlflow import MlflowClient
from toy import toy_recipe

from azneobert.finetuning.tasks import Task
from azneobert.layout import Layout
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.points import read_points
from azneobert.tracking.record import read_run_id

ROOT = Path(__file__).parents[2]


def test_each_run_of_the_stage_is_a_run_in_mlflow_also_when_that_was_away(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    finetune = importlib.import_module("finetune")
    recipe = toy_recipe({"tracking": {"mlflow_uri": mlflow_uri}, "finetuning": {"seeds": [1, 2]}})
    layout = Layout("toy")
    for accuracy in (0.25, 0.5):
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
            with finetune.recorded(recipe, layout, "punctuation", "models:/toybert/2") as tracker:
                finetune.log_scores(tracker, {"pretrained": [{"accuracy": accuracy}] * 2})
    folders = layout.tracking_folders()
    assert len(folders) == 2
    found = {}
    for folder in folders:
        assert deliver_folder(folder, recipe.tracking) == 2
        run = MlflowClient(mlflow_uri).get_run(str(read_run_id(folder)))
        assert (run.info.run_name, run.info.status) == ("toy-finetune-punctuation", "FINISHED")
        found[folder.parent.name.split(".")[0], run.data.metrics["test/accuracy/pretrained"]] = folder
    assert found.keys() == {("finetune-punctuation", 0.25), ("finetune-punctuation", 0.5)}
    with finetune.recorded(recipe, layout, "punctuation", "models:/toybert/2") as tracker:
        finetune.log_scores(tracker, {"pretrained": [{"accuracy": 0.75}] * 2})
    assert len(layout.tracking_folders()) == 2, "a run that MLflow has makes room for the next"
    published = read_points(layout.finetuned("punctuation"))
    assert [point["values"]["test/accuracy/pretrained"] for point in published] == [0.75, 0.75]


@pytest.mark.parametrize(("test", "expected"), [([0, 1, 0, 1], 0.5), ([0, 1, 1, 1], 0.75), ([2], 1.0)])
def test_chance_is_the_share_of_the_most_frequent_label_of_the_test(
    monkeypatch: pytest.MonkeyPatch, test: list[int], expected: float
) -> None:
    monkeypatch.syspath_prepend(ROOT / "pipelines")
    finetune = importlib.import_module("finetune")
    splits = {"train": [("mətn", 0)], "validation": [("mətn", 0)], "test": [("mətn", label) for label in test]}
    assert finetune.chance(Task("toy", ["a", "b", "c"], splits)) == expected
