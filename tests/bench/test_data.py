"""The benchmark runs, whole and at toy size, through its command; what it measures is not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from azneobert.bench.measure import in_child, private_bytes
from azneobert.bench.report import Row, as_markdown
from azneobert.bench.synthetic import sentences, write_documents
from azneobert.data.sources import open_source
from azneobert.recipe import FileSource

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_command_measures_every_row_and_writes_the_table(tmp_path: Path) -> None:
    page = tmp_path / "data.md"
    command = [str(Path(sys.executable).with_name("azneobert")), "bench", "data", "--quick", "--output", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    subjects = (
        "ingest",
        "find duplicates",
        "tokenize",
        "row plan",
        "stream",
        "private memory",
        "first batch",
        "shuffle",
    )
    for subject in subjects:
        assert any(row.startswith(f"| {subject}") for row in rows), subject
    assert not any(" yes |" in row for row in rows), "toy sizes meet no bar"
    assert "azneobert bench data --quick" in page.read_text(encoding="utf-8")


def test_a_page_says_what_anyone_needs_to_run_it_again() -> None:
    page = as_markdown("Data", [Row("ingest", "21 MB/s", ">= 20 MB/s", True, "200 MB")])
    assert "| ingest | 21 MB/s | >= 20 MB/s | yes | 200 MB |" in page
    for fact in ("commit `", "cores of ", "GiB of memory", "Python 3."):
        assert fact in page


def test_documents_have_the_size_asked_for_and_carry_damage_and_repeats(tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    written = write_documents(file, sentences(ROOT / "data/sample/wikipedia"), 10**6, 35.0)
    texts = [text for records in open_source(FileSource(path=str(file))).read() for text in records.texts if text]
    assert written == sum(len(text.encode()) for text in texts)
    assert 10**6 <= written < 1.2 * 10**6
    assert len(set(texts)) < len(texts)
    assert any("ә" in text for text in texts)


@pytest.mark.long
def test_memory_and_time_are_those_of_the_work() -> None:
    small, large = in_child(touch, 1), in_child(touch, 200)
    assert large.peak - small.peak > 150 * 2**20
    assert large.result - small.result > 150 * 2**20


def touch(mebibytes: int) -> int:
    """Write to so much memory, and say what this process has of its own."""
    import os

    held = np.ones(mebibytes << 20, dtype=np.uint8)
    return private_bytes(os.getpid()) + 0 * int(held[0])
