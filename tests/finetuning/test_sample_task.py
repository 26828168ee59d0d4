"""The sample's labelled task is what its script makes, and its test is nothing that pretraining has seen."""

import importlib
from collections import Counter

import pytest
from toy import ROOT

from azneobert.data.tokenizer import MASK
from azneobert.finetuning.tasks import SPLITS, read_task
from azneobert.recipe import load_recipe

FOLDER = ROOT / "data/sample/punctuation"
RECIPE = load_recipe(ROOT / "recipes" / "sample.yaml")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER.parent)
    return importlib.import_module("make_punctuation")


def test_the_folder_is_what_the_script_makes(script, tmp_path):
    script.main(tmp_path / "made")
    for split in SPLITS:
        assert (tmp_path / "made" / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()


def test_every_split_has_equally_many_examples_of_each_label():
    task = read_task(FOLDER)
    assert task.name == "punctuation"
    for split in SPLITS:
        assert len(set(Counter(label for _, label in task.splits[split]).values())) == 1
        assert {label for _, label in task.splits[split]} == set(range(len(task.labels)))


def test_no_held_out_example_stands_in_what_pretraining_or_fine_tuning_learns_from(script):
    task = read_task(FOLDER)
    learnt = [script._small(text.split()) for text, held_out in script.documents(RECIPE) if not held_out]
    marks = {name: mark for mark, name in script.LABELS.items()}

    def stands_there(text, label):
        shown = text.replace(MASK, marks[task.labels[label]])
        return any(shown in document for document in learnt)

    assert all(stands_there(*example) for example in task.splits["train"])  # that it finds what is there
    for split in ("validation", "test"):
        assert not [text for text, label in task.splits[split] if stands_there(text, label)]


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
