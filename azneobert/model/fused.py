"""The model by the fused kernels: the same function of the same parameters as the modules in layers.py.

The kernels need each norm's weight folded into the matrix that follows it, and the rows of that matrix in another
order. Both are done here by operations that autograd differentiates, so parameters, gradients and checkpoints stay as
they are.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional as F  # noqa: N812

from azneobert.kernels.block import block_op
from azneobert.kernels.head import head_loss_op
from azneobert.model.layers import Block, Encoder, inverse_root_mean_square

_BLOCK = ("qkv", "out", "gate_up", "down")
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max  # 448


def fused_weights(encoder: Encoder, head: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fp32 weights that `fused_forward` uses, by name; a tied head (V, D) is the embedding, and named once."""
    weights = {"encoder.embedding.weight": encoder.embedding.weight, "final_norm": encoder.final_norm.weight}
    if not encoder.config.tie_embeddings:
        weights["head"] = head
    for number, block in enumerate(cast("list[Block]", encoder.blocks)):
        # A norm's weight goes into the matrix that follows: with W = [[1, 2]], a weight [10, 100] and x = [3, 4], W
        # times (weight * x) is 830, and so is (W * weight) = [[10, 200]] times x. Then the rows are reordered. For
        # a model of hidden size 4 with one head and a feed-forward of 3, the former numbers of the rows are:
        #
        #     qkv       Q 0 2 1 3   K 4 6 5 7   V 8 9 10 11        gate_up   0 3 1 4 2 5
        qkv, gate_up = block.qkv.weight * block.attention_norm.weight, block.gate_up.weight * block.ffn_norm.weight
        weights |= {
            f"{number}.qkv": in_rotated_pairs(qkv, block.heads),
            f"{number}.out": block.out.weight,
            f"{number}.gate_up": in_turns(gate_up),
            f"{number}.down": block.down.weight,
        }
    return weights


def fused_forward(
    encoder: Encoder,
    weights: dict[str, torch.Tensor],
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    masked_indices: torch.Tensor,
    targets: torch.Tensor | None,
) -> torch.Tensor:
    """The same as `MaskedLM.forward`, with the same arguments; `weights` may be cast already or not."""
    config = encoder.config
    x_TD = F.embedding(input_ids, weights["encoder.embedding.weight"]).to(encoder.compute_dtype)
    # The block's backward already differentiates this root as a function of x: autograd must not do so again.
    rstd_T = inverse_root_mean_square(x_TD.detach().float(), config.rms_norm_eps).squeeze(-1)
    for number in range(config.num_hidden_layers):
        matrices = [weights[f"{number}.{name}"].to(x_TD.dtype) for name in _BLOCK]
        x_TD, rstd_T, *_ = block_op(
            x_TD,
            rstd_T,
            *matrices,
            position_ids,
            cu_seqlens,
            encoder.rotary.cos,
            encoder.rotary.sin,
            max_seqlen,
            config.num_attention_heads,
            config.rope_theta,
            config.rms_norm_eps,
            encoder.backend.attention_name,
            *(in_fp8(*matrices) if encoder.backend.fp8 else ()),
        )
    x_MD = x_TD[masked_indices].float()
    x_MD = x_MD * inverse_root_mean_square(x_MD, config.rms_norm_eps) * weights["final_norm"]
    head = weights.get("head", weights["encoder.embedding.weight"]).to(x_TD.dtype)
    hidden_MD = x_MD.to(x_TD.dtype)
    if targets is None:
        return F.linear(hidden_MD, head).float()
    return head_loss_op(hidden_MD, head, targets)[0]


def in_fp8(
    qkv: torch.Tensor, out: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a block's 8-bit products take: qkv, gate_up and the transposed down in e4m3, and their scales (3,).

    Each matrix is multiplied by the largest power of two that keeps all of it within e4m3's 448, so that scaling
    rounds nothing: with a largest value of 0.1, 4096 makes 409.6 of it, and 8192 would make 819.2.
    """
    matrices = [matrix.detach() for matrix in (qkv, gate_up, down.T)]
    largest = torch.stack([matrix.abs().amax() for matrix in matrices]).float()
    scales = torch.exp2(torch.floor(torch.log2(_FP8_MAX / largest.clamp(min=1e-30))))
    qkv_fp8, gate_up_fp8, down_fp8 = (
        (matrix.float() * scale).to(torch.float8_e4m3fn).contiguous()
        for matrix, scale in zip(matrices, scales.unbind(), strict=True)
    )
    return qkv_fp8, gate_up_fp8, down_fp8, scales


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
