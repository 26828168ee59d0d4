"""`bench loss` trains at toy size, and a curve that parts too far does not meet its bar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from azneobert.bench import loss_compare
from azneobert.bench.loss_compare import Run, bench_loss
from azneobert.bench.report import Row


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(bench_loss(["fused"], steps=10, toy=True))


def test_the_yardstick_is_a_run_that_differs_by_rounding_and_has_no_bar(rows: list[Row]) -> None:
    yardstick = rows[0]
    assert yardstick.what.startswith("the same run, its batches divided otherwise")
    assert (yardstick.bar, yardstick.met) == ("", None)
    assert 0 < float(yardstick.figure) < 1e-4
    assert "mean loss of the last 1 steps" in yardstick.note


def test_a_variant_is_held_against_twice_the_yardstick(rows: list[Row]) -> None:
    yardstick, variant = rows
    assert variant.what.startswith("+ our kernels")
    assert variant.bar == f"<= {2 * float(yardstick.figure):.1e}, twice the first row"
    assert variant.met  # on a CPU it is computed by the same kernels


def curves(monkeypatch: pytest.MonkeyPatch, gap: float) -> list[Run]:
    """Losses of 200 steps: the eager run, itself divided otherwise by 1e-3 apart, and a variant by `gap`."""
    asked: list[Run] = []

    def losses(run: Run, folder: Path) -> np.ndarray:
        asked.append(run)
        eager = np.linspace(6.0, 4.0, 200)
        apart = gap if run.variant.name != "eager" else 1e-3 * (run.accumulation == 2)
        return eager + apart * np.resize([1.0, -1.0], 200)

    monkeypatch.setattr(loss_compare, "losses", losses)
    return asked


@pytest.mark.parametrize(("gap", "met"), [(1.9e-3, True), (2.1e-3, False)])
def test_a_curve_that_parts_more_than_twice_as_far_does_not_meet_the_bar(
    gap: float, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = curves(monkeypatch, gap)
    found = list(bench_loss(["fused", "deterministic"], steps=200, toy=True))
    assert [row.met for row in found] == [None, met, met]
    assert [row.figure for row in found] == ["1.0e-03", f"{gap:.1e}", f"{gap:.1e}"]
    assert "mean loss of the last 20 steps" in found[1].note
    assert [run.accumulation for run in asked] == [1, 2, 1, 1]
    assert len({(run.model, run.steps, run.rows, run.sequence_length) for run in asked}) == 1
    assert asked[-1].variant.deterministic
