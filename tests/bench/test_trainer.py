"""The benchmark of the trainer at toy size, through its command; what it measures is not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_command_measures_both_engines_and_writes_the_table(tmp_path: Path) -> None:
    page = tmp_path / "trainer.md"
    command = [sys.executable, "-c", "from azneobert.cli import main; main()", "bench", "trainer", "--quick"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "text"), "--output", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| pretrain")]
    assert len(rows) == 2
    for row, case in zip(rows, ("plain on 1 process", "zero2 on 2 processes"), strict=True):
        assert case in row
        assert "1 checkpoints and 1 evaluations in that time" in row
        assert " yes |" not in row, "toy sizes meet no bar"
