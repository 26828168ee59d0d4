"""Attention over packed windows: one function, the kernels behind it, chosen once at start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from azneobert.errors import TrainingError

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def reference(
    q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    """Scaled dot-product attention in which a token sees its own window only: on CPU, and the truth for the others.

    q_TNH, k_TNH, v_TNH: (tokens, heads, head size); cu_seqlens: (windows + 1, or more), where windows begin, the total
    repeated at the end; max_seqlen: no window is longer. Returns (tokens, heads, head size).
    """
    tokens, heads, size = q_TNH.shape
    windows = torch.zeros(tokens + 1, dtype=torch.int32, device=q_TNH.device)
    windows.index_fill_(0, cu_seqlens.long(), 1)
    window_T = windows[:-1].cumsum(0)
    # Rows of max_seqlen tokens whose borders are window borders need no mask across rows.
    aligned = tokens % max_seqlen == 0 and bool(windows[:-1:max_seqlen].all())
    row = max_seqlen if aligned else tokens
    window_BS = window_T.view(-1, row)
    mask = window_BS[:, None, :, None] == window_BS[:, None, None, :]
    q, k, v = (x.view(-1, row, heads, size).transpose(1, 2) for x in (q_TNH, k_TNH, v_TNH))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(tokens, heads, size)


def fa2(
    q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    """FlashAttention 2 as torch ships it (CUDA, 16-bit only); arguments and result as in `reference`."""
    from torch.nn.attention.varlen import varlen_attn

    mixed = varlen_attn(q_TNH, k_TNH, v_TNH, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    assert isinstance(mixed, torch.Tensor)  # a tuple comes back only where the log-sum-exp is asked for
    return mixed


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Attention]:
    """The name and function of the kernel to use: the one asked for, or with `auto` the fastest that runs here.

    Raises:
        TrainingError: the kernel asked for cannot run on this device in this dtype.
    """
    fa2_runs = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name == "fa2" and not fa2_runs:
        raise TrainingError(
            f"runtime.attention: fa2 needs CUDA and bfloat16, found {device.type} and {dtype}; use auto"
        )
    if name == "fa2" or (name == "auto" and fa2_runs):
        return "fa2", fa2
    return "reference", reference
