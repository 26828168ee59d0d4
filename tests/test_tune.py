"""Each fine-tuning is a run in MLflow, also where MLflow was away meanwhile, and its best model is registered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import learnable
import pytest
from mlflow import MlflowClient
from refusals import refused

from azneobert.encoders import open_encoder
from azneobert.errors import DataError, RegistryError, TrainingError
from azneobert.finetuning.task import Example, Task
from azneobert.layout import Layout
from azneobert.recipe import Tracking
from azneobert.registry.versions import find_version, list_versions
from azneobert.task_settings import TaskSettings
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.points import read_points
from azneobert.tracking.record import read_run_id
from azneobert.tune import Tuning, said_seeds, tune

pytestmark = pytest.mark.long  # whole commands, or a model that is trained for them

DOWN = "http://127.0.0.1:9"  # nobody listens there
SETTINGS = learnable.LEARNING.model_copy(update={"epochs": 2, "seeds": (1, 2)})
RUN = "toy_task models:/toybert/2 seeds 1, 2"


@pytest.fixture
def make_tuning(encoder: Path, mlflow_uri: str) -> Callable[..., Tuning]:
    """Makes a fine-tuning as the stage does it, in the current folder."""
    layout, task = Layout("toy"), learnable.classification({"train": 24, "validation": 12, "test": 12})
    with open_encoder(str(encoder), None) as opened:
        tuning = Tuning(
            encoder=replace(opened, name="models:/toybert/2"),
            called="models:/toybert@phase2",
            task=task,
            task_settings=TaskSettings(),
            settings=SETTINGS,
            tracking=Tracking(mlflow_uri=mlflow_uri, experiment="toy", wandb="off"),
            folder=layout.finetuned("toy_task"),
            running=layout.running("finetune-toy_task").tracking,
            model="toybert-toy_task",
            tags={"azneobert.recipe": "toy"},
        )
    return lambda **changes: replace(tuning, **changes)


def test_a_run_has_the_scores_the_curves_and_the_files(make_tuning) -> None:
    tuning, said = make_tuning(), list[str]()
    tuning.task.notes[:] = ["2 of 24 training examples say the same as one before"]
    report, version = tune(tuning, said.append)
    assert said[0] == "toy_task: 2 of 24 training examples say the same as one before"
    assert [line.split(": ")[1] for line in said[1:]] == [
        *(f"{weights} weights, seed {seed}" for weights in ("pretrained", "random") for seed in (1, 2))
    ]
    client = MlflowClient(tuning.tracking.mlflow_uri)
    run = client.get_run(str(read_run_id(tuning.running)))
    assert (run.info.run_name, run.info.status, version.run_id) == (RUN, "FINISHED", run.info.run_id)
    tags = {"model": "models:/toybert/2", "task": "toy_task", "data_sha256": tuning.task.sha256, "recipe": "toy"}
    assert {name: run.data.tags.get(f"azneobert.{name}") for name in tags} == tags
    assert run.data.params["finetuning.learning_rate"] == "0.003"
    by_seed = client.get_metric_history(run.info.run_id, "test/macro_f1/pretrained")
    assert [round(m.value, 4) for m in by_seed] == report["pretrained"]["macro_f1"]["by_seed"]
    curve = client.get_metric_history(run.info.run_id, "validation_macro_f1/pretrained_seed_2")
    assert [m.step for m in curve] == [epoch["number"] for epoch in report["curves"]["pretrained"]["2"]]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.json", "mistakes.csv", "learning_curve.png", "confusion.png"} <= files
    assert find_version("models:/toybert-toy_task@champion", tuning.tracking).number == version.number
    assert (report["encoder"], version.tags["azneobert.from"]) == ("models:/toybert@phase2", "models:/toybert/2")
    assert read_points(tuning.folder) == read_points(tuning.running), "what DVC carries elsewhere"


@pytest.mark.long
def test_while_mlflow_is_away_the_points_wait_and_the_next_run_registers(
    make_tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning, layout = make_tuning(), Layout("toy")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", DOWN)
        with refused(RegistryError, DOWN, "not registered", str(tuning.folder / "model"), "start again"):
            tune(tuning, lambda line: None)
    assert (tuning.folder / "model" / "task.json").is_file()
    assert (tuning.folder / "report.json").is_file()
    [folder] = layout.tracking_folders()
    waiting = read_points(folder)
    assert len(waiting) > 4
    shutil.rmtree(tuning.folder)  # as DVC does before it runs a stage again
    _, version = tune(tuning, lambda line: None)
    assert version.number == 1
    aside, latest = sorted(layout.tracking_folders(), key=lambda found: found == tuning.running)
    assert latest == tuning.running
    assert deliver_folder(aside, tuning.tracking) == len(waiting)
    client = MlflowClient(tuning.tracking.mlflow_uri)
    runs = [client.get_run(str(read_run_id(found))) for found in (aside, latest)]
    assert [(run.info.run_name, run.info.status) for run in runs] == [(RUN, "FINISHED")] * 2
    assert runs[0].info.run_id != runs[1].info.run_id
    _, again = tune(tuning, lambda line: None)
    assert again.number == version.number, "the same content is the same version"
    assert len(layout.tracking_folders()) == 2, "a run that MLflow has makes room for the next"


def test_a_fine_tuning_that_fails_is_a_failed_run(make_tuning) -> None:
    tuning = make_tuning(settings=SETTINGS.model_copy(update={"learning_rate": 1e30}))
    with refused(TrainingError, "seed 1", "not finite"):
        tune(tuning, lambda line: None)
    run = MlflowClient(tuning.tracking.mlflow_uri).get_run(str(read_run_id(tuning.running)))
    assert run.info.status == "FAILED"
    assert list_versions(tuning.tracking, "toybert-toy_task") == []


def test_nothing_is_registered_that_is_not_to_be(make_tuning) -> None:
    tuning = make_tuning(model=None)
    assert tune(tuning, lambda line: None)[1] is None
    assert read_run_id(tuning.running) is not None
    assert list_versions(tuning.tracking, "toybert-toy_task") == []


def test_words_without_a_token_are_counted_and_wrong(make_tuning) -> None:
    sentences = [Example(f"here:{n}", ("su", "dağ", "\u200b"), (0, 1, 0)) for n in range(16)]
    task = Task("pos", "tokens", ["ADJ", "NOUN"], {"train": sentences, "validation": sentences, "test": sentences[:4]})
    settings = SETTINGS.model_copy(update={"seeds": (1,)})
    tuning, said = make_tuning(task=task, task_settings=TaskSettings(kind="tokens"), settings=settings), list[str]()
    report, _ = tune(replace(tuning, model=None), said.append)
    assert report["unseen"] == {"train": 16, "validation": 16, "test": 4}
    assert said[-1] == "pos: 4 test words have no token of this tokenizer: the model does not see them"
    assert report["pretrained"]["accuracy"]["mean"] <= 0.6667
    mistakes = (tuning.folder / "mistakes.csv").read_text(encoding="utf-8")
    assert mistakes.count("ADJ -> no token") == 4


def test_a_folder_that_cannot_be_used_is_refused_before_there_is_a_run(make_tuning, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with refused(DataError, "out", "is a file"):
        tune(make_tuning(folder=tmp_path / "out"), lambda line: None)
    assert Layout("toy").tracking_folders() == []


@pytest.mark.parametrize(("seeds", "said"), [((7,), "seed 7"), ((1, 2), "seeds 1, 2"), (tuple(range(6)), "6 seeds")])
def test_a_run_s_name_has_its_seeds(seeds: tuple[int, ...], said: str) -> None:
    assert said_seeds(seeds) == said
