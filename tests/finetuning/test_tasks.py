import json

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
    with refused(DataError, f"{folder}/test.jsonl", "no such file", "expected one JSON object a line"):
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


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"text": "Seçki", "label": null}', "label is null; expected a string or a whole number"),
        ('{"text": "Seçki", "label": ["siyasət"]}', "label is a list; expected a string or a whole number"),
        ('{"text": "Seçki", "label": {"az": "siyasət"}}', "label is an object; expected a string or a whole number"),
        ('{"text": "Seçki", "label": true}', "label is true; expected a string or a whole number"),
        ('{"text": "Seçki", "label": 1.0}', "label is 1.0; expected a string or a whole number"),
        ('{"text": "Seçki", "label": ""}', 'label is ""; expected a string or a whole number'),
        ('{"text": "Seçki", "label": " "}', 'label is " "; expected a string or a whole number'),
        ('{"text": "Seçki", "label": "\\ud800"}', 'label is "?"; expected a string or a whole number'),
        ('{"text": "", "label": "idman"}', 'text is ""; expected a string with something in it'),
        ('{"text": " \\n ", "label": "idman"}', "text is "),
        ('{"text": null, "label": "idman"}', "text is null; expected a string with something in it"),
        ('{"text": 7, "label": "idman"}', "text is 7; expected a string with something in it"),
        ('{"text": "a \\udfff b", "label": "idman"}', 'text is "a ? b"; '),
        ('{"label": "idman"}', "no field 'text', found label; expected a JSON object with text and label"),
        ("{}", "no field 'text', found none; "),
        ('["Seçki", "siyasət"]', "is a list; expected a JSON object with text and label"),
        ("null", "not an object; expected a JSON object with text and label"),
        ('{"text": "Seçki"', "not JSON"),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_a_line_that_is_no_example_is_refused_with_its_place(folder, split, line, found):
    good = '{"text": "Qol vuruldu", "label": "idman"}'
    (folder / f"{split}.jsonl").write_text(f"{good}\n\n{line}\n{good}\n", encoding="utf-8")
    with refused(DataError, f"{folder}/{split}.jsonl:3: ", found):
        read_task(folder)


def test_a_whole_number_is_a_label_by_its_digits(folder):
    for split in SPLITS:
        write(folder, split, [("Qol vuruldu", 10), ("Seçki keçirildi", 2), ("Film çəkildi", "2")])
    task = read_task(folder)
    assert task.labels == ["10", "2"]
    assert [label for _, label in task.splits["train"]] == [0, 1, 1]


def test_what_else_a_line_holds_does_not_matter(folder):
    line = '\ufeff{"id": null, "text": "Qol vuruldu", "label": "idman", "source": ["a"]}\n'
    (folder / "test.jsonl").write_text(line, encoding="utf-8")
    assert read_task(folder).splits["test"] == [("Qol vuruldu", 0)]
