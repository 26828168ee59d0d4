"""Files go in and lines of JSON come out, in the same order, with what the model makes of each example."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from refusals import refused
from transformers import AutoModelForSequenceClassification

from azneobert.errors import DataError
from azneobert.finetuning.predict import predict_file
from azneobert.finetuning.saved import read_purpose
from azneobert.pretrained import load_tokenizer
from azneobert.task_settings import TaskSettings

TEXTS = ["bakı gözəl şəhər", "dağ", "çay ev gözəl üz ağ dağ su çay", "su üz", "ağ " * 20]


def _read(folder, file, batch_size=2):
    lines, truncated = predict_file(folder, read_purpose(folder), file, batch_size)
    return [json.loads(line) for line in lines], truncated


def _write(file, records):
    file.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def classifier(make_model):
    return make_model(TaskSettings(), ["bad", "good", "other"])


@pytest.fixture(scope="module")
def tagger(make_model):
    return make_model(TaskSettings(kind="tokens"), ["O", "B-X", "I-X"])


def test_each_record_keeps_its_fields_and_its_place(classifier, tmp_path):
    records = [{"id": n, "text": text, "source": {"name": "ü"}} for n, text in enumerate(TEXTS)]
    found, truncated = _read(classifier, _write(tmp_path / "in.jsonl", records))
    assert [{k: v for k, v in one.items() if k in records[0]} for one in found] == records
    assert truncated == 0
    tokenizer = load_tokenizer(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    for one in found:
        with torch.no_grad():
            alone = model(**tokenizer(one["text"], return_tensors="pt")).logits[0].softmax(0)
        assert one["prediction"] == ["bad", "good", "other"][alone.argmax()]
        assert one["confidence"] == pytest.approx(alone.max().item(), abs=2e-4)


def test_half_of_a_surrogate_pair_in_another_field_is_spelt_as_it_was(classifier, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "su", "title": "\\ud83d"}\n')
    [line], _ = predict_file(classifier, read_purpose(classifier), tmp_path / "in.jsonl", 2)
    assert json.loads(line.encode())["title"] == "\ud83d"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_size_of_a_batch_changes_nothing(classifier, tmp_path, batch_size):
    file = _write(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS * 4])
    expected, _ = _read(classifier, file, 7)
    found, _ = _read(classifier, file, batch_size)
    assert [one["prediction"] for one in found] == [one["prediction"] for one in expected]
    assert np.allclose([one["confidence"] for one in found], [one["confidence"] for one in expected], atol=2e-4)


def test_a_table_is_read_as_lines_of_json_are(classifier, tmp_path):
    (tmp_path / "in.csv").write_text("text,no\n" + "".join(f'"{text}",{n}\n' for n, text in enumerate(TEXTS)))
    found, _ = _read(classifier, tmp_path / "in.csv")
    expected, _ = _read(classifier, _write(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS]))
    assert [one["no"] for one in found] == ["0", "1", "2", "3", "4"]
    assert [one["prediction"] for one in found] == [one["prediction"] for one in expected]


def test_texts_that_were_cut_are_counted(classifier, tmp_path):
    file = _write(tmp_path / "in.jsonl", [{"text": "bakı " * 40}, {"text": "su"}])
    assert _read(classifier, file)[1] == 1


def test_a_sentence_of_conll_becomes_a_line_with_a_tag_a_word(tagger, tmp_path):
    (tmp_path / "in.conll").write_text("bakı\nçay\n\nağ\n\nsu\nüz\nev\n", encoding="utf-8")
    found, _ = _read(tagger, tmp_path / "in.conll")
    assert [one["tokens"] for one in found] == [["bakı", "çay"], ["ağ"], ["su", "üz", "ev"]]
    for one in found:
        assert len(one["prediction"]) == len(one["tokens"])
        assert set(one["prediction"]) <= {"O", "B-X", "I-X"}
        assert 0 < one["confidence"] <= 1
    as_json = _write(tmp_path / "in.jsonl", [{"tokens": one["tokens"], "tags": None} for one in found])
    again, _ = _read(tagger, as_json)
    assert [one["prediction"] for one in again] == [one["prediction"] for one in found]


def test_a_long_sentence_has_a_tag_for_each_word(tagger, tmp_path):
    found, truncated = _read(tagger, _write(tmp_path / "in.jsonl", [{"tokens": ["su"]}, {"tokens": ["dağ"] * 90}]))
    assert [len(one["prediction"]) for one in found] == [1, 90]
    assert truncated == 0


def test_words_that_the_tokenizer_drops_are_in_no_entity(tagger, tmp_path):
    file = tmp_path / "in.jsonl"
    [alone], _ = _read(tagger, _write(file, [{"tokens": ["\u200b", "\u200b"]}]))
    assert alone["prediction"] == ["O", "O"]
    found, _ = _read(tagger, _write(file, [{"tokens": ["\u200b"]}, {"tokens": ["su", "\u200b"]}]))
    assert [one["prediction"][-1] for one in found] == ["O", "O"]


def test_without_an_o_words_that_the_tokenizer_drops_have_no_prediction(make_model, tmp_path):
    folder = make_model(TaskSettings(kind="tokens"), ["ADJ", "NOUN"])
    [found], _ = _read(folder, _write(tmp_path / "in.jsonl", [{"tokens": ["su", "\u200b"]}]))
    assert found["prediction"][0] in ("ADJ", "NOUN")
    assert (found["prediction"][1], found["confidence"]) == (None, 0)


def test_a_number_has_no_confidence(make_model, tmp_path):
    folder = make_model(TaskSettings(kind="regression"), [])
    found, _ = _read(folder, _write(tmp_path / "in.jsonl", [{"text": "su", "text_pair": text} for text in TEXTS[:4]]))
    assert all(isinstance(one["prediction"], float) for one in found)
    assert len({one["prediction"] for one in found}) > 1
    assert not any("confidence" in one for one in found)


def test_a_pair_needs_both_texts(make_model, tmp_path):
    folder = make_model(TaskSettings(kind="pairs"), ["no", "yes"])
    found, _ = _read(folder, _write(tmp_path / "in.jsonl", [{"text": "su", "text_pair": "dağ"}]))
    assert found[0]["prediction"] in ("no", "yes")
    with refused(DataError, "in.jsonl:2", "text_pair", "`pair_field`"):
        _read(folder, _write(tmp_path / "in.jsonl", [{"text": "su", "text_pair": "dağ"}, {"text": "su"}]))


def test_a_second_text_is_in_all_records_of_a_regression_or_in_none(make_model, tmp_path):
    folder = make_model(TaskSettings(kind="regression"), [])
    with refused(DataError, "in.jsonl:2", "no field 'text_pair'", "in all or in none"):
        _read(folder, _write(tmp_path / "in.jsonl", [{"text": "su", "text_pair": "dağ"}, {"text": "su"}]))


def test_an_answer_has_the_number_that_the_data_count_from(make_model, tmp_path):
    records = [{"text": "bakı", "choices": ["su", "dağ", "ev"][:n]} for n in (2, 3, 3, 2)]
    file = _write(tmp_path / "in.jsonl", records)
    from_0, _ = _read(make_model(TaskSettings(kind="choice"), []), file)
    from_1, _ = _read(make_model(TaskSettings(kind="choice", first_label=1), []), file)
    assert [one["prediction"] + 1 for one in from_0] == [one["prediction"] for one in from_1]
    assert all(1 <= one["prediction"] <= len(one["choices"]) for one in from_1)
    assert all(1 / len(one["choices"]) <= one["confidence"] < 1 for one in from_1)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["in.jsonl", "is empty"]),
        ('{"text": "su"}\n{"body": "su"}\n', ["in.jsonl:2", "text"]),
        ('{"text": null}\n', ["in.jsonl:1", "text is null"]),
    ],
)
def test_what_cannot_be_read_is_one_line(classifier, tmp_path, content, parts):
    (tmp_path / "in.jsonl").write_text(content)
    with refused(DataError, *parts):
        _read(classifier, tmp_path / "in.jsonl")
