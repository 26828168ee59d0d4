"""The fused kernels on a Hopper GPU against plain torch in float64, one by one and as a whole model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import plain_kernels
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from toy import random_ids

from azneobert.bench.models import small_model
from azneobert.engine.make import order_sums
from azneobert.kernels import head
from azneobert.kernels.head import head_loss_op
from azneobert.model.attention import choose_attention
from azneobert.model.backend import Backend, obstacle_to_fused
from azneobert.model.encoder import MaskedLM, build_model
from azneobert.model.layers import Rotary
from azneobert.recipe import Model

CUDA = torch.device("cuda")
BF16 = torch.bfloat16
# Heads and their size; one number of heads of each kind that a kernel takes together: four, two and one.
HEADS = [(4, 32), (6, 32), (12, 64), (3, 64), (6, 128)]
TOKENS = [1000, 72]  # no multiple of a tile; less than one
INNER = 320
THETA, EPS = 1e4, 1e-5


def model_of(heads: int, size: int, vocab_size: int = 512, tie_embeddings: bool = False) -> Model:
    changes = {
        "hidden_size": heads * size,
        "num_attention_heads": heads,
        "intermediate_size": 480,
        "vocab_size": vocab_size,
        "initializer_range": 0.05,
        "tie_embeddings": tie_embeddings,
    }
    return small_model().model_copy(update=changes)


def lacking() -> str:
    """What the fused kernels need and this machine has not, in words."""
    if not torch.cuda.is_available():
        return "a CUDA device: none is visible to torch"
    if importlib.util.find_spec("triton") is None:
        return "the package triton, which is not installed"
    attention = choose_attention("auto", CUDA, BF16)[0]
    return obstacle_to_fused(model_of(4, 64), attention, CUDA, BF16) or ""


LACKING = lacking()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(LACKING), reason=f"needs {LACKING}")]


class Random:
    """Random tensors on the GPU, the same each time."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(1)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = BF16) -> torch.Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).to(CUDA, dtype)

    def rstd(self, tokens: int) -> torch.Tensor:
        return (torch.rand(tokens, generator=self._generator) + 0.5).to(CUDA)


@pytest.fixture
def random() -> Random:
    return Random()


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def assert_near(found: torch.Tensor, exact: torch.Tensor, bound: float | None = None) -> None:
    """By the norm of the difference: a bf16 result is rounded once, an fp32 one hardly at all."""
    assert exact.dtype == torch.float64
    assert torch.isfinite(found).all()
    error = relative_error(found, exact)
    assert error < (bound or (1e-2 if found.dtype == BF16 else 1e-5)), error


def exact(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


def summed(sums_TP: torch.Tensor) -> torch.Tensor:
    """Partial sums, whatever the parts, as one; bfloat16 would be no sum of squares."""
    assert sums_TP.dtype in (torch.float32, torch.float64)
    return sums_TP.sum(1)


# Epilogues of matrix products


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("heads", "size"), HEADS)
def test_the_projection_is_normed_and_rotated(tokens: int, heads: int, size: int, random: Random) -> None:
    from azneobert.kernels import epilogues

    hidden = heads * size
    x, rstd, weight = random(tokens, hidden), random.rstd(tokens), random(3 * hidden, hidden, scale=0.05)
    positions = (torch.arange(tokens, device=CUDA) % 700).float()
    # Each kernel reads frequencies of its own making: QuACK's are turns in two parts, the stand-in's radians.
    frequencies = epilogues.rotation_frequencies(heads, size, THETA, CUDA)
    exact_frequencies = plain_kernels.rotation_frequencies(heads, size, THETA, CUDA)
    found = epilogues.project_rotated(x, rstd, weight, positions, frequencies)
    assert found.dtype == BF16
    assert_near(found, plain_kernels.project_rotated(*exact(x, rstd, weight, positions), exact_frequencies))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("inner", [128, 768, 2048])
