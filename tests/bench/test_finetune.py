"""The benchmark of fine-tuning, whole and at toy size, through its command; what it measures is not asserted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy import ROOT, run_command


@pytest.mark.long
def test_the_command_measures_every_row_and_writes_the_table(tmp_path: Path) -> None:
    options = ["--quick", "--task", str(ROOT / "data/sample/punctuation"), "--output", "table.md"]
    code, printed, errors = run_command(["bench", "finetune", *options], tmp_path)
    assert code == 0, errors
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!what|---)(.*?) \| (.*?) \|", table, flags=re.MULTILINE)
    assert [what for what, _ in rows] == [
        "a training by `Trainer` alone, tested",
        "the same through this project",
        "through this project, over `Trainer` alone",
    ]
    assert all(what in printed for what, _ in rows)
    plain, ours, ratio = (float(figure.removesuffix(" s")) for _, figure in rows)
    assert abs(ours - ratio * plain) < 0.2
    assert " yes |" not in table, "toy sizes meet no bar"
