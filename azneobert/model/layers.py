"""NeoBERT's layers (Le Breton et al., arXiv 2502.19587): pre-RMSNorm, RoPE, SwiGLU, no bias anywhere, no dropout.

Suffixes: T tokens of all rows, D hidden, N heads, H head size, F feed-forward, V vocabulary, M masked tokens.
Parameters stay in fp32 and are cast to the compute dtype where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from azneobert.model.attention import Attention
from azneobert.model.backend import REFERENCE, Backend
from azneobert.model.size import swiglu_size
from azneobert.recipe import Model


@dataclass(frozen=True)
class Windows:
    """Where windows begin, and each token's rotation: what every layer needs beside its input."""

    cu_seqlens: torch.Tensor
    max_seqlen: int
    cos_TH: torch.Tensor
    sin_TH: torch.Tensor


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich, arXiv 1910.07467), computed in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """(T, D) -> (T, D), in the dtype of x."""
        x = x_TD.float()
        return (x * inverse_root_mean_square(x, self.eps) * self.weight).to(x_TD.dtype)


def inverse_root_mean_square(x: torch.Tensor, eps: float) -> torch.Tensor:
    """The factor that RMSNorm multiplies each row by: (..., D) -> (..., 1)."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class Linear(nn.Module):
    """A bias-free projection whose fp32 weight (out, in) is cast to the dtype of its input."""

    weight: nn.Parameter

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight.to(x.dtype))


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split convention, in fp32."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, head_size: int, positions: int, theta: float):
        super().__init__()
        frequencies = 1.0 / theta ** (torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size)
        angles = torch.outer(torch.arange(positions).float(), frequencies)
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat([angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (T,) -> cos and sin, each (T, H)."""
        return self.cos[position_ids], self.sin[position_ids]


def rotate(x_TNH: torch.Tensor, cos_TH: torch.Tensor, sin_TH: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + H/2) of each head by the angle of the token's position; (T, N, H) -> (T, N, H)."""
    x = x_TNH.float()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos_TH[:, None] + turned * sin_TH[:, None]).to(x_TNH.dtype)


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm and with a residual connection."""

    def __init__(self, config: Model):
        super().__init__()
        hidden, inner = config.hidden_size, swiglu_size(config.intermediate_size)
        self.heads = config.num_attention_heads
        self.attention_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.qkv = Linear(hidden, 3 * hidden)  # [Q | K | V]
        self.out = Linear(hidden, hidden)
        self.ffn_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.gate_up = Linear(hidden, 2 * inner)  # [gate | up]
        self.down = Linear(inner, hidden)

    def forward(self, x_TD: torch.Tensor, windows: Windows, attention: Attention) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        tokens, hidden = x_TD.shape
        qkv = self.qkv(self.attention_norm(x_TD)).view(tokens, 3, self.heads, hidden // self.heads)
        q_TNH, k_TNH, v_TNH = qkv.unbind(1)
        q_TNH = rotate(q_TNH, windows.cos_TH, windows.sin_TH)
        k_TNH = rotate(k_TNH, windows.cos_TH, windows.sin_TH)
        mixed_TNH = attention(q_TNH, k_TNH, v_TNH, windows.cu_seqlens, windows.max_seqlen)
        x_TD = x_TD + self.out(mixed_TNH.reshape(tokens, hidden))
        gate_TF, up_TF = self.gate_up(self.ffn_norm(x_TD)).chunk(2, dim=-1)
        return x_TD + self.down(F.silu(gate_TF) * up_TF)


class Encoder(nn.Module):
    """Token ids of packed rows in, hidden states out."""

    def __init__(self, config: Model, compute_dtype: torch.dtype = torch.float32, backend: Backend = REFERENCE):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.backend = backend
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = Rotary(
            config.hidden_size // config.num_attention_heads, config.max_position_embeddings, config.rope_theta
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Ids and positions (T,), window starts (windows + 1, or more) -> hidden states (T, D) in the compute dtype."""
        return self.final_norm(self.residual_stream(input_ids, position_ids, cu_seqlens, max_seqlen))

    def residual_stream(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """The hidden states (T, D) before the final norm; arguments as for `forward`."""
        x_TD = self.embedding(input_ids).to(self.compute_dtype)
        windows = Windows(cu_seqlens, max_seqlen, *self.rotary(position_ids))
        for block in self.blocks:
            x_TD = block(x_TD, windows, self.backend.attention)
        return x_TD
