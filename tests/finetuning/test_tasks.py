import json
from pathlib import Path

import pytest
from refusals import refused

from azneobert.errors import DataError
from azneobert.finetuning.tasks import SPLITS, read_task


@pytest.fixture
def folder(tmp_path):
    """A task of two labels; write a split again to break it."""
    for split in SPLITS:
        write(tmp_path, split, [("Qol vuruldu", "idman"), ("Seçki keçirildi", "siyasət")])
    return tmp_path


def write(folder, split, examples):
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in examples]
    (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_the_sample_task_reads_with_every_label_in_every_split():
    task = read_task(Path(__file__).parents[2] / "data/sample/topics")
    assert task.name == "topics"
    for split in SPLITS:
        assert {label for _, label in task.splits[split]} == set(range(len(task.labels)))


def test_labels_are_numbered_in_sorted_order_whatever_the_order_of_the_lines(folder):
    write(folder, "train", [("Seçki keçirildi", "siyasət"), ("Qol vuruldu", "idman")])
    task = read_task(folder)
    assert task.labels == ["idman", "siyasət"]
    assert task.splits["train"] == [("Seçki keçirildi", 1), ("Qol vuruldu", 0)]
    assert task.splits["test"] == [("Qol vuruldu", 0), ("Seçki keçirildi", 1)]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_with_an_unknown_label_is_refused(folder, split):
    write(folder, split, [("Film çəkildi", "mədəniyyət")])
    with refused(DataError, f"{folder}/{split}.jsonl", "label 'mədəniyyət'", "train.jsonl (idman, siyasət)"):
        read_task(folder)


def test_a_missing_split_is_refused(folder):
    (folder / "test.jsonl").unlink()
    with refused(DataError, f"{folder}/test.jsonl", "no such source file"):
        read_task(folder)


@pytest.mark.parametrize("content", ["", "\n\n"], ids=["no bytes", "blank lines"])
def test_an_empty_split_is_refused(folder, content):
    (folder / "validation.jsonl").write_text(content)
    with refused(DataError, f"{folder}/validation.jsonl", "is empty"):
        read_task(folder)


def test_a_line_without_a_label_is_refused_with_its_place(folder):
    (folder / "train.jsonl").write_text('{"text": "Qol vuruldu", "label": "idman"}\n{"text": "Seçki"}\n')
    with refused(DataError, f"{folder}/train.jsonl:2:", "no field 'label'", "found text"):
        read_task(folder)
