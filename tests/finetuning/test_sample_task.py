"""The sample's labelled tasks are what their scripts make, and a test is nothing that pretraining has seen."""

import importlib
from collections import Counter

import pytest
from toy import ROOT

from azneobert.data.tokenizer import MASK
from azneobert.finetuning.reading import read_task
from azneobert.recipe import load_recipe
from azneobert.task_settings import SPLITS, TaskFiles

FOLDER = ROOT / "data/sample/punctuation"
SETTINGS = TaskFiles(path=str(FOLDER))
RECIPE = load_recipe(ROOT / "recipes" / "sample.yaml")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER.parent)
    return importlib.import_module("make_punctuation")


@pytest.mark.parametrize("task", ["punctuation", "capitals"])
def test_the_folder_is_what_the_script_makes(task, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER.parent)
    importlib.import_module(f"make_{task}").main(tmp_path / "made")
    for split in SPLITS:
        made, there = (folder / f"{split}.jsonl" for folder in (tmp_path / "made", FOLDER.parent / task))
        assert made.read_bytes() == there.read_bytes()


def test_every_split_has_equally_many_examples_of_each_label():
    task = read_task("punctuation", SETTINGS)
    assert task.name == "punctuation"
    assert task.notes == []
    for split in SPLITS:
        assert len(set(Counter(one.label for one in task.splits[split]).values())) == 1
        assert {one.label for one in task.splits[split]} == set(range(len(task.labels)))


def test_no_held_out_example_stands_in_what_pretraining_or_fine_tuning_learns_from(script):
    task = read_task("punctuation", SETTINGS)
    learnt = [script.small(" ".join(text.split())) for text, held_out in script.documents(RECIPE) if not held_out]
    marks = {name: mark for mark, name in script.LABELS.items()}

    def stands_there(text, label):
        shown = text.replace(MASK, marks[task.labels[label]])
        return any(shown in document for document in learnt)

    assert all(stands_there(one.text, one.label) for one in task.splits["train"])  # that it finds what is there
    for split in ("validation", "test"):
        assert not [one for one in task.splits[split] if stands_there(one.text, one.label)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hava isti olsa, dənizə 10 nəfər gedəcək", [("hava isti olsa[MASK] dənizə 10 nəfər gedəcək", "vergül")]),
        ("Biz İsmayıllıya getdik. I gün qayıtdıq", [("biz ismayıllıya getdik[MASK] ı gün qayıtdıq", "nöqtə")]),
        ("O, saat 10 radələrində gəldi", [("o, saat 10 radələrində[MASK] gəldi", "heç nə")]),
        ("Bu kitab səh. 10 boşdur", []),  # no end of a sentence: no capital comes after
    ],
)
def test_the_mark_after_a_word_is_hidden_and_small_letters_tell_nothing_of_it(script, text, expected):
    assert list(script.hidden_marks(text))[:1] == expected


def test_words_with_a_capital_are_those_that_had_one_and_nothing_else_tells_them(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER.parent)
    capitals = importlib.import_module("make_capitals")
    text = "Şəhər İsmayıllıdır, I əsrdən. Bakı-Quba yolu 5 km\nQısa sətir"
    (found,) = capitals.pieces(text)
    assert found == (
        ["şəhər", "ismayıllıdır", "ı", "əsrdən", "bakı-quba", "yolu", "km"],
        ["böyük", "böyük", "böyük", "kiçik", "böyük", "kiçik", "kiçik"],
    )