@pytest.mark.parametrize("hidden", [128, 192, 768])
def test_a_residual_is_added_and_squares_are_summed(tokens: int, hidden: int, inner: int, random: Random) -> None:
    from azneobert.kernels import epilogues

    x, weight, residual = random(tokens, inner), random(hidden, inner, scale=0.05), random(tokens, hidden)
    found, squares = epilogues.project_residual(x, weight, residual)
    expected, exact_squares = plain_kernels.project_residual(*exact(x, weight, residual))
    assert found.dtype == BF16
    assert_near(found, expected)
    assert_near(summed(squares), summed(exact_squares))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("hidden", [128, 192, 768])
def test_gate_and_up_are_multiplied(tokens: int, hidden: int, random: Random) -> None:
    from azneobert.kernels import epilogues

    x, rstd, weight = random(tokens, hidden), random.rstd(tokens), random(2 * INNER, hidden, scale=0.05)
    found = epilogues.project_gated(x, rstd, weight)
    expected = plain_kernels.project_gated(*exact(x, rstd, weight))
    for tensor, exact_tensor in zip(found, expected, strict=True):
        assert tensor.dtype == BF16
        assert_near(tensor, exact_tensor)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("hidden", [128, 192, 768])
def test_the_way_back_through_gate_and_up(tokens: int, hidden: int, random: Random) -> None:
    from azneobert.kernels import epilogues

    dout, weight = random(tokens, hidden), random(hidden, INNER, scale=0.05)
    product, rstd = random(tokens, 2 * INNER), random.rstd(tokens)
    found, sums = epilogues.gated_backward(dout, weight, product, rstd)
    expected, exact_sums = plain_kernels.gated_backward(*exact(dout, weight, product, rstd))
    assert found.dtype == BF16
    assert_near(found, expected)
    # The sigmoid may be the approximate one of the GPU, of 11 bits: a sum of what it made is less exact than fp32.
    assert_near(summed(sums), summed(exact_sums), bound=1e-3)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("inner", "hidden"), [(2 * INNER, 128), (576, 192), (2304, 768)])
def test_the_way_back_through_a_projection(tokens: int, inner: int, hidden: int, random: Random) -> None:
    from azneobert.kernels import epilogues

    dproduct, weight = random(tokens, inner), random(inner, hidden, scale=0.05)
    assert_near(epilogues.back(dproduct, weight), plain_kernels.back(*exact(dproduct, weight)))
    inputs = dproduct, weight, random(tokens, hidden), random(tokens, hidden), random(tokens, dtype=torch.float32)
    found = epilogues.norm_backward(*inputs)
    assert found.dtype == BF16
    assert_near(found, plain_kernels.norm_backward(*exact(*inputs)))


# Products of 8-bit operands


