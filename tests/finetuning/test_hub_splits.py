"""Labelled data sets as the hub has them, read by `datasets` itself from local folders."""

import pyarrow.parquet as pq
import pytest
from refusals import refused

from azneobert.errors import DataError
from azneobert.finetuning.reading import read_task
from azneobert.task_settings import TaskOfHub


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves rows as a data set of the hub, with features; the settings to read it."""
    from datasets import Dataset, Features

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def save(features, saved, **settings):
        for split, rows in saved.items():
            table = Dataset.from_list(rows, Features(features)).data.table
            (tmp_path / "set").mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / "set" / f"{split}-00000-of-00001.parquet")
        return TaskOfHub(dataset=str(tmp_path / "set"), **settings)

    return save


def test_class_labels_give_numbers_their_names(saved):
    from datasets import ClassLabel, Value

    rows = [{"text": f"mətn {number}", "label": number % 2} for number in range(4)]
    settings = saved(
        {"text": Value("string"), "label": ClassLabel(names=["müsbət", "mənfi"])},
        {"train": rows, "validation": rows[:1], "test": rows[:2]},
    )
    task = read_task("reviews", settings)
    assert task.labels == ["müsbət", "mənfi"]
    assert [one.label for one in task.splits["train"]] == [0, 1, 0, 1]
    assert {split: len(examples) for split, examples in task.splits.items()} == {"train": 4, "validation": 1, "test": 2}
    renamed = read_task("reviews", settings.model_copy(update={"labels": ("yaxşı", "pis")}))
    assert renamed.labels == ["yaxşı", "pis"]


def test_class_labels_inside_a_list_name_tags(saved):
    from datasets import ClassLabel, List, Value

    features = {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-LOC", "I-LOC"]))}
    rows = [{"tokens": ["Bakı", f"{number}"], "ner_tags": [1, 0]} for number in range(100)]
    task = read_task("ner", saved(features, {"train": rows}, kind="tokens", label_field="ner_tags"))
    assert task.labels == ["O", "B-LOC", "I-LOC"]
    assert task.splits["test"][0].label == (1, 0)
    assert any(note.startswith("no validation split") for note in task.notes)


def test_a_label_that_the_hub_hides_is_refused_with_its_row(saved):
    from datasets import ClassLabel, Value

    features = {"text": Value("string"), "label": ClassLabel(names=["a", "b"])}
    settings = saved(features, {"train": [{"text": "x", "label": 0}], "test": [{"text": "x", "label": -1}]})
    with refused(DataError, f"{settings.dataset} test:1: label is -1; expected 0 to 1"):
        read_task("reviews", settings)


def test_a_data_set_without_a_training_split_names_what_it_has(saved):
    from datasets import Value

    row = {"text": "Hansı?", "choices": "a", "label": "1"}
    settings = saved(dict.fromkeys(row, Value("string")), {"test": [row]}, kind="choice")
    with refused(DataError, f"{settings.dataset}: no train split, found test; expected", "`splits.train`"):
        read_task("belebele", settings)


def test_a_data_set_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with refused(DataError, f"{tmp_path}/empty: ", "correct `dataset`, `config` or `revision`"):
        read_task("reviews", TaskOfHub(dataset=str(tmp_path / "empty")))


def test_belebele_whose_only_split_is_its_test_is_read_as_training(saved):
    from datasets import Value

    row = {"flores_passage": "Mətn", "question": "Nə?", "correct_answer_num": "2"}
    answers = {f"mc_answer{number}": f"cavab {number}" for number in range(1, 5)}
    rows = [row | answers | {"question": f"Nə {number}?"} for number in range(100)]
    settings = saved(
        dict.fromkeys(row | answers, Value("string")),
        {"test": rows},
        kind="choice",
        text_field=("flores_passage", "question"),
        choices_field=tuple(answers),
        label_field="correct_answer_num",
        first_label=1,
        splits={"train": "test"},
    )
    task = read_task("belebele", settings)
    assert sum(map(len, task.splits.values())) == 100
    one = task.splits["train"][0]
    assert (one.text[:8], one.choices, one.label) == ("Mətn\nNə ", tuple(answers.values()), 1)
