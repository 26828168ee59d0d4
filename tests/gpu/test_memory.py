"""The predicted memory of a step against the allocator's peak, and the search for a micro-batch, on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from azneobert.bench.models import small_model, some_runtime
from azneobert.bench.ranks import run_ranks
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.bench.variants import ABLATION, REFERENCE, Variant, build_engine, runtime_of
from azneobert.data.stream import SampleRange, Stream, micro_batch_loader
from azneobert.engine.gpu import prepare_gpu
from azneobert.engine.interface import World
from azneobert.model.attention import choose_attention
from azneobert.model.backend import Backend, choose_backend, obstacle_to_fused
from azneobert.model.encoder import build_model
from azneobert.model.memory import StepMemory, blocks_of, micro_batches
from azneobert.recipe import Runtime
from azneobert.training.device_memory import Memory
from azneobert.training.micro_batch import rehearse, rows_by_trial

# Large enough that what libraries take for themselves, some 50 MB, is no part of the comparison.
MODEL = small_model().model_copy(
    update={"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 8}
)
LENGTH = 512
GIB = 2**30

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random tokens in rows of one document each."""
    folder = tmp_path_factory.mktemp("corpus")
    write_small_corpus(folder, MODEL.vocab_size, LENGTH, lengths=np.full(600, LENGTH - 2))
    return folder


def needed(stream: Stream, backend: Backend, runtime: Runtime) -> StepMemory:
    blocks = blocks_of(runtime, backend.attention_name, fused=backend.fused)
    mask = backend.attention_name == "reference"
    return StepMemory(MODEL, LENGTH, stream.masks_per_row, 2, blocks, mask, "plain", 1)


@pytest.mark.parametrize("rows", [32, 128])
@pytest.mark.parametrize(
    "variant", [ABLATION["fused"], ABLATION["head"], REFERENCE], ids=["fused", "compiled", "eager"]
)
def test_a_step_takes_what_is_predicted(variant: Variant, rows: int, corpus: Path) -> None:
    if variant == ABLATION["fused"]:
        device, dtype = torch.device("cuda"), torch.bfloat16
        obstacle = obstacle_to_fused(MODEL, choose_attention("auto", device, dtype)[0], device, dtype)
        if obstacle:
            pytest.skip(f"needs {obstacle}")
    run_ranks(take_steps, variant, rows, corpus, world=1)


def take_steps(variant: Variant, rows: int, corpus: Path) -> None:
    engine = build_engine(variant, MODEL, rows, 2)
    stream = open_small_corpus(corpus)
    samples = SampleRange(range(0, 3 * 2 * rows, 2 * rows), rows, 2, 0)
    batches = micro_batch_loader(stream, samples, workers=0, pin_memory=True)
    for _ in range(3):
        assert np.isfinite(engine.step(batches, 1e-4)[0].item())
    need = needed(stream, engine.model.encoder.backend, runtime_of(variant))
    assert torch.cuda.max_memory_allocated() == pytest.approx(need.peak_bytes(rows), rel=0.1)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_search_ends_with_the_largest_that_fits_and_leaves_no_trace(compiled: bool, corpus: Path) -> None:
    run_ranks(search, compiled, corpus, world=1)


def search(compiled: bool, corpus: Path) -> None:
    """On a GPU of which this process may have 4 GiB, and is told that it has 8: the first trials do not fit."""
    prepare_gpu()
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(4 * GIB / torch.cuda.get_device_properties(device).total_memory)
    runtime = some_runtime("plain", compiled)
    backend = choose_backend(runtime, MODEL, device, torch.bfloat16)
    model = build_model(MODEL, 1, torch.bfloat16, backend)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    generators = torch.get_rng_state(), torch.cuda.get_rng_state()
    stream = open_small_corpus(corpus)
    need = needed(stream, backend, runtime)
    candidates = micro_batches(288)
    memory = Memory(8 * GIB, 8 * GIB)
    found = rows_by_trial(model, runtime, stream, World(0, 1, device), need, candidates, memory)
    assert found is not None
    rows, taken = found
    assert 0 < taken <= 4 * GIB
    assert all(torch.equal(before[name], weight.cpu()) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert torch.equal(generators[1], torch.cuda.get_rng_state())
    assert torch.cuda.max_memory_allocated() < GIB

    def fits(count: int) -> bool:
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        return rehearse(model, runtime, stream.packed_batch(0, count), need, int(0.05 * memory.total))

    assert fits(rows)
    assert not fits(candidates[candidates.index(rows) + 1])


def test_where_not_even_one_row_fits_there_is_none(corpus: Path) -> None:
    run_ranks(search_in_vain, corpus, world=1)


def search_in_vain(corpus: Path) -> None:
    prepare_gpu()
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(GIB / 4 / torch.cuda.get_device_properties(device).total_memory)
    runtime = some_runtime("plain")
    backend = choose_backend(runtime, MODEL, device, torch.bfloat16)
    stream = open_small_corpus(corpus)
    need = needed(stream, backend, runtime)
    model = build_model(MODEL, 1, torch.bfloat16, backend)
    memory = Memory(GIB // 4, GIB // 4)
    assert rows_by_trial(model, runtime, stream, World(0, 1, device), need, [1, 2, 4], memory) is None
