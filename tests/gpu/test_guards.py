"""The guards on a GPU: they never wait for it, and an update that is withheld changes nothing there either."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from azneobert.bench.ranks import run_ranks
from azneobert.bench.synthetic import open_small_corpus
from azneobert.bench.variants import ABLATION, build_engine
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.guard import Judgements
from gpu.test_step import MODEL, corpus, pytestmark  # noqa: F401 - a fixture and the reason to skip


@pytest.mark.parametrize("name", ["deterministic", "zero2"])
def test_an_update_that_is_not_finite_is_withheld(name: str, corpus: Path) -> None:  # noqa: F811
    run_ranks(withholds, name, corpus, world=1)


def withholds(name: str, folder: Path) -> None:
    engine = build_engine(ABLATION[name], MODEL, 8, 2)
    loader = micro_batch_loader(
        open_small_corpus(folder), SampleRange(range(0, 160, 16), 8, 2, 0), workers=0, pin_memory=True
    )
    judgements = Judgements()
    for step, rate in enumerate([1e-3, 1e30], start=1):
        engine.step(loader, rate)
        judgements.add(step, engine.guard.judgement)
    before = [parameter.detach().clone() for parameter in engine.model.parameters()]
    for step in (3, 4, 5):
        engine.step(loader, 1e-3)
        judgements.add(step, engine.guard.judgement)
    found = list(judgements.arrived(wait=True))
    assert [(each.step, each.withheld, each.in_a_row) for each in found] == [
        (1, False, 0),
        (2, False, 0),
        (3, True, 1),
        (4, True, 2),
        (5, True, 3),
    ]
    assert all(torch.equal(one, other) for one, other in zip(before, engine.model.parameters(), strict=True))
    state = engine.gather()
    assert state is not None
    assert state.optimizer_step == 2
    assert all(tensor.isfinite().all() for tensor in state.weights.values())


def test_a_micro_batch_computed_twice_has_the_same_bits_and_nothing_waits(corpus: Path) -> None:  # noqa: F811
    run_ranks(repeats, corpus, world=1)


def repeats(folder: Path) -> None:
    engine = build_engine(ABLATION["deterministic"], MODEL, 8, 2)
    batches = list(
        micro_batch_loader(
            open_small_corpus(folder), SampleRange(range(0, 48, 16), 8, 2, 0), workers=0, pin_memory=True
        )
    )
    for repeat in (False, True):
        source = iter(batches)
        for _ in range(3):
            engine.step(source, 1e-4, repeat=repeat)[0].item()
    torch.cuda.synchronize()
    judgements = Judgements()
    source = iter(batches)
    torch.cuda.set_sync_debug_mode("error")
    for step in range(3):
        engine.step(source, 1e-4, repeat=True)
        judgements.add(step, engine.guard.judgement)
        list(judgements.arrived())
    torch.cuda.set_sync_debug_mode("default")
    later = list(judgements.arrived(wait=True))
    assert all(each.differing == 0 and not each.withheld for each in later)
    loss, norm = engine.probe(batches[0])
    assert 0 < loss < 20
    assert 0 < norm < 1e3
