"""FlashAttention on a GPU against a float64 loop over windows, forward and backward."""

from __future__ import annotations

import pytest
import torch

from azneobert.model.attention import choose_attention, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch"),
]

STARTS = [0, 17, 128, 131, 256, 384, 400, 512]
ROW = 128


def random_qkv(heads: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [torch.randn(STARTS[-1], heads, size, generator=generator).to("cuda", torch.bfloat16) for _ in range(3)]


@pytest.mark.parametrize(("heads", "size"), [(12, 64), (4, 32), (2, 16)])
@pytest.mark.parametrize("padding", [0, 9])
def test_fa2_agrees_with_the_reference_in_float64(heads: int, size: int, padding: int) -> None:
    name, fa2 = choose_attention("fa2", torch.device("cuda"), torch.bfloat16)
    assert name == "fa2"
    starts = torch.tensor(STARTS + [STARTS[-1]] * padding, dtype=torch.int32, device="cuda")
    weights = torch.randn(STARTS[-1], heads, size, device="cuda")
    quick = [x.clone().requires_grad_() for x in random_qkv(heads, size)]
    exact = [x.double().requires_grad_() for x in random_qkv(heads, size)]
    found = fa2(*quick, starts, ROW)
    expected = reference(*exact, starts, ROW)
    # bfloat16 keeps 8 bits: a value near 1 is off by up to 2^-8 where it is stored, a gradient more than once.
    torch.testing.assert_close(found.double(), expected, atol=1.5e-2, rtol=1.6e-2)
    gradients = torch.autograd.grad((found.float() * weights).sum(), quick)
    expected_gradients = torch.autograd.grad((expected * weights.double()).sum(), exact)
    for gradient, exact_gradient in zip(gradients, expected_gradients, strict=True):
        error = (gradient.double() - exact_gradient).norm() / exact_gradient.norm()
        assert error < 2e-2


def test_fa2_lets_no_gradient_cross_the_border_of_a_window() -> None:
    _, fa2 = choose_attention("fa2", torch.device("cuda"), torch.bfloat16)
    inputs = [x.requires_grad_() for x in random_qkv(2, 64)]
    starts = torch.tensor(STARTS, dtype=torch.int32, device="cuda")
    fa2(*inputs, starts, ROW)[17:128].float().square().sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None
        assert tensor.grad[17:128].any()
        assert not tensor.grad[:17].any()
        assert not tensor.grad[128:].any()


def test_auto_takes_fa2_on_a_gpu_in_bfloat16() -> None:
    assert choose_attention("auto", torch.device("cuda"), torch.bfloat16)[0] == "fa2"
