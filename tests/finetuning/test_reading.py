"""Examples and labels of every kind of task, from files that people write."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.errors import DataError
from azneobert.finetuning.examples import unlabelled
from azneobert.finetuning.reading import read_task
from azneobert.finetuning.tables import rows
from azneobert.task_settings import SPLITS, TaskFiles, TaskSettings

GOOD = {
    "classification": {"text": "Qol vuruldu", "label": "idman"},
    "pairs": {"text": "Yağış yağır", "text_pair": "Hava yaşdır", "label": "bəli"},
    "regression": {"text": "Yağış yağır", "score": 3.5},
    "tokens": {"tokens": ["Bakı", "gözəldir"], "tags": ["B-LOC", "O"]},
    "choice": {"text": "Paytaxt?", "choices": ["Gəncə", "Bakı", "Şəki"], "label": 1},
}
OTHER = {
    "classification": {"text": "Seçki keçirildi", "label": "siyasət"},
    "pairs": {"text": "Yağış yağır", "text_pair": "Hava qurudur", "label": "xeyr"},
    "tokens": {"tokens": ["Ana", "gəldi"], "tags": ["O", "O"]},
}


@pytest.fixture
def task(tmp_path):
    """Reads a task of a kind; all splits hold the same lines, but for those that are given."""

    def read(kind, train=None, settings=None, **splits):
        for split in SPLITS:
            lines = splits.get(split) or train or [GOOD[kind], OTHER.get(kind, GOOD[kind])]
            write(tmp_path / f"{split}.jsonl", lines)
        return read_task("sample", TaskFiles(path=str(tmp_path), kind=kind, **(settings or {})))

    return read


def write(file: Path, lines):
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def test_labels_are_numbered_in_sorted_order_whatever_the_order_of_the_lines(task):
    found = task("classification", [OTHER["classification"], GOOD["classification"]])
    assert found.labels == ["idman", "siyasət"]
    assert [(one.text, one.label) for one in found.splits["train"]] == [("Seçki keçirildi", 1), ("Qol vuruldu", 0)]
    assert list(found.splits) == ["train", "validation", "test"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_lacks_is_refused_with_its_place_and_count(task, tmp_path, split):
    new = {"text": "Film çəkildi", "label": "mədəniyyət"}
    with refused(
        DataError, f'{tmp_path}/{split}.jsonl:2: label "mədəniyyət", of 2 {split} examples', "(idman, siyasət)"
    ):
        task("classification", **{split: [GOOD["classification"], new, new]})


def test_a_task_of_one_label_is_refused(task, tmp_path):
    with refused(DataError, f"{tmp_path}/train.jsonl:1: idman is the only label; expected two or more"):
        task("classification", [GOOD["classification"]])


@pytest.mark.parametrize("kind", ["classification", "pairs"])
def test_a_whole_number_is_a_label_by_its_digits(task, kind):
    lines = [GOOD[kind] | {"label": label} for label in (10, 2, "2")]
    found = task(kind, lines)
    assert found.labels == ["10", "2"]
    assert [one.label for one in found.splits["train"]] == [0, 1, 1]


def test_of_named_labels_numbers_are_their_places_and_texts_their_names(task):
    lines = [GOOD["classification"] | {"label": label} for label in (1, "mənfi", "0")]
    found = task("classification", lines, {"labels": ("mənfi", "müsbət", "bitərəf")})
    assert found.labels == ["mənfi", "müsbət", "bitərəf"]
    assert [one.label for one in found.splits["train"]] == [1, 0, 0]
    assert "no training example has bitərəf, of 3 labels" in found.notes


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (2, "label is 2; expected 0 to 1, the numbers of `labels`"),
        (-1, "label is -1; expected 0 to 1"),
        ("pis", 'label is "pis"; expected one of the labels mənfi, müsbət'),
        (True, "label is true; expected a string or a whole number"),
    ],
)
def test_a_label_that_is_not_among_the_named_is_refused(task, tmp_path, label, said):
    with refused(DataError, f"{tmp_path}/train.jsonl:1: {said}"):
        task("classification", [GOOD["classification"] | {"label": label}], {"labels": ("mənfi", "müsbət")})


BAD = [
    *(("classification", {"label": label}, "label is ", "expected a string or a whole number")
      for label in (None, ["siyasət"], {"az": "a"}, True, 1.0, "", " ", "\ud800")),
    *(("classification", {"text": text}, "text is ", "expected a string with something in it")
      for text in ("", " \n ", None, 7, ["a"], "a \udfff b")),
    ("classification", {"text": None, "mətn": "a"}, "text is null", "expected a string"),
    ("pairs", {"text_pair": " "}, 'text_pair is " "', "expected a string with something in it"),
    *(("regression", {"score": score}, "score is ", "expected a finite number")
      for score in (None, True, "çox", "nan", float("nan"), float("inf"), 10**400, [1.0])),
    ("regression", {"text_pair": None}, "text_pair is null", "expected a string"),
    ("tokens", {"tokens": []}, "tokens is an empty list", "expected a word or more"),
    ("tokens", {"tokens": ["Bakı", " "]}, 'word 2 in tokens is " "', "expected a string"),
    ("tokens", {"tokens": ["Bakı", 7]}, "word 2 in tokens is 7", "expected a string"),
    ("tokens", {"tokens": ["Bakı"]}, "2 tags of 1 words", "expected a tag for each word"),
    ("tokens", {"tags": {"a": 1}}, "tags is an object", "expected a list with a tag for each word"),
    ("tokens", {"tags": ["O", None]}, "a tag in tags is null", "expected a string"),
    ("tokens", {"tags": [0, 1]}, "tags holds numbers", "name what they stand for, from 0, in `labels`"),
    ("choice", {"choices": ["Bakı"]}, "1 answers", "expected two or more"),
    ("choice", {"choices": "Bakı"}, 'choices is "Bakı"', "expected a list of answers"),
    ("choice", {"choices": ["Bakı", ""]}, 'answer 2 in choices is ""', "expected a string"),
    *(("choice", {"label": label}, "label is ", "expected 0 to 2, or the right answer")
      for label in (3, -1, "3", "Kür", None, True, 1.0, ["Bakı"])),
    ("choice", {"choices": ["2", "1", "0"], "label": "0"}, 'label is "0", which is more than one answer', "its number"),
    ("choice", {"choices": ["Bakı", "Bakı"], "label": "Bakı"}, 'label is "Bakı", which is more than', "its number"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "found", "expected"), BAD)
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_no_example_is_refused_with_its_place(task, tmp_path, split, kind, change, found, expected):
    line = json.dumps(GOOD[kind] | change)
    with refused(DataError, f"{tmp_path}/{split}.jsonl:3: {found}", expected):
        task(kind, **{split: [GOOD[kind], "", line]})


@pytest.mark.parametrize(
    ("kind", "field", "setting"),
    [
        ("classification", "text", "text_field"),
        ("classification", "label", "label_field"),
        ("pairs", "text_pair", "pair_field"),
        ("regression", "score", "label_field"),
        ("tokens", "tokens", "text_field"),
        ("tokens", "tags", "label_field"),
        ("choice", "choices", "choices_field"),
    ],
)
def test_a_missing_field_is_refused_with_what_was_found_and_where_to_name_it(task, tmp_path, kind, field, setting):
    rest = {name: value for name, value in GOOD[kind].items() if name != field} | {"mənim": 1}
    with refused(DataError, f"{tmp_path}/train.jsonl:1: no field '{field}', found ", "mənim", f"`{setting}`"):
        task(kind, [rest])


def test_a_field_may_be_a_path_into_records_and_a_name_with_a_dot(task):
    lines = [{"doc": {"az": "Qol"}, "meta.label": label} for label in ("a", "b")]
    found = task("classification", lines, {"text_field": "doc.az", "label_field": "meta.label"})
    assert [one.text for one in found.splits["train"]] == ["Qol", "Qol"]


def test_several_fields_of_a_text_are_joined_by_a_line_end(task):
    lines = [{"text": "Qol", "body": "Vuruldu", "label": label} for label in "ab"]
    assert task("classification", lines, {"text_field": ("text", "body")}).splits["test"][0].text == "Qol\nVuruldu"


def test_a_pair_has_two_texts(task):
    one = task("pairs").splits["test"][1]
    assert (one.text, one.pair, one.label) == ("Yağış yağır", "Hava qurudur", 1)


def test_a_score_is_a_number_or_a_number_s_digits(task):
    found = task("regression", [GOOD["regression"] | {"score": score} for score in (1, -0.5, "4.25")])
    assert [one.label for one in found.splits["test"]] == [1.0, -0.5, 4.25]
    assert found.labels == []


def test_scores_of_texts_and_of_pairs_are_not_mixed(task, tmp_path):
    both = GOOD["regression"] | {"text_pair": "Hava yaşdır"}
    assert task("regression", [both]).splits["test"][0].pair == "Hava yaşdır"
    with refused(DataError, f"{tmp_path}/test.jsonl:2: no field 'text_pair', which 5 of 6 examples have"):
        task("regression", [both, both], test=[both, GOOD["regression"]])


def test_words_and_tags_may_be_texts(task):
    found = task("tokens", [{"tokens": " Bakı  gözəldir ", "tags": "B-LOC O"}, OTHER["tokens"]])
    assert found.splits["test"][0].text == ("Bakı", "gözəldir")
    assert (found.labels, found.splits["test"][0].label) == (["B-LOC", "O"], (0, 1))


def test_numbers_of_tags_stand_for_the_named_labels(task):
    lines = [GOOD["tokens"] | {"tags": [1, 0]}]
    found = task("tokens", lines, {"labels": ("O", "B-LOC", "I-LOC")})
    assert (found.labels, found.splits["test"][0].label) == (["O", "B-LOC", "I-LOC"], (1, 0))


def test_entities_that_begin_with_i_are_read_as_bio_and_counted(task, tmp_path):
    tags = ["I-LOC", "I-LOC", "I-PER", "B-PER", "I-PER", "O", "I-LOC"]
    iob1 = {"tokens": list("abcdefg"), "tags": tags}
    found = task("tokens", [OTHER["tokens"], iob1])
    names = [found.labels[number] for number in found.splits["train"][1].label]
    assert names == ["B-LOC", "I-LOC", "B-PER", "B-PER", "I-PER", "O", "B-LOC"]
    assert f"9 entities begin with I-, as IOB1 has it, the first in {tmp_path}/train.jsonl:2: read as B-" in found.notes
    assert found.has_entities
    known = task("tokens", [OTHER["tokens"], iob1], {"labels": ("O", "I-LOC", "I-PER", "B-PER")})
    assert known.labels == ["O", "I-LOC", "I-PER", "B-PER", "B-LOC"]


def test_good_bio_and_tags_of_other_kinds_stay_as_they_are(task):
    bio = {"tokens": list("abcd"), "tags": ["B-LOC", "I-LOC", "B-LOC", "O"]}
    assert not [note for note in task("tokens", [bio]).notes if "entities" in note]
    found = task("tokens", [{"tokens": ["a", "b"], "tags": ["I-X", "NOUN"]}])
    assert found.labels == ["I-X", "NOUN"]
    assert not found.has_entities


def test_answers_are_a_list_or_a_field_each_and_the_label_says_which(task):
    answers = {f"answer{number}": text for number, text in enumerate(["Gəncə", "Bakı", "Şəki"], start=1)}
    settings = {"choices_field": ("answer1", "answer2", "answer3"), "first_label": 1}
    found = task("choice", [answers | {"text": "Hansı?", "label": label} for label in (2, "2", "Bakı")], settings)
    assert [one.label for one in found.splits["test"]] == [1, 1, 1]
    assert found.splits["test"][0].choices == ("Gəncə", "Bakı", "Şəki")
    assert [one.label for one in task("choice").splits["test"]] == [1, 1]


def test_a_csv_of_each_kind_is_read_as_its_jsonl(tmp_path, task):
    (tmp_path / "csv").mkdir()
    for split in SPLITS:
        (tmp_path / "csv" / f"{split}.csv").write_text("text,text_pair,score\nYağış,Hava,3.5\nKür,Araz,1\n")
    found = read_task("sample", TaskFiles(path=str(tmp_path / "csv"), kind="regression"))
    lines = [{"text": "Yağış", "text_pair": "Hava", "score": 3.5}, {"text": "Kür", "text_pair": "Araz", "score": 1}]
    assert found.sha256 == task("regression", lines).sha256


@pytest.mark.parametrize("kind", GOOD)
def test_inputs_need_no_label_and_are_refused_as_examples_are(tmp_path, kind):
    label = TaskSettings(kind=kind).label_name
    line = {name: value for name, value in GOOD[kind].items() if name != label}
    write(tmp_path / "a.jsonl", [line, "", line, {"başqa": 1}])
    settings = TaskSettings(kind=kind)
    inputs = (unlabelled(where, record, settings) for where, record in rows(tmp_path / "a.jsonl", settings))
    first = next(inputs)
    assert first.text == (("Bakı", "gözəldir") if kind == "tokens" else line["text"])
    assert (first.pair, list(first.choices)) == (line.get("text_pair"), line.get("choices", []))
    assert first.label == ((0, 0) if kind == "tokens" else 0)
    assert next(inputs).where == f"{tmp_path}/a.jsonl:3"
    with refused(DataError, f"{tmp_path}/a.jsonl:4: no field", "found başqa"):
        next(inputs)


def test_a_tokens_task_has_one_field_of_words(tmp_path):
    with refused(DataError, "text_field: names 2 fields; expected one"):
        unlabelled("here", GOOD["tokens"], TaskSettings(kind="tokens", text_field=("tokens", "tags")))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("01-.OBI ə\ud800\n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["az", "text"]), inner, max_size=2),
    max_leaves=6,
)


@pytest.mark.parametrize("labels", [None, ("O", "B-LOC", "idman", "bəli")])
@pytest.mark.parametrize("kind", GOOD)
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.dictionaries(st.sampled_from(sorted(set().union(*GOOD.values()))), VALUES), max_size=3))
def test_whatever_a_record_holds_it_is_an_example_or_refused(task, tmp_path, kind, labels, changes):
    said = ""
    try:
        lines = [json.dumps(GOOD[kind] | change) for change in changes]
        task(kind, settings={"labels": labels}, train=[GOOD[kind], *lines])
    except DataError as error:
        said = str(error)
    assert not said or said.startswith(f"{tmp_path}/")
