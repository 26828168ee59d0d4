"""`azneobert evaluate` from names of models to a table, files and an MLflow run; a training is not repeated."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from refusals import refused
from toy import ROOT, lively, toy_recipe
from typer.testing import CliRunner

from azneobert.cli import app
from azneobert.errors import AzNeoBertError, DataError, TrainingError
from azneobert.finetuning import trials
from azneobert.model.export import export_transformers

pytestmark = pytest.mark.long  # whole commands, or a model that is trained for them

SUITE = """
tuning: {epochs: 1, patience: 1, batch_size: 8, learning_rate: 1.0e-3, max_length: 16, seeds: [1, 2]}
tasks:
  towns: {path: towns.jsonl, held_out: 0.2}
  gone: {path: gone.jsonl}
"""


@pytest.fixture(scope="module")
def encoders(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders of different weights, in the folders `a` and `b`."""
    folder = tmp_path_factory.mktemp("encoders")
    model = lively(toy_recipe().model)
    for name in ("a", "b"):
        weights = {key: p.detach() for key, p in model.named_parameters(remove_duplicate=False)}
        export_transformers(weights, model.config, toy_corpus / "tokenizer.json", folder / name)
        weights["encoder.embedding.weight"].mul_(1.5)
    return folder


@pytest.fixture
def project(mlflow_uri: str, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store, both encoders and a suite of a task that is there and of one that is not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    for name in ("a", "b"):
        shutil.copytree(encoders / name, tmp_path / name)
    places = ("bakı", "gəncə", "şəki")
    records = [{"text": f"{places[n % 3]} şəhəri {n} dağ", "label": places[n % 3]} for n in range(60)]
    (tmp_path / "towns.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (tmp_path / "own.yaml").write_text(SUITE)
    return tmp_path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The trainings that were run: the encoder's folder and the seed."""
    done: list[tuple[str, int]] = []
    results = trials.results

    def counted(encoder, task, tuning, weights, seeds):
        for result, model in results(encoder, task, tuning, weights, seeds):
            done.append((encoder.name, result.seed))
            yield result, model

    monkeypatch.setattr(trials, "results", counted)
    return done


def evaluate(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["evaluate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_models_are_compared_in_a_table_in_files_and_in_mlflow(project: Path, mlflow_uri: str) -> None:
    out = evaluate("own.yaml", "a", "b", "--random")
    for part in ("a, random weights", "towns", "inside the noise", "gone: left out: ", "Left out: gone"):
        assert part in out
    folder = project / "evaluations" / "own"
    report = json.loads((folder / "results.json").read_text())
    assert [model["name"] for model in report["models"]] == ["a", "a, random weights", "b"]
    assert all(model["tokens_a_word"] > 1 and model["tokens_per_second"] > 0 for model in report["models"])
    marks = [model["tasks"]["towns"]["mark"] for model in report["models"]]
    assert marks.count("best") == 1
    assert list(report["left_out"]) == ["gone"]
    with (folder / "results.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 3
    client = MlflowClient(mlflow_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("azneobert-finetuning").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["towns/a"] == pytest.approx(report["models"][0]["tasks"]["towns"]["mean"], abs=1e-4)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"results.md", "results.csv", "scores.png"}


def test_the_sample_suite_runs_on_the_data_of_the_repository(project: Path) -> None:
    for task in ("punctuation", "capitals"):
        shutil.copytree(ROOT / "data/sample" / task, project / "data/sample" / task)
    out = evaluate("sample", "a", "--seeds", "1", "--output", "out")
    assert "average" in out
    (model,) = json.loads((project / "out/results.json").read_text())["models"]
    scores = {name: found["mean"] for name, found in model["tasks"].items()}
    assert scores.keys() == {"punctuation", "capitals"}
    assert model["average"] == pytest.approx(sum(scores.values()) / 2, abs=1e-4)


def test_what_was_trained_is_not_trained_again(project: Path, trained: list[tuple[str, int]]) -> None:
    evaluate("own.yaml", "a")
    assert trained == [("a", 1), ("a", 2)]
    first = json.loads((project / "evaluations/own/results.json").read_text())["models"][0]
    evaluate("own.yaml", "a", "b")
    assert trained[2:] == [("b", 1), ("b", 2)]
    again = json.loads((project / "evaluations/own/results.json").read_text())["models"][0]
    assert again["tasks"]["towns"]["by_seed"] == first["tasks"]["towns"]["by_seed"]
    (project / "evaluations/own/trials").joinpath(_file_of(project, "b", 2)).unlink()
    evaluate("own.yaml", "a", "b", "--seeds", "1,2,3")
    assert trained[4:] == [("a", 3), ("b", 2), ("b", 3)]
    (project / "own.yaml").write_text(SUITE.replace("epochs: 1", "epochs: 2"))
    evaluate("own.yaml", "a", "--seeds", "1")
    assert trained[7:] == [("a", 1)]


def _file_of(project: Path, model: str, seed: int) -> str:
    files = (project / "evaluations/own/trials").iterdir()
    contents = {file.name: json.loads(file.read_text()) for file in files}
    (name,) = [name for name, one in contents.items() if (one["model"], one["seed"]) == (model, seed)]
    return name


def test_a_damaged_result_is_named(project: Path) -> None:
    evaluate("own.yaml", "a", "--seeds", "1")
    file = project / "evaluations/own/trials" / _file_of(project, "a", 1)
    file.write_text(file.read_text()[:100])
    with refused(DataError, f"trials/{file.name}: damaged (", "remove it"):
        evaluate("own.yaml", "a", "--seeds", "1")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["none", "a"], ["none: no such suite", "azerbaijani, legal, sample"]),
        (["own.yaml", "a", "a"], ["a: stands twice"]),
        (["own.yaml", "a", "models:/azneobert@none"], ["models:/azneobert@none: not in", "no model azneobert"]),
        (["own.yaml", "a", "empty"], ["empty: ", "transformers cannot load it"]),
        (["own.yaml", "a", "bare"], ["bare: has no weights as .safetensors"]),
        (["own.yaml", "a", "some/model"], ["some/model: no such folder, and the hub does not give it"]),
        (["own.yaml", "a", "--tasks", "towns,cities"], ["--tasks: 'cities' is no task of own", "towns, gone"]),
        (["own.yaml", "a", "--tasks", "gone"], ["own: none of its 1 tasks can be read"]),
        (["own.yaml", "a", "--seeds", "1,1"], ["--seeds: found '1,1'", "1,2,3"]),
        (["own.yaml", "a", "--seeds", "x"], ["--seeds: found 'x'"]),
        (["own.yaml", "a", "--output", "b"], ["b: holds something else"]),
        (["own.yaml", "a", "--output", "own.yaml"], ["own.yaml: is a file"]),
    ],
)
def test_what_is_wrong_is_one_line_before_any_training(
    project: Path, trained: list[tuple[str, int]], arguments: list[str], parts: list[str]
) -> None:
    (project / "empty").mkdir()
    shutil.copytree(project / "a", project / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with refused(AzNeoBertError, *parts):
        evaluate(*arguments)
    assert not trained


@pytest.mark.parametrize("second", ["models:/toybert/2", "models:/toybert@phase2"])
def test_two_names_of_one_version_are_one_line_before_any_training(
    project: Path, mlflow_uri: str, trained: list[tuple[str, int]], second: str
) -> None:
    client = MlflowClient(mlflow_uri)
    client.create_registered_model("toybert")
    for name in ("a", "b"):
        client.create_model_version("toybert", str(project / name))
    for alias in ("champion", "phase2"):
        client.set_registered_model_alias("toybert", alias, "2")
    with refused(AzNeoBertError, f"{second}: is the same version as models:/toybert@champion; remove one of the two"):
        evaluate("own.yaml", "models:/toybert@champion", "models:/toybert/1", second)
    assert not trained


def test_models_that_take_no_texts_of_that_length_end_in_one_line(project: Path) -> None:
    (project / "own.yaml").write_text(SUITE.replace("max_length: 16", "max_length: 65"))
    with refused(TrainingError, "own: no model can be trained on any of its tasks"):
        evaluate("own.yaml", "a", "--tasks", "towns")
