"""Lines that many documents share are counted in bounded memory: never too high, too low by a known number at most."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azneobert.data import lines as lines_module
from azneobert.data.cleaning import CleaningReport, clean, content_hash
from azneobert.data.lines import RepeatedLines, is_looked_at
from azneobert.data.records import Records
from azneobert.recipe import Cleaning

MENU = "Əsas səhifə | Xəbərlər | Əlaqə"


def text(number: int, *more: str) -> str:
    return "\n".join([f"Səhər {number} kişi evə gəldi.", *more, f"Gecə {number} kişi evə getdi."])


def cleaned(texts: list[str], **changes):
    chosen = Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.5, language="any", **changes)
    report, lines = CleaningReport(), RepeatedLines()
    records = Records([str(number) for number in range(len(texts))], list(texts))
    return clean(records, chosen, report, lines), report, lines


def test_the_copies_of_a_line_beyond_so_many_documents_go() -> None:
    texts = [text(number, MENU) for number in range(10)]
    documents, report, lines = cleaned(texts, repeated_lines="drop", line_copies=4)
    assert documents.texts == texts[:4] + [text(number) for number in range(4, 10)]
    assert documents.words[4:] == [10] * 6
    assert documents.hashes[4] == content_hash(text(4).replace("\n", " "))
    assert report.lines == {"seen": 30, "repeated": 6}
    assert lines.most_frequent(4, False, 3) == [f"in 10 documents: {MENU}"]
    assert lines.most_frequent(10, False, 3) == []


def test_a_line_that_stands_twice_in_a_document_counts_once_and_goes_twice() -> None:
    documents, report, _ = cleaned([text(n, MENU, MENU) for n in range(3)], repeated_lines="drop", line_copies=2)
    assert documents.texts == [text(0, MENU, MENU), text(1, MENU, MENU), text(2)]
    assert report.lines["repeated"] == 2


def test_a_document_of_nothing_but_repeated_lines_goes() -> None:
    texts = [f"{MENU}\nBütün hüquqlar qorunur"] * 3
    documents, report, _ = cleaned(texts, repeated_lines="drop", line_copies=1)
    assert len(documents) == 1
    assert report.dropped["lines"] == 2
    assert report.documents == report.kept + sum(report.dropped.values())


def test_a_document_of_one_line_and_blank_and_very_long_lines_are_left_alone() -> None:
    long = "söz " * 300
    texts = [MENU] * 5 + [f"{long.strip()}\n\n{number} söz" for number in range(5)]
    documents, report, _ = cleaned(texts, repeated_lines="drop", line_copies=1)
    assert documents.texts == texts
    assert report.lines["repeated"] == 0


def test_by_default_lines_are_counted_in_a_sample_and_stay() -> None:
    texts = [text(number, MENU) for number in range(800)]
    documents, report, lines = cleaned(texts, line_copies=200)
    assert documents.texts == texts
    looked_at = sum(map(is_looked_at, documents.hashes))
    assert 60 < looked_at < 140
    assert report.lines == {"seen": 3 * 8 * looked_at, "repeated": 8 * (looked_at - 25)}
    assert lines.most_frequent(200, True, 3) == [f"in about {8 * looked_at} documents: {MENU}"]


def test_without_the_state_nothing_is_looked_for() -> None:
    chosen = Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.5, language="any", repeated_lines="drop")
    report = CleaningReport()
    assert len(clean(Records(["a"], [text(1)]), chosen, report)) == 1
    assert report.lines == {"seen": 0, "repeated": 0}


pieces = st.lists(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=8), max_size=8)


@given(parts=pieces, copies=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_a_count_is_never_too_high_and_too_low_by_the_number_of_parts_at_most(parts, copies: int) -> None:
    found, true = RepeatedLines(), Counter()
    for part in parts:
        for document in part:
            found.drop("\n".join(document), copies)
            true.update(set(document))
        for line, count in true.items():
            assert count - found.parts <= found.counts.get(line, 0) <= count
        found.end_part()
        assert json.loads(json.dumps(asdict(found))) == asdict(found)
        assert found.missed.keys() == found.counts.keys()


@given(parts=pieces, copies=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_an_ingest_that_goes_on_from_json_finds_the_same(parts, copies: int) -> None:
    whole, resumed = RepeatedLines(), RepeatedLines()
    for part in parts:
        for document in part:
            joined = "\n".join(document)
            assert whole.drop(joined, copies) == resumed.drop(joined, copies)
        whole.end_part()
        resumed.end_part()
        resumed = RepeatedLines(**json.loads(json.dumps(asdict(resumed))))
    assert asdict(whole) == asdict(resumed)


def test_memory_is_bounded_and_the_most_frequent_lines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "_MOST_LINES", 3)
    found = RepeatedLines()
    for line, count in zip("abcdef", (2, 9, 3, 9, 5, 2), strict=True):
        for number in range(count):
            found.drop(f"{line}\n{line}{number}", 100)
    found.end_part()
    assert found.counts == {"b": 9, "d": 9, "e": 5}
