"""What the stage ingest says of a collection, a line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from azneobert.data.cleaning import CleaningReport
from azneobert.recipe import Cleaning

Remarks = Callable[[CleaningReport, Cleaning], Iterator[str]]
SETTINGS = Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.5)


@pytest.fixture
def remarks(monkeypatch: pytest.MonkeyPatch) -> Remarks:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "pipelines")
    return importlib.import_module("ingest").remarks


def test_nothing_is_said_of_a_collection_in_which_nothing_is_odd(remarks: Remarks) -> None:
    report = CleaningReport(documents=9, kept=9, scripts={"latin": {"documents": 9, "mixed": 0}})
    report.examples = {"latin script": ["id-0: Salam (100.0% of its letters)"]}
    assert list(remarks(report, SETTINGS)) == []
    assert list(remarks(CleaningReport(), SETTINGS)) == []


def test_each_thing_is_said_with_its_share_and_examples(remarks: Remarks) -> None:
    report = CleaningReport(
        documents=100,
        first_malformed="a:1: bad",
        html=4,
        scripts={"cyrillic": {"documents": 3, "mixed": 1}, "latin": {"documents": 93, "mixed": 2}},
        lines={"seen": 1000, "repeated": 56},
        examples={
            "language": ["a: Баку (why)", "b: Киев (why)"],
            "latin script": ["c: x"],
            "cyrillic script": ["a: Баку"],
        },
    )
    assert list(remarks(report, SETTINGS)) == [
        "the first malformed record: a:1: bad",
        "HTML in 4 documents (4.0%; html: report)",
        "scripts of 96 documents: latin 96.9% (2 mixed), cyrillic 3.1% (1 mixed)",
        "lines in more than 100 documents: about 56 copies beyond those (5.6% of all lines; repeated_lines: report)",
        "cyrillic script: a: Баку",
        "language: a: Баку (why)",
        "language: b: Киев (why)",
    ]
    exact = SETTINGS.model_copy(update={"repeated_lines": "drop"})
    assert any(": 56 copies" in line for line in remarks(report, exact))
