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


def test_the_yardstick_is_what_bfloat16_does_and_has_no_bar(rows: list[Row]) -> None:
    yardstick = rows[0]
    assert yardstick.what.startswith("eager, bfloat16")
    assert (yardstick.bar, yardstick.met) == ("", None)
    assert 1e-5 < float(yardstick.figure) < 1e-1
    assert "mean loss of the last 1 steps" in yardstick.note


def test_a_variant_is_held_against_twice_the_yardstick(rows: list[Row]) -> None:
    yardstick, variant = rows
    assert variant.what.startswith("+ our kernels")
    assert variant.bar == f"<= {2 * float(yardstick.figure):.1e}, twice bfloat16's own"
    assert variant.met  # on a CPU it is computed by the same kernels


def curves(monkeypatch: pytest.MonkeyPatch, gap: float) -> list[Run]:
    """Losses of 200 steps: those in fp32, those in bfloat16 1e-3 apart, and a variant's by `gap`."""
    asked: list[Run] = []

    def losses(run: Run, folder: Path) -> np.ndarray:
        asked.append(run)
        exact = np.linspace(6.0, 4.0, 200)
        apart = {"fp32": 0.0, "eager, bfloat16": 1e-3}.get(run.variant.name, gap)
        return exact + apart * np.resize([1.0, -1.0], 200)

    monkeypatch.setattr(loss_compare, "losses", losses)
    return asked


@pytest.mark.parametrize(("gap", "met"), [(1.9e-3, True), (2.1e-3, False)])
def test_a_curve_that_parts_more_than_twice_as_far_does_not_meet_the_bar(
    gap: float, met: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = curves(monkeypatch, gap)
    found = list(bench_loss(["fused", "deterministic"], 200, True, tmp_path / "curves.csv"))
    assert [row.met for row in found] == [None, met, met]
    assert [row.figure for row in found] == ["1.0e-03", f"{gap:.1e}", f"{gap:.1e}"]
    assert "mean loss of the last 20 steps" in found[1].note
    assert [run.variant.exact for run in asked] == [True, False, False, False]
    assert len({(run.model, run.steps, run.rows, run.sequence_length) for run in asked}) == 1
    assert asked[-1].variant.deterministic
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == 'step,fp32,"eager, bfloat16",+ our kernels,+ every sum in one order'
    assert (len(lines), lines[1].split(",")[:2]) == (201, ["1", "6.0"])
