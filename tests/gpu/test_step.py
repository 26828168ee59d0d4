"""A whole step on a GPU: it never waits for the GPU, and what makes it fast does not change what is learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from azneobert.bench.models import small_model
from azneobert.bench.ranks import run_ranks
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.bench.variants import ABLATION, REFERENCE, Variant, build_engine
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.optim import learning_rate
from azneobert.model.attention import choose_attention
from azneobert.model.backend import obstacle_to_fused

MODEL = small_model().model_copy(update={"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 768})
LENGTH = 128
STEPS = 30

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch"),
]


def obstacle() -> str | None:
    device, dtype = torch.device("cuda"), torch.bfloat16
    return obstacle_to_fused(MODEL, choose_attention("auto", device, dtype)[0], device, dtype)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random tokens in rows packed with short documents, so that batches differ in their number of windows."""
    folder = tmp_path_factory.mktemp("corpus")
    lengths = np.random.default_rng(1).integers(4, 40, 3000)
    write_small_corpus(folder, MODEL.vocab_size, LENGTH, lengths=lengths)
    return folder


@pytest.mark.parametrize("name", ["fused", "deterministic", "head"])
def test_a_step_never_waits_for_the_gpu(name: str, corpus: Path) -> None:
    run_ranks(steps_without_waiting, name, corpus, obstacle() is None, world=1)


def steps_without_waiting(name: str, corpus: Path, fused: bool) -> None:
    """In a process of its own: steps over some batches to warm up, then the same where a wait is an error."""
    engine = build_engine(ABLATION[name], MODEL, 8, 2)
    assert engine.model.encoder.backend.fused == (fused and name != "head")
    samples = SampleRange(range(0, 48, 16), 8, 2, 0)
    batches = list(micro_batch_loader(open_small_corpus(corpus), samples, workers=0, pin_memory=True))
    assert len({batch.sizes[0] for batch in batches}) > 1
    for _ in range(2):
        source = iter(batches)
        for _ in range(3):
            engine.step(source, 1e-4)[0].item()
    torch.cuda.synchronize()
    source = iter(batches)
    torch.cuda.set_sync_debug_mode("error")
    found = [figure for _ in range(3) for figure in engine.step(source, 1e-4)]
    torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(figure.item()) for figure in found)


def test_in_that_mode_a_wait_is_an_error() -> None:
    one = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            one.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_fused_losses_part_from_those_in_fp32_no_further_than_twice_as_far_as_eager_ones(corpus: Path) -> None:
    needed = obstacle()
    if needed:
        pytest.skip(f"needs {needed}")
    exact = replace(REFERENCE, exact=True, attention="reference")
    expected = losses(exact, corpus)
    assert len(expected) == STEPS
    assert expected[-5:].mean() < expected[0] - 0.1  # it has learnt something

    def gap(variant: Variant) -> float:
        return float(np.sqrt(np.mean((losses(variant, corpus) - expected) ** 2)))

    assert 0 < gap(ABLATION["fused"]) <= 2 * gap(REFERENCE)


def losses(variant: Variant, corpus: Path) -> np.ndarray:
    """The loss of each step, trained in a process of its own."""
    run_ranks(train, variant, corpus, world=1)
    return np.load(corpus / "losses.npy")


def train(variant: Variant, corpus: Path) -> None:
    engine = build_engine(variant, MODEL, 16, 1)
    samples = SampleRange(range(0, STEPS * 16, 16), 16, 1, 0)
    batches = micro_batch_loader(open_small_corpus(corpus), samples, workers=0, pin_memory=True)
    rates = [learning_rate(step, STEPS // 10, STEPS, 5e-4) for step in range(STEPS)]
    np.save(corpus / "losses.npy", [engine.step(batches, rate)[0].item() for rate in rates])
