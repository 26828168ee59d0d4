"""The benchmark of tracking runs, whole and at toy size, through its command; what it measures is not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_command_measures_every_row_and_writes_the_table(tmp_path: Path) -> None:
    page = tmp_path / "tracking.md"
    command = [sys.executable, "-c", "from azneobert.cli import main; main()", "bench", "tracking", "--quick"]
    done = subprocess.run(
        [*command, "--output", str(page)], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    for subject in (
        "hand a step",
        "48,000 figures into SQLite",
        "a step of Python beside",
        "what the training process",
    ):
        assert any(row.startswith(f"| {subject}") for row in rows), subject
    assert not any(" yes |" in row for row in rows), "toy sizes meet no bar"
