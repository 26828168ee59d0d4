"""`azneobert bench loss`: the same steps with and without what makes them fast, and how far their losses part.

The yardstick is what bfloat16 itself does: the eager model in bfloat16 against the same steps in fp32.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from azneobert.bench.models import published_model, small_model
from azneobert.bench.ranks import run_ranks
from azneobert.bench.report import Row
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.bench.variants import ABLATION, Variant, build_engine
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.optim import learning_rate
from azneobert.recipe import Model

_SETTLED = 0.1  # the share of the steps, the last ones, whose mean losses are compared


@dataclass(frozen=True)
class Run:
    """One training whose losses are compared."""

    variant: Variant
    model: Model
    steps: int
    rows: int
    accumulation: int
    sequence_length: int


def bench_loss(names: list[str], steps: int, toy: bool, curves: Path | None = None) -> Iterator[Row]:
    """How far the losses of variants of ABLATION part from those in fp32, beside how far bfloat16 alone does.

    curves: a CSV file for the losses of every run.
    """
    eager = replace(ABLATION["head"], name="eager, bfloat16", compile=False, attention="auto" if toy else "fa2")
    exact = replace(eager, name="fp32", exact=True, attention="reference")
    model, rows, length = (small_model(), 8, 64) if toy else (published_model(), 16, 1024)
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_corpus(folder, model.vocab_size, length, documents=200 if toy else 8000)
        yardstick = None
        for variant in (exact, eager, *(ABLATION[name] for name in names)):
            chosen = replace(variant, compile=False, attention="auto") if toy else variant
            found[variant.name] = losses(Run(chosen, model, steps, rows, 1, length), folder)
            if curves is not None:
                write_curves(found, curves)
            if variant is not exact:
                yield _row(variant.name, found[exact.name], found[variant.name], yardstick)
            if variant is eager:
                yardstick = _gap(found[exact.name], found[eager.name])


def write_curves(found: dict[str, np.ndarray], file: Path) -> None:
    """A CSV of losses, a line a step and a column a run."""
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        table.writerow(["step", *found])
        table.writerows([step, *values] for step, values in enumerate(zip(*found.values(), strict=True), start=1))


def losses(run: Run, folder: Path) -> np.ndarray:
    """The loss of each step, trained in a process of its own."""
    run_ranks(_rank, run, folder, world=1)
    return np.asarray(json.loads((folder / "losses.json").read_text()))


def _rank(run: Run, folder: Path) -> None:
    micro_batch = run.rows // run.accumulation
    engine = build_engine(run.variant, run.model, micro_batch, run.accumulation)
    samples = SampleRange(range(0, run.steps * run.rows, run.rows), micro_batch, run.accumulation, 0)
    on_gpu = engine.world.device.type == "cuda"
    batches = micro_batch_loader(open_small_corpus(folder), samples, workers=0, pin_memory=on_gpu)
    warmup = max(1, run.steps // 10)
    found: list[Any] = [
        engine.step(batches, learning_rate(step, warmup, run.steps, 5e-4))[0].item() for step in range(run.steps)
    ]
    (folder / "losses.json").write_text(json.dumps(found))


def _gap(expected: np.ndarray, found: np.ndarray) -> float:
    """How far two curves of losses part: the median of the differences, which no single batch decides."""
    return float(np.median(np.abs(expected - found)))


def _row(what: str, expected: np.ndarray, found: np.ndarray, yardstick: float | None) -> Row:
    gap = _gap(expected, found)
    last = max(1, round(_SETTLED * len(expected)))
    end = float(found[-last:].mean() - expected[-last:].mean())
    note = (
        f"root mean square {np.sqrt(np.mean((expected - found) ** 2)):.1e}, "
        f"largest {np.abs(expected - found).max():.1e}; mean loss of the last {last} steps {found[-last:].mean():.5f}, "
        f"{end:+.1e} against {expected[-last:].mean():.5f}; first step {found[0] - expected[0]:+.1e}"
    )
    bar = "" if yardstick is None else f"<= {2 * yardstick:.1e}, twice bfloat16's own"
    met = None if yardstick is None else gap <= 2 * yardstick
    return Row(f"{what}: median of the losses' differences", f"{gap:.1e}", bar, met, note)
