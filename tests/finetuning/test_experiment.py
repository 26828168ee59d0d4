"""An experiment leaves a report, pictures, predictions and the best model, and says whether a gain is noise."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import learnable
import pytest
from refusals import refused

from azneobert.errors import DataError
from azneobert.finetuning.experiment import best_of, difference, make_room, run_experiment
from azneobert.finetuning.predict import predict
from azneobert.finetuning.saved import read_purpose
from azneobert.finetuning.scores import score
from azneobert.finetuning.task import Example
from azneobert.task_settings import TaskSettings

PNG = b"\x89PNG"


def test_everything_a_person_reads_is_in_one_folder(experiment):
    files = {file.name for file in experiment.folder.iterdir()}
    assert files == {"report.json", "learning_curve.png", "confusion.png", "mistakes.csv", "predictions.json", "model"}
    assert all((experiment.folder / name).read_bytes()[:4] == PNG for name in files if name.endswith(".png"))
    assert json.loads((experiment.folder / "report.json").read_text()) == experiment.report
    with (experiment.folder / "mistakes.csv").open(newline="", encoding="utf-8") as opened:
        mistakes = list(csv.DictReader(opened))
    assert 0 < len(mistakes) <= 10
    assert all(mistake["where"].startswith("test:") for mistake in mistakes)


def test_the_report_says_what_was_done_on_what(experiment):
    report = experiment.report
    said = {"kind": "classification", "score": "macro_f1", "labels": 2, "seeds": [3, 4], "max_length": 32}
    assert {name: report[name] for name in said} == said
    assert report["examples"] == {"train": 64, "validation": 32, "test": 48}
    assert report["data_sha256"] == experiment.task.sha256
    assert (report["truncated"], report["notes"], report["encoder_sha256"]) == ({}, ["a note"], "a" * 64)
    assert report["probe"].keys() == {"linear", "knn"}
    assert 0 < report["chance"]["accuracy"] < 1
    for weights in ("pretrained", "random"):
        assert report["curves"][weights].keys() == {"3", "4"}
        for epochs in report["curves"][weights].values():
            assert [epoch["number"] for epoch in epochs] == list(range(1, len(epochs) + 1))


def test_each_score_is_the_mean_of_its_seeds_within_its_interval(experiment):
    assert [(r.weights, r.seed) for r in experiment.results] == [
        ("pretrained", 3),
        ("pretrained", 4),
        ("random", 3),
        ("random", 4),
    ], "each is told as soon as it is there"
    for weights in ("pretrained", "random"):
        for name, figures in experiment.report[weights].items():
            values = [result.scores[name] for result in experiment.results if result.weights == weights]
            assert figures["by_seed"] == [round(value, 4) for value in values]
            assert figures["mean"] == round(statistics.fmean(values), 4)
            assert figures["deviation"] == round(statistics.stdev(values), 4)
            assert figures["low"] <= figures["mean"] <= figures["high"]


def test_the_scores_can_be_computed_again_from_the_predictions(experiment):
    predictions = json.loads((experiment.folder / "predictions.json").read_text())
    assert predictions["sha256"] == experiment.task.sha256
    for result in experiment.results:
        labels = predictions[result.weights][str(result.seed)]
        assert score(experiment.task, predictions["test"], labels) == pytest.approx(result.scores)


def test_the_model_is_that_of_the_seed_that_validation_chose(experiment):
    ours = [result for result in experiment.results if result.weights == "pretrained"]
    best = max(ours, key=lambda result: result.validation)
    assert experiment.report["best_seed"] == best.seed
    assert experiment.report["validation"] == pytest.approx(best.validation, abs=1e-6)
    assert list(ours[0].labels) != list(ours[1].labels), "otherwise this test tells nothing"
    model = experiment.folder / "model"
    found, _ = predict(model, read_purpose(model), experiment.task.splits["test"], 16)
    assert list(found.labels) == list(best.labels)


def test_of_seeds_that_are_as_good_the_first_is_kept(experiment):
    one, other = (replace(result, validation=0.5) for result in experiment.results[:2])
    assert best_of([one, other]) is one


def test_a_gain_that_may_be_chance_is_marked_as_noise(experiment):
    task, result = experiment.task, experiment.results[0]
    gold = [one.label for one in task.splits["test"]]
    right = [replace(result, labels=gold)] * 2
    wrong = [replace(result, labels=[1 - label for label in gold])] * 2
    nearly = [replace(result, labels=[1 - gold[0], *gold[1:]])] * 2
    assert difference(task, right, wrong, "accuracy") == {"difference": 1.0, "low": 1.0, "high": 1.0, "noise": False}
    assert difference(task, wrong, right, "accuracy")["noise"] is False, "a loss beyond the noise is none either"
    assert difference(task, right, right, "accuracy") == {"difference": 0.0, "low": 0.0, "high": 0.0, "noise": True}
    found = difference(task, right, nearly, "accuracy")
    assert found["difference"] > 0
    assert found["noise"] is True
    assert experiment.report["gain"].keys() == {"difference", "low", "high", "noise"}


def test_numbers_have_no_confusion_and_examples_that_were_cut_are_reported(encoder, tmp_path):
    task = learnable.regression({"train": 24, "validation": 8, "test": 12})
    task.splits["test"][0] = Example("test:1", "bakı " * 40, 0.5, "dağ")
    task.splits["train"][0] = Example("train:1", "bakı", 0.5, "dağ " * 40)
    settings = learnable.LEARNING.model_copy(update={"epochs": 1})
    make_room(tmp_path)
    report = run_experiment(encoder, task, TaskSettings(kind="regression"), settings, tmp_path, lambda result: None, {})
    assert report["truncated"] == {"train": 1, "test": 1}
    assert report["score"] == "spearman"
    assert report["pretrained"]["spearman"]["deviation"] == 0.0
    assert not (tmp_path / "confusion.png").exists()
    assert (tmp_path / "learning_curve.png").read_bytes()[:4] == PNG


def test_room_is_made_of_a_former_experiment_s_files_alone(tmp_path: Path):
    (tmp_path / "model").mkdir()
    for name in ("confusion.png", "report.json", "model/task.json", "model/model.safetensors", "notes.md"):
        (tmp_path / name).write_text("of before")
    make_room(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.md"]
    make_room(tmp_path / "a" / "new")
    assert (tmp_path / "a" / "new").is_dir()


def test_another_s_model_is_not_overwritten(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with refused(DataError, str(tmp_path / "model"), "is there already", "use another folder"):
        make_room(tmp_path)
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_file_is_no_folder_for_an_experiment(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with refused(DataError, str(tmp_path / "out"), "is a file", "expected a folder"):
        make_room(tmp_path / "out")