def in_fp8(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    return (tensor.float() * scale).to(torch.float8_e4m3fn)


WEIGHT_SCALE = 512.0


@pytest.mark.parametrize("tokens", [*TOKENS, 1])
@pytest.mark.parametrize("hidden", [128, 192, 768])
def test_rows_in_fp8_are_the_nearest_there_are(tokens: int, hidden: int, random: Random) -> None:
    from azneobert.kernels import rows

    x, weight_scale = random(tokens, hidden, scale=3), torch.tensor(WEIGHT_SCALE, device=CUDA)
    rstd = x.float().square().mean(1).rsqrt()
    for kernel, arguments in (("normed_fp8", (x, rstd, weight_scale)), ("rows_fp8", (x, weight_scale))):
        found, *factors = getattr(rows, kernel)(*arguments)
        expected, *exact_factors = getattr(plain_kernels, kernel)(*arguments)
        assert found.dtype == torch.float8_e4m3fn
        assert torch.equal(found.float(), expected.float()), kernel
        for factor, exact_factor in zip(factors, exact_factors, strict=True):
            assert_near(factor, exact_factor.double())


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("hidden", [128, 192, 768])
def test_products_of_fp8_operands_are_exact_but_for_their_result(tokens: int, hidden: int, random: Random) -> None:
    from azneobert.kernels import epilogues

    x, weight = in_fp8(random(tokens, hidden), 16), in_fp8(random(2 * INNER, hidden, scale=0.05), WEIGHT_SCALE)
    unit, raw = random.rstd(tokens) / (16 * WEIGHT_SCALE), random.rstd(tokens) / (16 * WEIGHT_SCALE)
    found = epilogues.project_gated_fp8(x, unit, raw, weight)
    for tensor, exact_tensor in zip(found, plain_kernels.project_gated_fp8(x, unit, raw, weight), strict=True):
        assert tensor.dtype == BF16
        assert_near(tensor, exact_tensor.double())

    dout, down = in_fp8(random(tokens, hidden), 16), in_fp8(random(INNER, hidden, scale=0.05), WEIGHT_SCALE)
    product, rstd = random(tokens, 2 * INNER), random.rstd(tokens)
    dproduct, sums = epilogues.gated_backward_fp8(dout, unit, down, product, rstd)
    expected, exact_sums = plain_kernels.gated_backward_fp8(dout, unit, down, product, rstd)
    assert_near(dproduct, expected.double())
    assert_near(summed(sums), summed(exact_sums).double(), bound=1e-3)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("heads", "size"), HEADS)
def test_the_projection_of_fp8_operands_is_rotated(tokens: int, heads: int, size: int, random: Random) -> None:
    from azneobert.kernels import epilogues

    hidden = heads * size
    x, weight = in_fp8(random(tokens, hidden), 16), in_fp8(random(3 * hidden, hidden, scale=0.05), WEIGHT_SCALE)
    unit = random.rstd(tokens) / (16 * WEIGHT_SCALE)
    positions = (torch.arange(tokens, device=CUDA) % 700).float()
    found = epilogues.project_rotated(
        x, unit, weight, positions, epilogues.rotation_frequencies(heads, size, THETA, CUDA)
    )
    exact_frequencies = plain_kernels.rotation_frequencies(heads, size, THETA, CUDA)
    assert found.dtype == BF16
    assert_near(found, plain_kernels.project_rotated(x, unit, weight, positions, exact_frequencies).double())


# Between matrix products


@pytest.mark.parametrize("tokens", [1000, 72, 1])
@pytest.mark.parametrize("parts", [1, 4, 6])
def test_partial_sums_become_the_root_and_its_gradient(tokens: int, parts: int, random: Random) -> None:
    from azneobert.kernels import rows

    sums, rstd = random(tokens, parts, dtype=torch.float32), random.rstd(tokens)
    assert_near(rows.norm_correction(sums, rstd, 768), plain_kernels.norm_correction(*exact(sums, rstd), 768))
    squares = sums.square() * 100
    assert_near(rows.rms_from_sums(squares, 768, 1e-2), plain_kernels.rms_from_sums(squares.double(), 768, 1e-2))


@pytest.mark.parametrize("tokens", [1000, 72, 1])
@pytest.mark.parametrize(("heads", "size"), HEADS)
def test_a_gradient_is_turned_back(tokens: int, heads: int, size: int, random: Random) -> None:
    from azneobert.kernels import rows

    gradient, rotated = (random(tokens, 3, heads, size) for _ in range(2))
    rstd = random.rstd(tokens)
    positions = torch.arange(tokens, device=CUDA) % 700
    rotary = Rotary(size, 1024, THETA).to(CUDA)
    found, expected = gradient.clone(), gradient.double()
    correction = rows.unrotate_(found, rotated, positions, rotary.cos, rotary.sin, rstd)
    exact_correction = plain_kernels.unrotate_(
        expected, rotated.double(), positions, *exact(rotary.cos, rotary.sin, rstd)
    )
    assert_near(found, expected)
    assert_near(correction, exact_correction)


# The head


