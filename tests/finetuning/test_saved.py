"""A fine-tuned model says what it is for, and one of another maker says what it can."""

from __future__ import annotations

import json

import pytest
from refusals import refused
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from azneobert.errors import DataError
from azneobert.finetuning.saved import read_purpose
from azneobert.pretrained import load_tokenizer
from azneobert.task_settings import TaskSettings

SETTINGS = {
    "classification": TaskSettings(text_field=("title", "body.text"), label_field="topic", labels=("b", "a")),
    "pairs": TaskSettings(kind="pairs", text_field="premise", pair_field="hypothesis"),
    "regression": TaskSettings(kind="regression", label_field="similarity"),
    "tokens": TaskSettings(kind="tokens", text_field="words", label_field="ner"),
    "choice": TaskSettings(kind="choice", choices_field=("a1", "a2"), first_label=1),
}
LABELS = {"regression": [], "choice": [], "tokens": ["O", "B-X", "I-X"]}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_model_knows_its_task_as_it_was_read(make_model, kind):
    settings, labels = SETTINGS[kind], LABELS.get(kind, ["b", "a"])
    purpose = read_purpose(make_model(settings, labels))
    assert (purpose.settings, purpose.labels, purpose.max_length) == (settings, labels, 32)
    assert (purpose.task.kind, purpose.task.labels) == (kind, labels)


def test_transformers_alone_loads_it_with_the_names_of_its_labels(make_model):
    folder = make_model(SETTINGS["classification"], ["b", "a"])
    [found] = pipeline("text-classification", model=str(folder))("bakı gözəl")
    assert found["label"] in ("b", "a")
    config = AutoConfig.from_pretrained(folder)
    assert (config.id2label, config.label2id) == ({0: "b", 1: "a"}, {"b": 0, "a": 1})


def test_a_tagger_is_saved_with_the_tokenizer_that_it_was_trained_with(make_model, encoder):
    folder, words = make_model(SETTINGS["tokens"], LABELS["tokens"]), ["bakı", "gözəl", "dağ"]
    expected = load_tokenizer(encoder, split_words=True)(words, is_split_into_words=True)["input_ids"]
    assert AutoTokenizer.from_pretrained(folder)(words, is_split_into_words=True)["input_ids"] == expected
    assert expected != load_tokenizer(encoder)(words, is_split_into_words=True)["input_ids"]
    found = pipeline("token-classification", model=str(folder))("bakı gözəl dağ")
    assert {each["entity"] for each in found} <= {"B-X", "I-X"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"labels": ["a"], "max_length": 8, "settings": {"kind": "verse"}}', '{"settings": {}}'],
)
def test_a_damaged_task_is_one_line(make_model, content):
    folder = make_model(SETTINGS["pairs"], ["no", "yes"])
    (folder / "task.json").write_text(content)
    with refused(DataError, "task.json", "damaged", "pull it again"):
        read_purpose(folder)


@pytest.fixture
def made_elsewhere(encoder, tmp_path):
    """Makes a model without task.json."""

    def make(auto_class, **options):
        config = AutoConfig.from_pretrained(encoder, **options)
        auto_class.from_config(config).save_pretrained(tmp_path)
        load_tokenizer(encoder).save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("auto_class", "options", "kind", "labels"),
    [
        (AutoModelForSequenceClassification, {"id2label": {0: "neg", 1: "pos"}}, "classification", ["neg", "pos"]),
        (AutoModelForSequenceClassification, {"num_labels": 1}, "regression", ["LABEL_0"]),
        (AutoModelForTokenClassification, {"id2label": {0: "O", 1: "B-X"}}, "tokens", ["O", "B-X"]),
    ],
)
def test_the_configuration_of_another_s_model_says_what_it_is_for(made_elsewhere, auto_class, options, kind, labels):
    purpose = read_purpose(made_elsewhere(auto_class, **options))
    assert (purpose.settings, purpose.labels, purpose.max_length) == (TaskSettings(kind=kind), labels, 64)


def test_an_encoder_is_no_fine_tuned_model(encoder):
    with refused(DataError, str(encoder), "EuroBertForMaskedLM", "no fine-tuned classifier"):
        read_purpose(encoder)


def test_the_task_in_the_folder_is_json_that_a_person_reads(make_model):
    content = json.loads((make_model(SETTINGS["choice"], []) / "task.json").read_text())
    assert content["name"] == "toy_task"
    assert content["settings"]["first_label"] == 1
