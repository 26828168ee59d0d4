"""`azneobert finetune` and `azneobert predict` need a registry's address alone, and say in one line what is wrong."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import learnable
import pytest
from refusals import refused
from toy import toy_recipe
from typer.testing import CliRunner

from azneobert.cli import app
from azneobert.errors import AzNeoBertError, TrainingError
from azneobert.finetuning.task import Task
from azneobert.yaml_files import write_yaml

pytestmark = pytest.mark.long  # whole commands, or a model that is trained for them

QUICK = ["--epochs", "1", "--seeds", "1", "--batch-size", "8", "--max-length", "32"]


@dataclass(frozen=True)
class Project:
    """A folder to stand in, and the encoder beside it."""

    encoder: Path

    def runs(self, *arguments: object) -> str:
        """What the command prints."""
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def refuses(self, *arguments: object) -> str:
        """The line in which it says what is wrong, and that it did nothing."""
        before = sorted(Path().iterdir())
        with pytest.raises(AzNeoBertError) as caught:
            CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        message = str(caught.value)
        assert "\n" not in message
        assert sorted(Path().iterdir()) == before
        return message


@pytest.fixture
def project(encoder: Path, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty folder; MLflow's address is in the environment alone."""
    shutil.copytree(encoder, tmp_path / "enc")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Project(tmp_path / "enc")


def write(file: Path, task: Task, split: str) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    labels = [task.labels[int(one.label)] for one in task.splits[split]]
    lines = [{"text": one.text, "label": label} for one, label in zip(task.splits[split], labels, strict=True)]
    file.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def task() -> Task:
    return learnable.classification({"train": 48, "validation": 12, "test": 12})


def test_a_file_is_fine_tuned_on_registered_and_used(project: Project, task: Task) -> None:
    write(Path("moods.jsonl"), task, "train")
    said = project.runs("finetune", "moods.jsonl", "--model", project.encoder, *QUICK)
    assert re.search(r"no test split: \d+ of 48 training examples are held out", said)
    assert "pretrained weights, seed 1: test macro_f1" in said
    assert "random weights, seed 1: test macro_f1" in said
    assert "registered: models:/enc-moods/1, models:/enc-moods@champion" in said
    written = {file.name for file in Path("finetuned/moods").iterdir()}
    assert {"report.json", "learning_curve.png", "confusion.png", "mistakes.csv", "model"} <= written
    write(Path("new.jsonl"), task, "test")
    printed = project.runs("predict", "models:/enc-moods@champion", "new.jsonl")
    found = [json.loads(line) for line in printed.splitlines()]
    assert [one["text"] for one in found] == [one.text for one in task.splits["test"]]
    assert {one["prediction"] for one in found} <= {"bad", "good"}
    project.runs("predict", "finetuned/moods/model", "new.jsonl", "--output", "a/out.jsonl")
    assert Path("a/out.jsonl").read_text(encoding="utf-8") == printed
    assert "models:/enc-moods/1" in project.runs("registry", "list")
    assert "macro_f1" in project.runs("registry", "list")
    assert "moods" in project.runs("registry", "show", "models:/enc-moods@champion")
    verified = project.runs("registry", "verify", "models:/enc-moods/1")
    assert "every hash is right" in verified
    assert "no golden sentences" in verified
    project.runs("registry", "delete", "models:/enc-moods/1", "--force")
    assert "models:/enc-moods/1" not in project.runs("registry", "list")


def test_a_folder_with_fields_of_other_names_is_read_by_options(project: Project, task: Task) -> None:
    for split in task.splits:
        Path("data").mkdir(exist_ok=True)
        with Path(f"data/{split}.csv").open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(["title", "body", "mood"])
            writer.writerows(["ev", one.text, one.label] for one in task.splits[split])
    options = ["--text-field", "title", "--text-field", "body", "--label-field", "mood", "--labels", "bad, good"]
    said = project.runs("finetune", "data", "--model", project.encoder, *options, *QUICK, "--no-register")
    assert "held out" not in said
    assert "registered" not in said
    report = json.loads(Path("finetuned/data/report.json").read_text())
    assert report["examples"] == {"train": 48, "validation": 12, "test": 12}
    stated = json.loads(Path("finetuned/data/model/task.json").read_text())
    assert (stated["labels"], stated["settings"]["text_field"]) == (["bad", "good"], ["title", "body"])
    assert project.runs("registry", "list").count("models:/") == 0


def test_it_can_be_run_again_into_the_same_folder(project: Project, task: Task) -> None:
    for split in task.splits:
        write(Path("moods") / f"{split}.jsonl", task, split)
    for _ in range(2):
        said = project.runs("finetune", "moods", "--model", project.encoder, *QUICK, "--output", "out")
        assert "registered: models:/enc-moods/1," in said, "the same content is the same version"
    assert not list(Path("out").glob("running.aside*"))


