"""Attention over packed windows: one function with several kernels, of which one is chosen at start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from azneobert.errors import TrainingError
from azneobert.kernels.flash import flash_attention_op, installed

FLASH = ("fa4", "fa3", "fa2")  # the fastest first
_GENERATIONS = {"fa4": (9, 10, 11), "fa3": (9,), "fa2": (8, 9, 10, 11, 12)}  # major compute capabilities
_PACKAGES = {
    "fa4": "flash-attn-4",
    "fa3": "xformers==0.0.34 without its needs, or hopper/ of the flash-attention repository",
    "fa2": "torch",
}

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def reference(
    q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    """Scaled dot-product attention in which a token sees only its own window: for CPUs, and the reference for kernels.

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


def flash_attention(name: str) -> Attention:
    """The flash-attention kernel of this name (CUDA, 16-bit only); arguments and result as in `reference`."""

    def attention(
        q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        mixed, _ = flash_attention_op(q_TNH, k_TNH, v_TNH, cu_seqlens, max_seqlen, name)
        return mixed

    return attention


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Attention]:
    """The name and function of the kernel to use: the one asked for, or with `auto` the fastest that runs here.

    Raises:
        TrainingError: the kernel asked for cannot run on this device in this dtype.
    """
    if name == "auto":
        name = next((kernel for kernel in FLASH if obstacle_to_flash(kernel, device, dtype) is None), "reference")
    if name == "reference":
        return name, reference
    obstacle = obstacle_to_flash(name, device, dtype)
    if obstacle:
        raise TrainingError(f"runtime.attention: {name} needs {obstacle}; use auto")
    return name, flash_attention(name)


def obstacle_to_flash(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What a flash-attention kernel lacks here, in words; None if it runs."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return f"CUDA and bfloat16, found {device.type} and {dtype}"
    generation = torch.cuda.get_device_capability(device)[0]
    if generation not in _GENERATIONS[name]:
        return f"another GPU than {torch.cuda.get_device_name(device)}"
    if not installed(name):
        return f"its library, which is not installed ({_PACKAGES[name]})"
    return None
