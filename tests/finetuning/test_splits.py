"""Which file is which split, what is held out where one is missing, and what stands in two of them."""

import json

import pytest
from refusals import refused

from azneobert.errors import DataError
from azneobert.finetuning.reading import read_task
from azneobert.task_settings import SPLITS, TaskFiles

LINES = [{"text": f"mətn {number}", "label": "ab"[number % 2]} for number in range(200)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "task"


def write(file, lines):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def read(path, **settings):
    return read_task("sample", TaskFiles(path=str(path), **settings))


def texts(task):
    return {split: {one.text for one in examples} for split, examples in task.splits.items()}


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_files_are_taken_by_their_usual_names_and_others_are_left_alone(folder, name):
    write(folder / "train.jsonl", LINES[:6])
    write(folder / f"{name}.jsonl", LINES[6:8])
    write(folder / "test.csv.gz.dvc", LINES)
    write(folder / ".test.jsonl.partial", LINES)
    (folder / "README.md").write_text("# Task")
    (folder / "extra").mkdir()
    (folder / "test.csv").write_text("text,label\nson,a\n")
    task = read(folder)
    assert {split: len(examples) for split, examples in task.splits.items()} == {"train": 6, "validation": 2, "test": 1}
    assert task.notes == []


def test_the_settings_may_name_the_splits_and_keep_them_from_their_usual_places(folder):
    write(folder / "fold1.v2.jsonl", LINES[:100])
    write(folder / "test.jsonl", LINES[100:120])
    write(folder / "train.jsonl", LINES[120:])
    task = read(folder, splits={"train": "fold1", "validation": "test"})
    assert texts(task)["validation"] == {line["text"] for line in LINES[100:120]}
    assert texts(task)["train"] | texts(task)["test"] == {line["text"] for line in LINES[:100]}
    assert any(note.startswith("no test split: ") for note in task.notes)


def test_what_is_held_out_is_the_same_in_every_order_and_keeps_the_same_texts_together(tmp_path):
    write(tmp_path / "a.jsonl", LINES + LINES[:50])
    write(tmp_path / "b.jsonl", LINES[:50] + LINES[::-1])
    found = texts(read(tmp_path / "a.jsonl"))
    assert found == texts(read(tmp_path / "b.jsonl"))
    assert set.union(*found.values()) == {line["text"] for line in LINES}
    assert sum(map(len, found.values())) == len(LINES)
    assert 5 < len(found["test"]) < 40
    assert 5 < len(found["validation"]) < 40


def test_the_test_that_is_held_out_does_not_depend_on_whether_validation_is(tmp_path):
    write(tmp_path / "a.jsonl", LINES)
    write(tmp_path / "b" / "train.jsonl", LINES)
    write(tmp_path / "b" / "dev.jsonl", LINES[:2])
    alone, beside = read(tmp_path / "a.jsonl"), read(tmp_path / "b")
    assert texts(alone)["test"] == texts(beside)["test"]
    test = len(alone.splits["test"])
    assert f"no test split: {test} of 200 training examples are held out for it" in alone.notes
    assert len([note for note in alone.notes if "held out" in note]) == 2
    assert len([note for note in beside.notes if "held out" in note]) == 1


def test_the_share_that_is_held_out_is_the_settings(tmp_path):
    write(tmp_path / "a.jsonl", LINES)
    task = read(tmp_path / "a.jsonl", held_out=0.4)
    assert 60 < len(task.splits["test"]) < 100
    assert 20 < len(task.splits["train"]) < 60


def test_too_few_examples_to_hold_any_out_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", LINES[:2])
    with refused(DataError, "sample: of 2 training examples none is left for test", "a file for test"):
        read(tmp_path / "a.jsonl")
    write(tmp_path / "a.jsonl", LINES)
    with refused(DataError, "sample: of 200 training examples none is left for train", "`held_out` 0.5"):
        read(tmp_path / "a.jsonl", held_out=0.5)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("content", ["", "\n \n"], ids=["no bytes", "blank lines"])
def test_an_empty_split_is_refused(folder, split, content):
    for other in SPLITS:
        write(folder / f"{other}.jsonl", LINES[:4])
    (folder / f"{split}.jsonl").write_text(content)
    with refused(DataError, f"{folder}/{split}.jsonl: is empty; expected an example or more"):
        read(folder)


def test_a_folder_without_training_says_what_was_found_there(folder):
    write(folder / "train.jsonl.dvc", LINES)
    write(folder / "test.jsonl", LINES)
    with refused(
        DataError, f"{folder}: no train split, found test.jsonl, train.jsonl.dvc; expected its file as one of .jsonl"
    ):
        read(folder)


def test_a_named_split_that_is_not_there_is_refused(folder):
    write(folder / "train.jsonl", LINES)
    write(folder / "dev.jsonl", LINES)
    with refused(DataError, "no validation split called held, found dev.jsonl, train.jsonl", "`splits.validation`"):
        read(folder, splits={"validation": "held"})
    with refused(DataError, "`splits` has dev, dev; expected another name for each split"):
        read(folder, splits={"validation": "dev", "test": "dev"})


@pytest.mark.parametrize(("one", "other"), [("train.jsonl", "train.csv"), ("dev.jsonl", "val.jsonl")])
def test_two_files_for_a_split_are_refused(folder, one, other):
    for name in {"train.jsonl", one, other}:
        write(folder / name, LINES)
    with refused(DataError, f"{folder}: ", one, other, "are all for", "remove or rename all but one"):
        read(folder)


def test_a_path_that_is_not_there_and_a_file_with_named_splits_are_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/none: no such file or folder; expected a folder with a file a split"):
        read(tmp_path / "none")
    write(tmp_path / "a.jsonl", LINES)
    with refused(DataError, f"{tmp_path}/a.jsonl: is one file, but `splits` names test"):
        read(tmp_path / "a.jsonl", splits={"test": "test"})


def test_examples_that_stand_in_training_too_are_counted_by_split_and_label(folder):
    def other(line):
        return line | {"label": "a" if line["label"] == "b" else "b"}

    write(folder / "train.jsonl", [*LINES[:20], LINES[3], LINES[3], other(LINES[4])])
    write(folder / "validation.jsonl", LINES[20:30])
    write(folder / "test.jsonl", [*LINES[30:35], LINES[0], LINES[1], other(LINES[2]), other(LINES[4])])
    assert read(folder).notes == [
        "3 of 23 training examples say the same as one before, 1 of them with another label",
        f"3 of 9 test examples stand in training too, the first in {folder}/test.jsonl:6; their score says less",
        f"1 of 9 test examples stand in training with another label, the first in {folder}/test.jsonl:8",
    ]