@pytest.mark.parametrize("vocabulary", [512, 4096])
@pytest.mark.parametrize("rows", [1000, 300, 7])
def test_the_head_in_parts_gives_loss_and_gradients(
    rows: int, vocabulary: int, random: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "ROWS", 300)  # four parts, one, and less than one
    hidden, weight = random(rows, 256).requires_grad_(), random(vocabulary, 256, scale=0.1).requires_grad_()
    targets = random_ids(rows, 3, vocabulary).to(CUDA)
    loss = head_loss_op(hidden, weight, targets)[0]
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = F.cross_entropy(exact_inputs[0] @ exact_inputs[1].T, targets)
    assert loss.dtype == torch.float64
    assert abs(loss.item() - expected.item()) < 5e-3
    found = torch.autograd.grad(loss * 0.25, [hidden, weight])
    for gradient, exact_gradient in zip(found, torch.autograd.grad(expected * 0.25, exact_inputs), strict=True):
        assert_near(gradient, exact_gradient)


# The whole model

ROW = 256
STARTS = [0, 1, 9, 40, 41, 130, 200, 256, 512, 600, 700, 768, 768, 768]


def inputs(vocabulary: int) -> tuple[Any, ...]:
    """Three rows of short documents, of one long one, and of some; a fifth of their tokens masked."""
    tokens = STARTS[-1]
    positions = torch.tensor([place for first, last in pairwise(STARTS) for place in range(last - first)])
    starts, masked = torch.tensor(STARTS, dtype=torch.int32), torch.arange(2, tokens, 5)
    ids, targets = random_ids(tokens, 1, vocabulary), random_ids(len(masked), 2, vocabulary)
    placed = [tensor.to(CUDA) for tensor in (ids, positions, starts, masked, targets)]
    return *placed[:3], ROW, *placed[3:]


def with_uneven_norms(model: MaskedLM) -> MaskedLM:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.to(CUDA)


def fused_model(config: Model) -> MaskedLM:
    name, attention = choose_attention("auto", CUDA, BF16)
    return with_uneven_norms(build_model(config, 3, BF16, Backend(name, attention, fused=True)))


def plain_model_in_float64(config: Model) -> MaskedLM:
    return with_uneven_norms(build_model(config, 3, torch.float64)).double()


def loss_and_gradients(model: MaskedLM) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(*inputs(model.config.vocab_size))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.item(), {name: gradient for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("heads", "size", "vocabulary"), [(8, 32, 512), (4, 64, 4096), (2, 128, 2048)])
def test_a_fused_model_has_the_loss_and_gradients_of_a_plain_one_in_float64(
    heads: int, size: int, vocabulary: int, tied: bool
) -> None:
    config = model_of(heads, size, vocab_size=vocabulary, tie_embeddings=tied)
    model = fused_model(config)
    loss, gradients = loss_and_gradients(model)
    expected, exact_gradients = loss_and_gradients(plain_model_in_float64(config))
    assert abs(loss - expected) < 5e-3
    assert gradients.keys() == exact_gradients.keys() == dict(model.named_parameters()).keys()
    errors = {name: relative_error(gradients[name], exact_gradients[name]) for name in gradients}
    assert not {name: error for name, error in errors.items() if not error < 3e-2}


@pytest.fixture
def sums_in_one_order() -> Iterator[None]:
    """Deterministic, but without filling memory that was not written yet, as a run is."""
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    order_sums(True)
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    order_sums(False)
    torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


@pytest.mark.parametrize(("heads", "size"), [(8, 32), (4, 64), (2, 128)])
@pytest.mark.usefixtures("sums_in_one_order")
def test_two_passes_of_a_deterministic_model_are_equal_to_the_last_bit(heads: int, size: int) -> None:
    model = fused_model(model_of(heads, size, vocab_size=512))
    loss, gradients = loss_and_gradients(model)
    first = {name: gradient.clone() for name, gradient in gradients.items()}
    for _ in range(3):
        again, gradients = loss_and_gradients(model)
        assert again == loss
        assert all(torch.equal(gradients[name], first[name]) for name in first)