def test_what_was_cut_is_said(project: Project, task: Task) -> None:
    for split in task.splits:
        write(Path("moods") / f"{split}.jsonl", task, split)
    with Path("moods/train.jsonl").open("a", encoding="utf-8") as opened:
        opened.write(json.dumps({"text": "bakı " * 50, "label": "good"}) + "\n")
    said = project.runs("finetune", "moods", "--model", project.encoder, *QUICK, "--no-register")
    assert "moods: 1 of 49 train examples were longer than 32 tokens, and were cut" in said


def test_a_task_of_the_recipe_has_its_settings(project: Project, task: Task, mlflow_uri: str) -> None:
    for split in task.splits:
        write(Path("texts") / f"{split}.jsonl", task, split)
    files = {"files": {"moods": {"path": "texts", "labels": ["good", "bad"]}}, "model": str(project.encoder)}
    recipe = toy_recipe({"tracking": {"mlflow_uri": mlflow_uri}}).model_dump(mode="json")
    recipe["finetuning"] |= files | {"seeds": [7], "epochs": 1}
    write_yaml(Path("params.yaml"), recipe)
    project.runs("finetune", "moods", "--no-register")
    report = json.loads(Path("finetuned/moods/report.json").read_text())
    assert (report["seeds"], report["max_length"]) == ([7], 32)
    assert json.loads(Path("finetuned/moods/model/task.json").read_text())["labels"] == ["good", "bad"]
    assert "moods" in project.refuses("finetune", "no/such/task", "--no-register")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nothing.jsonl"], ["nothing.jsonl: no such file or folder", "no task of a recipe"]),
        (["./nothing"], ["./nothing: no such file or folder"]),
        (["moods.jsonl", "--labels", "a,b,a"], ["labels", "'a' stands there twice"]),
        (["moods.jsonl", "--labels", "a,b"], ["moods.jsonl:1", "expected one of the labels a, b"]),
        (["moods.jsonl", "--seeds", "1,x"], ["--seeds", "'x'", "as 1,2,3"]),
        (["moods.jsonl", "--learning-rate", "-1"], ["learning_rate", "-1"]),
        (["moods.jsonl", "--text-field", "body"], ["moods.jsonl:1", "body", "`text_field`"]),
        (["moods.jsonl", "--config", "az"], ["config"]),
        (["moods.jsonl", "--output", "moods.jsonl"], ["moods.jsonl: is a file", "expected a folder"]),
        (["moods.jsonl", "--register-as", "a/b"], ["--register-as", "a/b"]),
        (["nobody/no-such-data"], ["nobody/no-such-data"]),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(project: Project, task: Task, arguments, parts) -> None:
    write(Path("moods.jsonl"), task, "train")
    began = time.monotonic()
    message = project.refuses("finetune", *arguments, "--model", project.encoder, "--epochs", "1")
    assert [part for part in parts if part not in message] == [], message
    assert time.monotonic() - began < 10


def test_a_length_that_the_model_does_not_take_is_one_line(project: Project, task: Task) -> None:
    write(Path("moods.jsonl"), task, "train")
    with refused(TrainingError, "max_length: found 65", "reads 64 tokens"):
        project.runs("finetune", "moods.jsonl", "--model", project.encoder, *QUICK[:-1], 65)


def test_an_unknown_kind_is_refused_with_those_that_there_are(project: Project) -> None:
    result = CliRunner().invoke(app, ["finetune", "moods.jsonl", "--kind", "verse"])
    assert result.exit_code == 2
    assert "choice" in result.output


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("nobody/no-such-model", ["nobody/no-such-model: no such folder", "the hub does not give it"]),
        ("models:/nobody@champion", ["models:/nobody@champion"]),
        (".", ["transformers cannot load it"]),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "predict"])
def test_a_model_that_is_not_there_is_one_line_in_seconds(
    project: Project, task: Task, command: str, model: str, parts: list[str]
) -> None:
    write(Path("moods.jsonl"), task, "train")
    ordered = ["moods.jsonl", "--model", model] if command == "finetune" else [model, "moods.jsonl"]
    began = time.monotonic()
    message = project.refuses(command, *ordered)
    assert [part for part in parts if part not in message] == [], message
    assert time.monotonic() - began < 10


def test_without_a_store_or_a_model_it_says_which_option_names_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--model models:/azneobert@champion" in project.refuses("finetune", "moods.jsonl")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "--tracking-uri" in project.refuses("finetune", "moods.jsonl", "--model", project.encoder)


def test_an_encoder_makes_no_predictions(project: Project, task: Task) -> None:
    write(Path("moods.jsonl"), task, "test")
    assert "no fine-tuned classifier" in project.refuses("predict", project.encoder, "moods.jsonl")
