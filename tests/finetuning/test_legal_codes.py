"""The task `codes` is made of what pretraining holds out, and nothing in a text names its code."""

import importlib
import json

import pytest
from toy import ROOT

from azneobert.data.cleaning import CleaningReport, clean
from azneobert.data.sources import open_source
from azneobert.finetuning.reading import read_task
from azneobert.recipe import load_recipe
from azneobert.task_settings import SPLITS, TaskFiles

SENTENCE = "Bu Məcəllənin {number}-ci maddəsinə əsasən işçi öz əmək hüququnu məhkəmə qaydasında müdafiə edə bilər."
DOCUMENTS = {
    "R/x:pdfs/labor_law_code.pdf": 150,
    "R/x:md/a b/-Vergi Məcəlləsi.md": 150,
    "R/x:pdfs/water_law_code.pdf": 9,
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "data")
    return importlib.import_module("make_codes")


@pytest.fixture
def recipe(tmp_path):
    """The recipe, its legislation a file of this test: two codes of many documents, and one of few."""
    file = tmp_path / "e_qanun.jsonl"
    lines = []
    for place, number in DOCUMENTS.items():
        for at in range(number):
            text = f"{place} {SENTENCE.format(number=at)}"
            lines.append(json.dumps({"id": f"{len(lines)}", "text": text, "source": f"{place}#{at}"}))
    lines.append(json.dumps({"id": "other", "text": SENTENCE, "source": "a page of the web"}))
    file.write_text("\n".join(lines))
    recipe = load_recipe(ROOT / "recipes" / "legal.yaml")
    source = recipe.data.files["e_qanun"].model_copy(update={"path": str(file)})
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"files": recipe.data.files | {"e_qanun": source}})}
    )


def test_examples_are_the_documents_that_pretraining_holds_out(script, recipe):
    held_out = []
    for records in open_source(recipe.data.files["e_qanun"]).read():  # as the ingest stage reads them
        kept = clean(records, recipe.data.cleaning, CleaningReport())
        held_out += [text for text, out in zip(kept.texts, kept.validation, strict=True) if out]
    found = list(script.held_out_codes(recipe))
    assert [text for _, text, _ in found] == [text for text in held_out if text.startswith("R/x:")]
    assert 0 < len(found) < sum(DOCUMENTS.values())
    assert {label for label, _, _ in found} >= {"labor_law_code", "Vergi Məcəlləsi"}


def test_codes_with_few_documents_are_left_out_and_named(script, recipe):
    examples, few = script.make_examples(recipe)
    assert {one.label for one in examples} == {"labor_law_code", "Vergi Məcəlləsi"}
    assert set(few) == {"water_law_code"}
    assert 0 < few["water_law_code"] < script.FEWEST


def test_what_is_written_is_a_task_in_three_splits(script, recipe, tmp_path, capsys):
    script.main(tmp_path / "codes", recipe)
    task = read_task("codes", TaskFiles(path=str(tmp_path / "codes")))
    assert sorted(task.labels) == ["Vergi Məcəlləsi", "labor_law_code"]
    examples, _ = script.make_examples(recipe)
    for split in SPLITS:
        assert [one.text for one in task.splits[split]] == [one.text for one in examples if one.split == split]
        assert task.splits[split]
    assert f"{len(examples)} examples; left out" in capsys.readouterr().out


def test_the_second_half_of_the_hash_decides_the_split(script):
    def split(share: float) -> str:
        return script.split_of(bytes(8) + int(share * 2**64).to_bytes(8, "big"))

    assert [split(share) for share in (0, 0.29, 0.31, 0.44, 0.46, 0.99)] == (
        ["test", "test", "validation", "validation", "train", "train"]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AZƏRBAYCAN RESPUBLİKASININ MÜLKİ MƏCƏLLƏSİ", "AZƏRBAYCAN RESPUBLİKASININ MƏCƏLLƏSİ"),
        ("İnzibati Xətalar Məcəlləsi və cinayət - prosessual məcəllə", "Məcəlləsi və məcəllə"),
        ("bu Məcəllə, su və meşə, Əmək\nMəcəlləsinin", "bu Məcəllə, su və meşə, Məcəlləsinin"),
        ("Maddə 459-1.2. On iki ay\n- 6 0 8 . 1 . “cərimə”", "Maddə 0. On iki ay\n0 . cərimə"),
        ("Rusu Məcəllə", "Rusu Məcəllə"),
    ],
)
def test_a_text_does_not_name_its_code(script, text, expected):
    assert script.shown(text) == expected


def test_a_text_is_cut_at_the_end_of_a_word(script):
    word = "a" * 99
    assert script.shown(f"{word} " * 20).split() == [word] * 12
    whole = " ".join([word] * 12)
    assert script.shown(whole) == whole
