"""The mistakes that a model was surest of, for a person to read."""

import csv

import pytest

from azneobert.finetuning.mistakes import worst_mistakes, write_mistakes
from azneobert.finetuning.task import UNSEEN, Example, Task


def test_the_surest_mistakes_come_first_and_right_predictions_not_at_all():
    task = Task("reviews", "classification", ["mənfi", "müsbət"], {})
    examples = [Example(f"test.jsonl:{n}", f"mətn {n}", n % 2) for n in range(6)]
    rows = worst_mistakes(task, examples, [1, 1, 1, 0, 0, 0], [0.6, 0.99, 0.9, 0.7, 0.98, 0.55123], 3)
    assert rows == [
        {"where": "test.jsonl:2", "text": "mətn 2", "gold": "mənfi", "predicted": "müsbət", "confidence": 0.9},
        {"where": "test.jsonl:3", "text": "mətn 3", "gold": "müsbət", "predicted": "mənfi", "confidence": 0.7},
        {"where": "test.jsonl:0", "text": "mətn 0", "gold": "mənfi", "predicted": "müsbət", "confidence": 0.6},
    ]


def test_a_text_is_one_line_and_shortened_and_its_pair_is_seen():
    task = Task("nli", "pairs", ["no", "yes"], {})
    (row,) = worst_mistakes(task, [Example("here", "bir\n iki " + "ü" * 500, 0, pair="  üç\tdörd ")], [1], [0.9])
    text, pair = row["text"].split(" || ")
    assert text.startswith("bir iki üüü")
    assert text.endswith("ü…")
    assert len(text) == 200
    assert pair == "üç dörd"


def test_a_number_is_judged_by_its_distance():
    task = Task("similarity", "regression", [], {})
    examples = [Example(str(n), "mətn", float(n), pair="cüt") for n in range(4)]
    rows = worst_mistakes(task, examples, [0.5, -4.00004, 2.0, 3.1], [0.0] * 4, 2)
    assert [(row["where"], row["gold"], row["predicted"], row["distance"]) for row in rows] == [
        ("1", 1.0, -4.0, 5.0),
        ("0", 0.0, 0.5, 0.5),
    ]


def test_of_a_sentence_the_words_are_named_that_differ():
    task = Task("names", "tokens", ["B-LOC", "B-PER", "O"], {})
    example = Example("here", ("Heydər", "Bakı", "gözəldir"), (1, 0, 2))
    (row,) = worst_mistakes(task, [example], [(0, 0, 0)], [0.8])
    assert row == {
        "where": "here",
        "text": "Heydər Bakı gözəldir",
        "words": "Heydər: B-PER -> B-LOC; gözəldir: O -> B-LOC",
        "confidence": 0.8,
    }


def test_a_word_that_the_model_did_not_see_is_said_to_have_no_token():
    task = Task("pos", "tokens", ["ADJ", "NOUN"], {})
    (row,) = worst_mistakes(task, [Example("here", ("bakı", "§"), (1, 1))], [(1, UNSEEN)], [0.0])
    assert row["words"] == "§: NOUN -> no token"


def test_answers_are_shown_by_what_they_say():
    task = Task("questions", "choice", [], {})
    (row,) = worst_mistakes(task, [Example("here", "Paytaxt?", 1, choices=("Gəncə", "Bakı"))], [0], [0.8])
    assert (row["gold"], row["predicted"]) == ("Bakı", "Gəncə")


@pytest.mark.parametrize("text", ['Bakı, "şəhər"', "=1+1; ə"])
def test_the_file_reads_back_as_it_was_written(tmp_path, text):
    rows = [{"where": "a:1", "text": text, "gold": "no", "predicted": "yes", "confidence": 0.5}]
    write_mistakes(rows, tmp_path / "mistakes.csv")
    with (tmp_path / "mistakes.csv").open(newline="", encoding="utf-8") as opened:
        assert list(csv.DictReader(opened)) == [{**rows[0], "confidence": "0.5"}]


def test_without_mistakes_the_file_is_a_table_of_no_lines(tmp_path):
    write_mistakes([], tmp_path / "mistakes.csv")
    assert (tmp_path / "mistakes.csv").read_text(encoding="utf-8").splitlines() == ["where,text"]
