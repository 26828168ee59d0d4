"""The checkpoint benchmarks run at toy size, write their table, and can fail."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import run_command

from azneobert.bench.resume import Case, Setting, bench_resume, row_of


@pytest.mark.long
def test_the_command_measures_every_row_and_writes_the_table(tmp_path: Path) -> None:
    code, printed, errors = run_command(["bench", "checkpoint", "--quick", "--output", "table.md"], tmp_path)
    assert code == 0, errors
    table = (tmp_path / "table.md").read_text()
    assert len(re.findall(r"^\| (?!what|---)", table, flags=re.MULTILINE)) == 8
    for row in ("stall of the loop", "zero2 on 1", "read back, hash and copy", "convert ZeRO-2", "at step 100,000"):
        assert row in table
        assert row in printed
    assert "nan" not in table


@pytest.mark.long
def test_a_run_is_resumed_from_its_own_checkpoint_by_another_engine() -> None:
    [row] = bench_resume([Case("plain 1 -> zero2 1", Setting("plain", 1), Setting("zero2", 1))])
    assert row.met
    assert row.figure != "identical"  # ZeRO-2 clips by another sum, so this has compared two runs


def test_a_row_is_not_met_where_the_last_bit_of_one_weight_differs() -> None:
    setting = Setting("plain", 1)
    case = Case("plain 1 -> plain 1", setting, setting)
    whole = {"losses": [5.0] * 30, "state": {"weights.w": torch.ones(3)}}
    resumed = {"losses": [5.0] * 20, "state": {"weights.w": torch.ones(3)}}
    assert row_of(case, whole, resumed).met
    resumed["state"] = {"weights.w": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    assert not row_of(case, whole, resumed).met
    other = replace(case, after=Setting("zero2", 1))
    assert row_of(other, whole, resumed).met
    assert not row_of(other, whole, {**resumed, "losses": [5.0] * 19 + [5.00001]}).met
