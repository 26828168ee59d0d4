"""The encoder's blocks by the fused kernels: the same function of the same parameters as `Block.forward`.

The kernels want each norm's weight inside the matrix that follows it, and its rows in another order. Both happen here,
in operations that autograd and the compiler understand: parameters, gradients and checkpoints know nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from azneobert.kernels.block import block_op

if TYPE_CHECKING:
    from azneobert.model.encoder import Block, Encoder


def fused_blocks(
    encoder: Encoder, x_TD: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    """All blocks of an encoder: (T, D) -> (T, D)."""
    config, rotary = encoder.config, encoder.rotary
    # The block's backward takes this root for what it is, a function of x: autograd must not do so again.
    rstd_T = torch.rsqrt(x_TD.detach().float().square().mean(-1) + config.rms_norm_eps)
    for block in cast("list[Block]", encoder.blocks):
        x_TD, rstd_T, *_ = block_op(
            x_TD,
            rstd_T,
            in_rotated_pairs(folded(block.qkv.weight, block.attention_norm.weight, x_TD.dtype), block.heads),
            block.out.weight.to(x_TD.dtype),
            in_turns(folded(block.gate_up.weight, block.ffn_norm.weight, x_TD.dtype)),
            block.down.weight.to(x_TD.dtype),
            position_ids,
            cu_seqlens,
            rotary.cos,
            rotary.sin,
            max_seqlen,
            block.heads,
            config.rope_theta,
            config.rms_norm_eps,
            encoder.backend.attention_name,
        )
    return x_TD


def folded(weight: torch.Tensor, norm: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A projection (out, in) that has taken in the weight (in,) of the norm before it."""
    return (weight * norm).to(dtype)


def in_rotated_pairs(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """[Q | K | V] (3D, D) with the rows i and i + H/2 of each head of Q and K, which rotate together, side by side."""
    hidden = qkv.shape[1]
    rotating, values = qkv.split([2 * hidden, hidden])
    pairs = rotating.view(2 * heads, 2, -1, hidden).transpose(1, 2).reshape(2 * hidden, hidden)
    return torch.cat([pairs, values])


def in_turns(gate_up: torch.Tensor) -> torch.Tensor:
    """[gate | up] (2F, D) with the rows of the two in turns."""
    rows, hidden = gate_up.shape
    return gate_up.view(2, -1, hidden).transpose(0, 1).reshape(rows, hidden)
