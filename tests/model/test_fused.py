"""The fused blocks and head compute what the plain ones do: the algebra around the kernels, and their gradients.

The kernels themselves need a GPU; plain torch stands in for them here (tests/plain_kernels.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import plain_kernels
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from toy import lively, random_ids, toy_recipe

from azneobert.kernels import head
from azneobert.kernels.block import block_backward_op, block_op
from azneobert.kernels.flash import flash_attention_backward_op, flash_attention_op
from azneobert.kernels.head import head_loss_op
from azneobert.model.attention import flash_attention, reference
from azneobert.model.backend import Backend
from azneobert.model.encoder import MaskedLM
from azneobert.model.fused import fused_forward, fused_weights, in_fp8, in_rotated_pairs, in_turns
from azneobert.model.layers import Block, Encoder, Windows
from azneobert.recipe import Model

BF16, FP32 = torch.bfloat16, torch.float32
FUSED = Backend("fa4", flash_attention("fa4"), fused=True)
# Two rows: windows of one token, of some and of a whole row; then the repeated entries at the end.
STARTS, ROW = [0, 1, 9, 24, 48, 48, 48], 24
TOKENS = STARTS[-1]
SHAPES = {
    "two heads of 16": {},
    "four heads of 8": {"num_attention_heads": 4},
    "one head": {"num_attention_heads": 1},
    "a head of two": {"num_attention_heads": 16},
    "wide": {"hidden_size": 16, "intermediate_size": 192},
}


def model_of(**overrides: object) -> Model:
    # eps is as large as some squares, so that one left out would show.
    return toy_recipe({"model": {"rms_norm_eps": 1e-2, **overrides}}).model


def places() -> tuple[torch.Tensor, torch.Tensor]:
    """Positions, which restart in each window, and cu_seqlens."""
    positions = [place for first, last in pairwise(STARTS) for place in range(last - first)]
    return torch.tensor(positions), torch.tensor(STARTS, dtype=torch.int32)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model computes in fp32 whatever its dtype, it computes in float64: what differs then is a mistake."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def model_in_float64(**overrides: object) -> MaskedLM:
    model = lively(model_of(**overrides)).double()
    model.encoder.compute_dtype = torch.float64
    assert model.encoder.rotary.cos.dtype == torch.float64
    assert all((block.attention_norm.weight - 1).abs().max() > 0.1 for block in blocks_of(model.encoder))
    return model


def blocks_of(encoder: Encoder) -> list[Block]:
    return cast("list[Block]", list(encoder.blocks))


def stream_and_cotangent(encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual stream that takes a gradient, and what to weigh a result with before it is summed."""
    generator = torch.Generator().manual_seed(3)
    shape = TOKENS, encoder.config.hidden_size
    x, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (0.3 * x).requires_grad_(), weights


