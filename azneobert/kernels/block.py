"""A whole block as one operation forward and one backward: matrix products, with all else in their epilogues.

What is saved between the two is the residual stream, the rotated projection, the mixed values, the product of gate and
up, and the gated values: 21 KB a token and layer at the published size. Suffixes as in model/layers.py.

Three of the products can take operands of 8 bits (e4m3) where others take bfloat16: qkv and gate-up forward, and the
gradient back through down. Their rows are small beside the results, so that rounding them to 8 bits costs less than the
products gain. The other products stay in bfloat16: their rows would have to be read and written once more.
"""

from __future__ import annotations

from typing import Any

import torch

from azneobert.kernels.flash import flash_kernel


@torch.library.custom_op("azneobert::block", mutates_args=())
def block_op(
    x_TD: torch.Tensor,
    rstd_T: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    position_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cos_PH: torch.Tensor,
    sin_PH: torch.Tensor,
    max_seqlen: int,
    heads: int,
    theta: float,
    eps: float,
    kernel: str,
    qkv_fp8: torch.Tensor | None = None,
    gate_up_fp8: torch.Tensor | None = None,
    down_fp8: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """The block's output and its inverse root mean square, then what the backward needs.

    x_TD, rstd_T: the residual stream and its inverse root mean square. qkv (3D, D) and gate_up (2F, D) hold the weight
    of the norm before them; the rows of q and k stand in rotated pairs, those of gate and up in turns. The last four
    are those of `in_fp8` in model/fused.py, or all None.
    """
    from azneobert.kernels import epilogues
    from azneobert.kernels.rows import normed_fp8, rms_from_sums

    tokens, hidden = x_TD.shape
    frequencies = epilogues.rotation_frequencies(heads, hidden // heads, theta, x_TD.device)
    if qkv_fp8 is None or scales is None:
        rotated = epilogues.project_rotated(x_TD, rstd_T, qkv, position_ids.float(), frequencies)
    else:
        normed, unit_T, _ = normed_fp8(x_TD, rstd_T, scales[0])
        rotated = epilogues.project_rotated(normed, unit_T, qkv_fp8, position_ids.float(), frequencies)
    q_TNH, k_TNH, v_TNH = rotated.view(tokens, 3, heads, hidden // heads).unbind(1)
    mixed, lse = flash_kernel(kernel).forward(q_TNH, k_TNH, v_TNH, cu_seqlens, max_seqlen)
    mixed = mixed.view(tokens, hidden)
    middle, squares = epilogues.project_residual(mixed, out, x_TD)
    middle_rstd = rms_from_sums(squares, hidden, eps)
    if gate_up_fp8 is None or scales is None:
        product, gated = epilogues.project_gated(middle, middle_rstd, gate_up)
    else:
        normed, unit_T, raw_T = normed_fp8(middle, middle_rstd, scales[1])
        product, gated = epilogues.project_gated_fp8(normed, unit_T, raw_T, gate_up_fp8)
    result, squares = epilogues.project_residual(gated, down, middle)
    return result, rms_from_sums(squares, hidden, eps), rotated, mixed, lse, middle, middle_rstd, product, gated


@block_op.register_fake
def _(
    x_TD: torch.Tensor,
    rstd_T: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    position_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cos_PH: torch.Tensor,
    sin_PH: torch.Tensor,
    max_seqlen: int,
    heads: int,
    theta: float,
    eps: float,
    kernel: str,
    qkv_fp8: torch.Tensor | None = None,
    gate_up_fp8: torch.Tensor | None = None,
    down_fp8: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    tokens, hidden = x_TD.shape
    like_x, rstd = (lambda: x_TD.new_empty((tokens, hidden))), (lambda: rstd_T.new_empty((tokens,)))
    rotated, product = x_TD.new_empty((tokens, 3 * hidden)), x_TD.new_empty((tokens, len(gate_up)))
    lse, gated = rstd_T.new_empty((heads, tokens)), x_TD.new_empty((tokens, down.shape[1]))
    return like_x(), rstd(), rotated, like_x(), lse, like_x(), rstd(), product, gated


@torch.library.custom_op("azneobert::block_backward", mutates_args=())
def block_backward_op(
    dresult_TD: torch.Tensor,
    x_TD: torch.Tensor,
    rstd_T: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    position_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cos_PH: torch.Tensor,
    sin_PH: torch.Tensor,
    rotated: torch.Tensor,
    mixed: torch.Tensor,
    lse: torch.Tensor,
    middle: torch.Tensor,
    middle_rstd: torch.Tensor,
    product: torch.Tensor,
    gated: torch.Tensor,
    max_seqlen: int,
    heads: int,
    kernel: str,
    down_fp8: torch.Tensor | None,
    scales: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x_TD, qkv, out, gate_up and down."""
    from azneobert.kernels import epilogues
    from azneobert.kernels.rows import norm_correction, rows_fp8, unrotate_

    tokens, hidden = x_TD.shape
    by_head = (tokens, heads, hidden // heads)
    dresult = dresult_TD.contiguous()
    if down_fp8 is None or scales is None:
        dproduct, sums = epilogues.gated_backward(dresult, down, product, middle_rstd)
    else:
        scaled, unit_T = rows_fp8(dresult, scales[2])
        dproduct, sums = epilogues.gated_backward_fp8(scaled, unit_T, down_fp8, product, middle_rstd)
    ddown = dresult.T @ gated
    correction = norm_correction(sums, middle_rstd, hidden)
    dmiddle = epilogues.norm_backward(dproduct, gate_up, dresult, middle, correction)
    dgate_up = dproduct.T @ middle
    del dproduct

    dmixed, dout = epilogues.back(dmiddle, out), dmiddle.T @ mixed
    dqkv = torch.empty_like(rotated).view(tokens, 3, *by_head[1:])
    q_TNH, k_TNH, v_TNH = rotated.view(dqkv.shape).unbind(1)
    flash_kernel(kernel).backward(
        dmixed.view(by_head), q_TNH, k_TNH, v_TNH, mixed.view(by_head), lse, cu_seqlens, max_seqlen, dqkv.unbind(1)
    )
    correction = unrotate_(dqkv, rotated.view(dqkv.shape), position_ids, cos_PH, sin_PH, rstd_T)
    dprojection = dqkv.view(rotated.shape)
    dx = epilogues.norm_backward(dprojection, qkv, dmiddle, x_TD, correction)
    return dx, dprojection.T @ x_TD, dout, dgate_up, ddown


@block_backward_op.register_fake
def _(
    dresult_TD: torch.Tensor,
    x_TD: torch.Tensor,
    rstd_T: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dx, dqkv, dout, dgate_up, ddown = (tensor.new_empty(tensor.shape) for tensor in (x_TD, qkv, out, gate_up, down))
    return dx, dqkv, dout, dgate_up, ddown


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.max_seqlen, ctx.heads, _theta, _eps, ctx.kernel, _qkv, _gate_up, down_fp8, scales = inputs
    ctx.save_for_backward(*tensors, *output[2:], down_fp8, scales)
    ctx.set_materialize_grads(False)  # the other outputs have no gradients, and zeros in their place would be gigabytes


def _differentiate(ctx: Any, dresult_TD: torch.Tensor, *_others: None) -> tuple[Any, ...]:
    *saved, down_fp8, scales = ctx.saved_tensors
    gradients = block_backward_op(dresult_TD, *saved, ctx.max_seqlen, ctx.heads, ctx.kernel, down_fp8, scales)
    dx, dqkv, dout, dgate_up, ddown = gradients
    return dx, None, dqkv, dout, dgate_up, ddown, *(None,) * 13


block_op.register_autograd(_differentiate, setup_context=_save)
