"""Tokens a second on a GPU: the same however often they are read, although steps are only queued in between.

The step is the published one. Of a short step the reading itself is a part, since it empties the queue.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from azneobert.bench.models import published_model
from azneobert.bench.ranks import run_ranks
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.bench.variants import ABLATION, build_engine
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.training.meter import Feed, Meter

MODEL = published_model()
LENGTH, ROWS, ACCUMULATION, STEPS = 1024, 48, 6, 20

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch"),
]


def test_a_reading_every_step_and_every_twentieth_agree_within_one_percent(tmp_path: Path) -> None:
    lengths = np.full(4000, LENGTH - 2)
    write_small_corpus(tmp_path, MODEL.vocab_size, LENGTH, lengths=lengths)
    run_ranks(rates, tmp_path, world=1)
    found = json.loads((tmp_path / "rates.json").read_text())
    # In turns, so that a clock that falls as the GPU warms up meets both alike.
    often, seldom = (float(np.median(found[every])) for every in ("1", "20"))
    assert seldom == pytest.approx(often, rel=0.01), found


def rates(folder: Path) -> None:
    batch = ROWS * ACCUMULATION
    engine = build_engine(ABLATION["head"], MODEL, ROWS, ACCUMULATION)
    samples = SampleRange(range(0, 10**9, batch), ROWS, ACCUMULATION, 0)
    loader = micro_batch_loader(open_small_corpus(folder), samples, workers=2, pin_memory=True)
    feed = Feed(loader)
    for _ in range(5):
        engine.step(feed, 1e-4)[0].item()
    found: dict[int, list[float]] = {1: [], 20: []}
    for every in (1, 20, 1, 20):
        meter = Meter(MODEL, 0.2, feed, torch.device("cuda"), 1)
        torch.cuda.synchronize()
        meter.start(0)
        for step in range(1, STEPS + 1):
            loss, _ = engine.step(feed, 1e-4)
            if step % every == 0:
                loss.item()
                found[every].append(meter.read(step * batch * LENGTH)["train/tokens_per_second"])
    loader.close()
    (folder / "rates.json").write_text(json.dumps(found))
