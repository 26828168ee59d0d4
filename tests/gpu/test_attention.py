"""The flash-attention kernels on a GPU against the reference in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch

from azneobert.model.attention import FLASH, Attention, choose_attention, obstacle_to_flash, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch"),
]

CUDA = torch.device("cuda")
BF16 = torch.bfloat16
ROW = 512
# Rows of many short documents, of one long one, of some and padding; no border but a row's is a multiple of a tile.
SHORT = [0, 1, 3, 10, 17, 18, 50, 61, 99, 131, 150, 177, 203, 255, 257, 300, 301, 333, 384, 400, 450, 470, 511]
STARTS = [*SHORT, 512, 1024, 1111, 1400, 1536]
HEADS = [(4, 32), (12, 64), (2, 128)]


@pytest.fixture(params=FLASH)
def kernel(request: pytest.FixtureRequest) -> Attention:
    """Each flash-attention kernel that runs here."""
    obstacle = obstacle_to_flash(request.param, CUDA, BF16)
    if obstacle:
        pytest.skip(f"{request.param} needs {obstacle}")
    name, attention = choose_attention(request.param, CUDA, BF16)
    assert name == request.param
    return attention


def random_tensors(heads: int, size: int) -> list[torch.Tensor]:
    """q, k, v and what a result is weighed with."""
    generator = torch.Generator().manual_seed(size)
    return [torch.randn(STARTS[-1], heads, size, generator=generator).to(CUDA, BF16) for _ in range(4)]


def starts_of(padding: int) -> torch.Tensor:
    return torch.tensor(STARTS + [STARTS[-1]] * padding, dtype=torch.int32, device=CUDA)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize(("heads", "size"), HEADS)
@pytest.mark.parametrize("padding", [0, 9])
def test_a_kernel_agrees_with_the_reference_in_float64(kernel: Attention, heads: int, size: int, padding: int) -> None:
    *values, weights = random_tensors(heads, size)
    quick = [x.clone().requires_grad_() for x in values]
    exact = [x.double().requires_grad_() for x in values]
    found = kernel(*quick, starts_of(padding), ROW)
    expected = reference(*exact, starts_of(0), ROW)
    assert (found.shape, found.dtype) == (expected.shape, BF16)
    # bfloat16 keeps 8 bits: a value near 1 is off by up to 2^-8 where it is stored, a gradient more than once.
    torch.testing.assert_close(found.double(), expected, atol=1.5e-2, rtol=1.6e-2)
    gradients = torch.autograd.grad(found, quick, weights)
    expected_gradients = torch.autograd.grad(expected, exact, weights.double())
    for gradient, exact_gradient in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, exact_gradient) < 2e-2


@pytest.mark.parametrize("rows", [4, 16])
def test_rows_of_one_window_each_agree_with_the_reference_too(kernel: Attention, rows: int) -> None:
    length = STARTS[-1] // rows
    starts = torch.arange(0, STARTS[-1] + 1, length, dtype=torch.int32, device=CUDA)
    *values, weights = random_tensors(12, 64)
    together = torch.stack(values, dim=1).requires_grad_()  # (T, 3, N, H), as a projection leaves them
    exact = together.detach().double().requires_grad_()
    found, expected = kernel(*together.unbind(1), starts, length), reference(*exact.unbind(1), starts, length)
    torch.testing.assert_close(found.double(), expected, atol=1.5e-2, rtol=1.6e-2)
    (gradient,) = torch.autograd.grad(found, together, weights)
    (exact_gradient,) = torch.autograd.grad(expected, exact, weights.double())
    assert relative_error(gradient, exact_gradient) < 2e-2


def test_a_kernel_takes_q_k_and_v_side_by_side_as_a_projection_leaves_them(kernel: Attention) -> None:
    *values, _ = random_tensors(4, 64)
    together = torch.stack(values, dim=1)  # (T, 3, N, H)
    assert torch.equal(kernel(*together.unbind(1), starts_of(0), ROW), kernel(*values, starts_of(0), ROW))


def test_a_kernel_lets_no_gradient_cross_the_border_of_a_window(kernel: Attention) -> None:
    inputs = [x.requires_grad_() for x in random_tensors(2, 64)[:3]]
    kernel(*inputs, starts_of(3), ROW)[18:50].float().square().sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad[18:50].any()
        assert not tensor.grad[:18].any()
        assert not tensor.grad[50:].any()


def test_a_kernel_compiles_into_one_graph_and_gives_the_same(kernel: Attention) -> None:
    *values, weights = random_tensors(4, 64)
    starts = starts_of(3)

    def scaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return kernel(q, k, v, starts, ROW) * 2

    results = []
    for compute in (scaled, torch.compile(scaled, fullgraph=True)):
        inputs = [x.clone().requires_grad_() for x in values]
        out = compute(*inputs)
        results.append([out.detach(), *torch.autograd.grad(out, inputs, weights)])
    plain, compiled = results
    assert torch.equal(plain[0], compiled[0])
    for gradient, expected in zip(compiled[1:], plain[1:], strict=True):
        assert relative_error(gradient, expected) < 5e-3  # dq may be added in any order


def test_auto_takes_the_first_kernel_that_runs_here() -> None:
    running = [name for name in FLASH if obstacle_to_flash(name, CUDA, BF16) is None]
    assert choose_attention("auto", CUDA, BF16)[0] == [*running, "reference"][0]
