"""The predicted memory of a step, against what autograd saves here and what GPUs were measured to take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import plain_kernels
import pytest
import torch

from azneobert.bench.models import published_model, small_model
from azneobert.data.stream import Batch
from azneobert.engine.micro_batches import masked_loss
from azneobert.engine.weights import StepWeights
from azneobert.kernels.head import ROWS
from azneobert.model import memory
from azneobert.model.attention import flash_attention
from azneobert.model.backend import REFERENCE, Backend
from azneobert.model.encoder import build_model
from azneobert.model.memory import StepMemory
from azneobert.recipe import Model

GIB = 2**30
FUSED = Backend("fa4", flash_attention("fa4"), fused=True)
TORCH = Backend("fa4", flash_attention("fa4"))
SHAPES = [(1, 32), (4, 128), (2, 256), (6, 64)]  # rows and their length


def published(blocks: Any, rows_of: int = 1024, engine: Any = "plain", processes: int = 1) -> StepMemory:
    """The published run on GPUs, which masks 20% of each row."""
    return StepMemory(published_model(), rows_of, round(0.2 * rows_of), 2, blocks, False, engine, processes)


@pytest.mark.parametrize(
    ("need", "rows", "measured"),
    [
        (published("fused"), 48, 34.4),
        (published("fused"), 144, 91.0),
        (published("fused", 4096), 12, 34.4),
        (published("fused", engine="zero2"), 48, 35.0),
        (published("fused", processes=2), 48, 35.5),
        (published("fused", engine="zero2", processes=2), 48, 33.8),
        (published("compiled"), 48, 41.7),
    ],
)
def test_the_prediction_is_what_was_measured_on_gpus(need: StepMemory, rows: int, measured: float) -> None:
    """docs/results/train.md: the published model, bfloat16, the allocator's peak in GiB."""
    assert need.peak_bytes(rows) / GIB == pytest.approx(measured, rel=0.1)


def test_gated_values_and_weights_of_a_step_are_what_the_version_before_them_did_not_keep() -> None:
    """It took 28.6 GiB for 48 rows, 56.7 for 96."""
    gated = 28 * 1024 * 2 * 2048
    for rows, measured in ((48, 28.6), (96, 56.7)):
        assert (published("fused").peak_bytes(rows) - rows * gated) / GIB == pytest.approx(measured, rel=0.1)


def test_the_head_holds_as_many_logits_as_its_kernel() -> None:
    assert memory.HEAD_ROWS == ROWS


@pytest.mark.parametrize(("rows", "length"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_torch_s_blocks_save_what_is_predicted(rows: int, length: int, dtype: torch.dtype, tied: bool) -> None:
    model = small_model(tied).model_copy(update={"hidden_size": 96, "num_attention_heads": 3, "num_hidden_layers": 3})
    need = needed(model, length, dtype, "eager", attention_mask=True)
    assert need.saved_bytes(rows) == pytest.approx(saved(model, dtype, REFERENCE, rows, length), rel=0.01)


@pytest.mark.parametrize(("rows", "length"), SHAPES)
def test_torch_s_blocks_save_no_mask_for_flash_attention(
    rows: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_kernels.stand_in(monkeypatch)
    need = needed(small_model(), length, torch.bfloat16, "eager")
    assert need.saved_bytes(rows) == pytest.approx(saved(small_model(), torch.bfloat16, TORCH, rows, length), rel=0.02)


@pytest.mark.parametrize(("rows", "length"), SHAPES)
def test_fused_blocks_save_what_is_predicted(rows: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_kernels.stand_in(monkeypatch)
    model = small_model().model_copy(update={"num_hidden_layers": 4})
    need = needed(model, length, torch.bfloat16, "fused")
    assert need.saved_bytes(rows) == pytest.approx(saved(model, torch.bfloat16, FUSED, rows, length), rel=0.05)


def test_compiled_blocks_save_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's partitioner keeps, which is the same wherever the code that it makes runs."""
    plain_kernels.stand_in(monkeypatch)
    compiled = torch.compile(masked_loss, backend="aot_eager_decomp_partition")
    torch._dynamo.reset()
    model = small_model().model_copy(update={"num_hidden_layers": 1})
    need = needed(model, 128, torch.bfloat16, "compiled")
    found = saved(model, torch.bfloat16, TORCH, 4, 128, compiled)
    torch._dynamo.reset()
    assert need.saved_bytes(4) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("blocks", ["fused", "compiled", "eager"])
def test_more_rows_take_more_and_none_fits_into_nothing(blocks: str) -> None:
    need = published(blocks)
    candidates = [8, 16, 32, 64, 128]
    peaks = [need.peak_bytes(rows) for rows in candidates]
    assert peaks == sorted(set(peaks))
    assert peaks[0] >= need.bytes_beside(8) > need.state_bytes()
    assert memory.largest_that_fits(need, candidates, peaks[3]) == 64
    assert memory.largest_that_fits(need, candidates, peaks[3] - 1) == 32
    assert memory.largest_that_fits(need, candidates, peaks[0] - 1) is None


def test_zero2_shares_the_state_and_ddp_does_not() -> None:
    need = published("fused")
    parameters = need.gradient_bytes()
    assert need.state_bytes() == 3 * parameters
    assert replace(need, processes=8).state_bytes() == 4 * parameters
    assert replace(need, processes=8, engine="zero2").state_bytes() == parameters + 3 * parameters // 8


def test_micro_batches_are_the_divisors_of_a_share() -> None:
    assert memory.micro_batches(12) == [1, 2, 3, 4, 6, 12]
    assert memory.micro_batches(12, 5) == [1, 2, 3, 4]


def needed(model: Model, length: int, dtype: torch.dtype, blocks: Any, *, attention_mask: bool = False) -> StepMemory:
    return StepMemory(model, length, length // 5, dtype.itemsize, blocks, attention_mask, "plain", 1)


def saved(
    config: Model, dtype: torch.dtype, backend: Backend, rows: int, length: int, compute: Any = masked_loss
) -> int:
    """The bytes of the distinct storages that a forward pass saves for its backward, without weights and tables."""
    model = build_model(config, 0, dtype, backend)
    weights = StepWeights(model.weights(), model.cast_names(), dtype)
    there = {storage_of(each) for each in (*weights.leaves.values(), *model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(storage_of(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute(model, batch_of(rows, length, config.vocab_size), weights.leaves)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in there)


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def batch_of(rows: int, length: int, vocabulary: int) -> Batch:
    """Rows of one window each, of which a fifth is masked."""
    tokens = torch.arange(rows * length)
    masked = torch.arange(length // 5).repeat(rows) + length * torch.arange(rows).repeat_interleave(length // 5)
    return Batch(
        tokens % vocabulary,
        tokens % length,
        torch.arange(0, rows * length + 1, length, dtype=torch.int32),
        length,
        masked,
        masked % vocabulary,
    )