def plain_block(weights: dict[str, torch.Tensor], number: int, x_TD: torch.Tensor, config: Model) -> torch.Tensor:
    """A block as the fused kernels compute it, from the weights that they get."""
    position_ids, cu_seqlens = places()
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    size = config.hidden_size // heads
    qkv, out, gate_up, down = (weights[f"{number}.{name}"] for name in ("qkv", "out", "gate_up", "down"))

    rstd_T = (x_TD.square().mean(1) + eps).rsqrt()
    inverse = config.rope_theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    turn = torch.polar(torch.ones(TOKENS, 1, 1, size // 2).double(), position_ids[:, None, None, None] * inverse)
    projected = (rstd_T[:, None] * (x_TD @ qkv.T)).view(TOKENS, 3, heads, size // 2, 2)
    rotated = torch.view_as_real(torch.view_as_complex(projected[:, :2].contiguous()) * turn).flatten(3)
    mixed = reference(rotated[:, 0], rotated[:, 1], projected[:, 2].flatten(2), cu_seqlens, ROW)
    middle = x_TD + mixed.reshape(x_TD.shape) @ out.T

    middle_rstd = (middle.square().mean(1) + eps).rsqrt()
    gate, up = (middle_rstd[:, None] * (middle @ gate_up.T)).unflatten(1, (-1, 2)).unbind(2)
    return middle + (gate * gate.sigmoid() * up) @ down.T


def plain_blocks(model: MaskedLM, x_TD: torch.Tensor) -> torch.Tensor:
    weights = fused_weights(model.encoder, model.head.weight)
    for number in range(model.config.num_hidden_layers):
        x_TD = plain_block(weights, number, x_TD, model.config)
    return x_TD


def torch_blocks(model: MaskedLM, x_TD: torch.Tensor) -> torch.Tensor:
    position_ids, cu_seqlens = places()
    windows = Windows(cu_seqlens, ROW, *model.encoder.rotary(position_ids))
    for block in blocks_of(model.encoder):
        x_TD = block(x_TD, windows, reference)
    return x_TD


def of_blocks(model: MaskedLM, compute: Any) -> dict[str, torch.Tensor]:
    """The result of all blocks, and the gradients of their input and of all their parameters by name."""
    x_TD, cotangent = stream_and_cotangent(model.encoder)
    parameters = dict(model.encoder.blocks.named_parameters())
    result = compute(model, x_TD)
    gradients = torch.autograd.grad((result * cotangent).sum(), [x_TD, *parameters.values()])
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    return {"result": result.detach(), **dict(zip(["x_TD", *parameters], gradients, strict=True))}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("in_float64")
def test_a_block_of_folded_and_reordered_weights_is_the_block(shape: str) -> None:
    model = model_in_float64(**SHAPES[shape])
    torch.testing.assert_close(of_blocks(model, plain_blocks), of_blocks(model, torch_blocks), atol=1e-10, rtol=1e-9)


def of_logits(model: MaskedLM, compute: Any) -> dict[str, torch.Tensor]:
    """The logits of all tokens, and the gradients of all parameters by name."""
    logits = compute(random_ids(TOKENS, 1), *places(), ROW, torch.arange(TOKENS), None)
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad((logits * cotangent).sum(), list(parameters.values()))
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    return {"logits": logits.detach(), **dict(zip(parameters, gradients, strict=True))}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("in_float64")
def test_through_the_operations_of_all_blocks_go_the_values_and_gradients_of_the_model(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_kernels.stand_in(monkeypatch)
    model = model_in_float64(**SHAPES[shape])
    found = of_logits(
        model, lambda *inputs: fused_forward(model.encoder, fused_weights(model.encoder, model.head.weight), *inputs)
    )
    torch.testing.assert_close(found, of_logits(model, model), atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_a_fused_model_has_the_loss_and_the_gradients_of_a_plain_one(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_kernels.stand_in(monkeypatch)
    monkeypatch.setattr(head, "ROWS", 4)  # of nine, so that they come in three parts
    model = lively(model_of(tie_embeddings=tied))
    masked = torch.tensor([0, 1, 5, 11, 23, 24, 30, 41, 47])
    inputs = (random_ids(TOKENS, 1), *places(), ROW, masked, random_ids(len(masked), 2))
    found: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    for backend, results in ((FUSED, found), (Backend(), expected)):
        model.encoder.backend = backend
        model.zero_grad()
        loss = model(*inputs)
        loss.backward()
        results["loss"] = loss.detach()
        results |= {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    assert found["loss"].dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("in_float64")
def test_products_of_fp8_operands_are_the_others_but_for_the_rounding(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_kernels.stand_in(monkeypatch)
    monkeypatch.setattr(torch, "float8_e4m3fn", torch.float64)  # which rounds nothing
    model = model_in_float64(**SHAPES[shape])

    def computed(*inputs: Any) -> torch.Tensor:
        return fused_forward(model.encoder, fused_weights(model.encoder, model.head.weight), *inputs)

    expected = of_logits(model, computed)
    model.encoder.backend = replace(FUSED, fp8=True)
    torch.testing.assert_close(of_logits(model, computed), expected, atol=1e-10, rtol=1e-9)


def test_a_model_with_fp8_has_the_gradients_of_one_without_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_kernels.stand_in(monkeypatch)
    model = lively(model_of())
    model.encoder.compute_dtype = BF16
    masked = torch.arange(0, TOKENS, 5)
    found = []
    for fp8 in (False, True):
        model.encoder.backend = replace(FUSED, fp8=fp8)
        model.zero_grad()
        model(random_ids(TOKENS, 1), *places(), ROW, masked, random_ids(len(masked), 2)).backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})  # type: ignore[union-attr]
    errors = [float((found[1][name] - wide).norm() / wide.norm()) for name, wide in found[0].items()]
    assert 5e-3 < min(errors) <= max(errors) < 0.25


def test_a_matrix_in_fp8_uses_the_upper_half_of_the_range_and_is_scaled_by_a_power_of_two() -> None:
    matrices = [torch.randn(24, 8).to(BF16) * scale for scale in (1e-3, 1.0, 3e2, 7.0)]
    *scaled, scales = in_fp8(*matrices)
    for given, found, scale in zip([matrices[0], matrices[2], matrices[3].T], scaled, scales, strict=True):
        assert found.dtype == torch.float8_e4m3fn
        assert found.is_contiguous()
        assert scale.log2() % 1 == 0
        assert 224 <= found.float().abs().max() <= 448
        torch.testing.assert_close(found.float() / scale, given.float(), atol=2**-9 / scale.item(), rtol=2**-4)
    *scaled, scales = in_fp8(*(torch.zeros(2, 2, dtype=BF16) for _ in range(4)))
    assert all(torch.equal(found.float(), torch.zeros(2, 2)) for found in scaled)
    assert scales.isfinite().all()


def test_a_fused_model_without_targets_gives_the_logits_of_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_kernels.stand_in(monkeypatch)
    model = lively(model_of())
    inputs = (random_ids(TOKENS, 1), *places(), ROW, torch.tensor([3, 24, 46]))
    expected = model(*inputs)
    model.encoder.backend = FUSED
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("rows", [1, 4, 5, 12, 13])
def test_the_head_in_parts_is_the_head_at_once(rows: int, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_kernels.stand_in(monkeypatch)
    monkeypatch.setattr(head, "ROWS", 4)
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (torch.randn(n, 8, generator=generator).requires_grad_() for n in (rows, 30))
    targets = torch.randint(30, (rows,), generator=generator)
    loss = head_loss_op(hidden, weight, targets)[0]
    expected = torch.nn.functional.cross_entropy((hidden @ weight.T).double(), targets)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    found = torch.autograd.grad(loss * factor, [hidden, weight])
    torch.testing.assert_close(found, torch.autograd.grad(expected * factor, [hidden, weight]), atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("in_float64")
def test_flash_attention_s_gradient_is_that_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_kernels.stand_in(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    q, k, v, weights = (torch.randn(TOKENS, 2, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    _, cu_seqlens = places()
    found, expected = flash_attention("fa4")(q, k, v, cu_seqlens, ROW), reference(q, k, v, cu_seqlens, ROW)
    torch.testing.assert_close(found, expected)
    gradients, expected_gradients = (torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected))
    torch.testing.assert_close(gradients, expected_gradients)


def test_the_worked_example_beside_the_gradient_of_the_norm_is_right() -> None:
    x, weight = torch.tensor([[1.0, 7.0]]).double().requires_grad_(), torch.tensor([[3.0, 1.0]]).double()
    beside, dnormed = torch.tensor([[10.0, 20.0]]).double(), 5.0
    rstd = x.square().mean(1).rsqrt()
    product = x @ weight.T
    (exact,) = torch.autograd.grad(dnormed * (rstd[:, None] * product).sum() + (beside * x).sum(), x)
    assert exact.tolist() == [pytest.approx([12.8, 19.6])]
    correction = plain_kernels.norm_correction(dnormed * product.detach(), rstd.detach(), 2)
    assert correction.tolist() == [pytest.approx(-0.2)]
    found = plain_kernels.norm_backward(dnormed * rstd.detach()[:, None], weight, beside, x.detach(), correction)
    assert found.tolist() == [pytest.approx([12.8, 19.6])]
    assert ((found - beside) @ x.T).item() == pytest.approx(0.0, abs=1e-12)


# The order of rows


def test_the_rows_that_rotate_together_come_to_stand_side_by_side() -> None:
    # Row r of Q, K and V in two heads of four: 0 1 2 3 | 4 5 6 7, then K from 8, V from 16.
    rows = torch.arange(24.0)[:, None].expand(24, 8)
    turning = [0, 2, 1, 3, 4, 6, 5, 7]
    expected = [*turning, *(8 + row for row in turning), *range(16, 24)]
    assert in_rotated_pairs(rows, 2)[:, 0].tolist() == expected
    assert torch.equal(in_rotated_pairs(rows, 2), torch.tensor(expected).float()[:, None].expand(24, 8))


def test_the_rows_of_gate_and_up_come_to_stand_in_turns() -> None:
    rows = torch.arange(6.0)[:, None].expand(6, 2)
    assert torch.equal(in_turns(rows), torch.tensor([0.0, 3, 1, 4, 2, 5])[:, None].expand(6, 2))


@pytest.mark.parametrize("tied", [False, True])
def test_fused_weights_are_in_fp32_and_hold_the_norms_before_the_matrices(tied: bool) -> None:
    model = lively(model_of(tie_embeddings=tied))
    model.encoder.compute_dtype = BF16
    weights = fused_weights(model.encoder, model.head.weight)
    assert {weight.dtype for weight in weights.values()} == {FP32}
    block = blocks_of(model.encoder)[1]
    qkv, gate_up = (
        projection.weight @ norm.weight.diag()
        for projection, norm in ((block.qkv, block.attention_norm), (block.gate_up, block.ffn_norm))
    )
    assert torch.equal(weights["1.qkv"], in_rotated_pairs(qkv, block.heads))
    assert torch.equal(weights["1.gate_up"], in_turns(gate_up))
    assert weights["1.out"] is block.out.weight
    assert weights["1.down"] is block.down.weight
    assert weights["encoder.embedding.weight"] is model.encoder.embedding.weight
    assert weights["final_norm"] is model.encoder.final_norm.weight
    assert weights.get("head") is (None if tied else model.head.weight)


def test_fused_weights_are_the_model_s_where_it_is_fused_and_the_parameters_elsewhere() -> None:
    model = lively(model_of())
    parameters = dict(model.named_parameters())
    assert model.weights().keys() == parameters.keys()
    assert all(weight is parameters[name] for name, weight in model.weights().items())
    model.encoder.backend = FUSED
    assert model.weights().keys() == fused_weights(model.encoder, model.head.weight).keys()


@pytest.mark.parametrize("tied", [False, True])
def test_every_matrix_is_cast_once_but_the_embedding_whose_rows_are(tied: bool) -> None:
    model = lively(model_of(tie_embeddings=tied))
    blocks = [f"encoder.blocks.{n}.{name}.weight" for n in range(2) for name in ("qkv", "out", "gate_up", "down")]
    assert model.cast_names() == {*blocks, *([] if tied else ["head.weight"])}
    model.encoder.backend = FUSED
    blocks = [f"{n}.{name}" for n in range(2) for name in ("qkv", "out", "gate_up", "down")]
    assert model.cast_names() == {*blocks, *([] if tied else ["head"])}


# What the compiler is told about the operations


HIDDEN, HEADS, INNER, VOCAB, MASKED = 32, 4, 48, 300, 7


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


def described(tensors: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]


def block_inputs() -> tuple[Any, ...]:
    """Everything that `block_op` takes; what is differentiable takes a gradient."""
    shapes = [(3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER)]
    x, *weights = (torch.randn(shape).to(BF16).requires_grad_() for shape in [(TOKENS, HIDDEN), *shapes])
    tables = [torch.randn(TOKENS, HIDDEN // HEADS) for _ in range(2)]
    return x, torch.rand(TOKENS) + 0.5, *weights, *places(), *tables, ROW, HEADS, 1e4, 1e-5, "fa4"


BLOCK_OUTPUTS = [
    ((TOKENS, HIDDEN), BF16),
    ((TOKENS,), FP32),
    ((TOKENS, 3 * HIDDEN), BF16),
    ((TOKENS, HIDDEN), BF16),
    ((HEADS, TOKENS), FP32),
    ((TOKENS, HIDDEN), BF16),
    ((TOKENS,), FP32),
    ((TOKENS, 2 * INNER), BF16),
    ((TOKENS, INNER), BF16),
]


def block_backward_inputs() -> tuple[Any, ...]:
    x, rstd, *others = (value.detach() if torch.is_tensor(value) else value for value in block_inputs())
    saved = [torch.randn(shape).to(dtype) for shape, dtype in BLOCK_OUTPUTS[2:]]
    return torch.randn_like(x), x, rstd, *others[:8], *saved, ROW, HEADS, "fa4", None, None


def attention_inputs() -> tuple[Any, ...]:
    q, k, v = (torch.randn(TOKENS, HEADS, 8).to(BF16).requires_grad_() for _ in range(3))
    return q, k, v, places()[1], ROW, "fa4"


def attention_backward_inputs() -> tuple[Any, ...]:
    dout, q, k, v, out = (torch.randn(TOKENS, HEADS, 8).to(BF16) for _ in range(5))
    return dout, q, k, v, out, torch.randn(HEADS, TOKENS), places()[1], ROW, "fa4"


def head_inputs() -> tuple[Any, ...]:
    hidden, weight = (torch.randn(n, HIDDEN).to(BF16).requires_grad_() for n in (MASKED, VOCAB))
    return hidden, weight, torch.randint(VOCAB, (MASKED,))


def block_fp8_inputs() -> tuple[Any, ...]:
    x, rstd, *others = block_inputs()
    return x, rstd, *others, *in_fp8(*others[:4])


def block_backward_fp8_inputs() -> tuple[Any, ...]:
    *inputs, _, _ = block_backward_inputs()
    *_, down, scales = in_fp8(*inputs[3:7])
    return *inputs, down, scales


OPERATIONS: dict[str, tuple[Any, Any, list[Any]]] = {
    "block": (block_op, block_inputs, BLOCK_OUTPUTS),
    "block_backward": (
        block_backward_op,
        block_backward_inputs,
        [
            ((TOKENS, HIDDEN), BF16),
            ((3 * HIDDEN, HIDDEN), BF16),
            ((HIDDEN, HIDDEN), BF16),
            ((2 * INNER, HIDDEN), BF16),
            ((HIDDEN, INNER), BF16),
        ],
    ),
    "block_fp8": (block_op, block_fp8_inputs, BLOCK_OUTPUTS),
    "block_backward_fp8": (
        block_backward_op,
        block_backward_fp8_inputs,
        [
            ((TOKENS, HIDDEN), BF16),
            ((3 * HIDDEN, HIDDEN), BF16),
            ((HIDDEN, HIDDEN), BF16),
            ((2 * INNER, HIDDEN), BF16),
            ((HIDDEN, INNER), BF16),
        ],
    ),
    "flash_attention": (flash_attention_op, attention_inputs, [((TOKENS, HEADS, 8), BF16), ((HEADS, TOKENS), FP32)]),
    "flash_attention_backward": (
        flash_attention_backward_op,
        attention_backward_inputs,
        [((TOKENS, HEADS, 8), BF16)] * 3,
    ),
    "head_loss": (
        head_loss_op,
        head_inputs,
        [((), torch.float64), ((MASKED, HIDDEN), BF16), ((VOCAB, HIDDEN), BF16)],
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.usefixtures("fake")
def test_an_operation_on_nothing_gives_the_shapes_and_dtypes_that_it_announces(name: str) -> None:
    operation, inputs, outputs = OPERATIONS[name]
    assert described(operation(*inputs())) == outputs


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_changes_no_input_and_gives_what_it_gives_on_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_kernels.stand_in(monkeypatch)
    operation, inputs, outputs = OPERATIONS[name]
    given = inputs()
    before = [value.clone() if torch.is_tensor(value) else value for value in given]
    assert described(operation(*given)) == outputs
    for value, former in zip(given, before, strict=True):
        if torch.is_tensor(value):
            assert torch.equal(value.double(), former.double())
    # The schema's test multiplies its inputs, which torch does not do with numbers of 8 bits.
    schema = () if name.endswith("fp8") else ("test_schema",)
    torch.library.opcheck(operation, given, test_utils=(*schema, "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("name", ["block", "flash_attention", "head_loss"])
@pytest.mark.usefixtures("fake")
def test_a_gradient_flows_through_an_operation_on_nothing(name: str) -> None:
    operation, inputs, _ = OPERATIONS[name]
    given = inputs()
    operation(*given)[0].sum().backward()
    for value in given:
        if torch.is_tensor(value) and value.requires_grad:
            assert value.grad is not None
            assert described([value.grad]) == described([value])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.usefixtures("fake")
def test_every_parameter_of_a_fused_model_has_a_gradient_of_its_shape(tied: bool, dtype: torch.dtype) -> None:
    model = MaskedLM(model_of(tie_embeddings=tied), dtype, FUSED)
    masked = torch.randint(TOKENS, (MASKED,))
    model(torch.randint(VOCAB, (TOKENS,)), *places(), ROW, masked, torch.randint(VOCAB, (MASKED,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert described([parameter.grad]) == [(tuple(parameter.shape), FP32)], name
