"""`azneobert bench busy`: training a small model on a laptop's cores, alone and beside other work.

Each round tries every setting of OpenMP once, so that the machine's other work affects all settings alike. The baseline
is OpenMP's own setting, alone on the machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from azneobert.bench.report import Row
from azneobert.environment import SPINS

_BY_ITSELF = "300,000 rounds, as OpenMP by itself"
_OURS = f"{SPINS:,} rounds or none, as every stage chooses"
SETTINGS: dict[str, dict[str, str]] = {
    _BY_ITSELF: {"GOMP_SPINCOUNT": "300000"},
    _OURS: {},
    f"{SPINS:,} rounds": {"GOMP_SPINCOUNT": str(SPINS)},
    "no spinning": {"GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "300000"},
}
# Shares of the rate alone. The first is 12,000 of 35,000 tokens a second, the case that raised the question.
_BAR_BUSY, _BAR_ALONE = 0.34, 0.97
_ROW, _BATCH = 128, 8


@dataclass(frozen=True)
class Turns:
    """How often each setting has its turn, and how long it trains in each (s)."""

    rounds: int = 5
    seconds: float = 8.0


def bench_busy(turns: Turns) -> Iterator[Row]:
    """Tokens a second of the sample's model for each setting, as shares of the rate of OpenMP's own setting alone."""
    from azneobert.bench.synthetic import write_small_corpus

    rates: dict[tuple[str, bool], list[float]] = {(name, busy): [] for name in SETTINGS for busy in (False, True)}
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as scratch:
        write_small_corpus(Path(scratch), 2048, _ROW, documents=400)
        for _ in range(turns.rounds):
            for busy in (False, True):
                for name in SETTINGS:
                    with _other_work(busy):
                        rates[name, busy].append(_measured(scratch, turns.seconds, SETTINGS[name]))
    alone = statistics.median(rates[_BY_ITSELF, False])
    for (name, busy), found in rates.items():
        rate = statistics.median(found)
        ours = name == _OURS
        bar = _BAR_BUSY if busy else _BAR_ALONE
        yield Row(
            f"{name}, {'beside a busy process a core' if busy else 'alone'}",
            f"{rate / alone:.2f}",
            f">= {bar}" if ours else "",
            rate >= bar * alone if ours else None,
            f"{rate:,.0f} tokens/s, {min(found):,.0f} to {max(found):,.0f} in {len(found)} turns",
        )


def train_for(scratch: str, seconds: float) -> float:
    """Train the sample's model on random tokens. Returns tokens a second, without the first steps."""
    import torch

    from azneobert.bench.models import small_model, some_runtime, some_training
    from azneobert.bench.synthetic import open_small_corpus
    from azneobert.data.stream import SampleRange, micro_batch_loader
    from azneobert.engine.make import make_accelerator, make_engine
    from azneobert.model.backend import choose_backend
    from azneobert.model.encoder import build_model

    size = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 2048}
    config, runtime = small_model().model_copy(update=size), some_runtime("plain")
    backend = choose_backend(runtime, config, torch.device("cpu"), torch.float32)
    model = build_model(config, 1, torch.float32, backend)
    engine = make_engine(model, some_training(), runtime, make_accelerator("plain"), _BATCH, 1)
    samples = SampleRange(range(0, _BATCH * 1_000_000, _BATCH), _BATCH, 1, 0)
    batches = micro_batch_loader(open_small_corpus(Path(scratch)), samples, workers=0, pin_memory=False)
    for _ in range(5):
        engine.step(batches, 1e-4)
    steps, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        engine.step(batches, 1e-4)[0].item()
        steps += 1
    return steps * _BATCH * _ROW / taken


def _measured(scratch: str, seconds: float, setting: dict[str, str]) -> float:
    """Train in a process of its own, since OpenMP reads its settings once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    program = (
        "from azneobert.environment import quiet_barriers; quiet_barriers()\n"
        f"from azneobert.bench.busy import train_for; print('rate', train_for({scratch!r}, {seconds}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | setting, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split("rate ")[1])


@contextmanager
def _other_work(busy: bool) -> Iterator[None]:
    """While the block runs, keep each core busy with a process of its own."""
    count = len(os.sched_getaffinity(0)) if busy else 0
    others = [subprocess.Popen(["sha256sum", "/dev/zero"], stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
