"""Flash attention over packed windows by the name of its kernel: fa4, fa3 and fa2, with separate forward and backward.

fa4 and fa3 are Dao-AILab's packages (the CuTe DSL `flash_attn.cute`, and `flash_attn_interface` built from that
repository's `hopper/`), fa2 is what torch ships. xformers' wheels of 0.0.33 and 0.0.34 carry a built fa3 too, made on
torch's stable ABI and for CUDA 12. Each library is loaded when its kernel is first used.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

_FA3 = "flash_attn_interface"


class FlashKernel(NamedTuple):
    """One kernel's two functions.

    forward(q, k, v, cu_seqlens, max_seqlen) -> mixed values (T, N, H) and log-sum-exp, fp32, N x T elements;
    backward(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, (dq, dk, dv)) writes the gradients into the last three.
    """

    forward: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[..., None]


def installed(name: str) -> bool:
    """Whether the library of this kernel can be imported."""
    module = {"fa4": "flash_attn.cute", "fa3": _FA3, "fa2": "torch"}[name]
    return _is_there(module) or (name == "fa3" and _xformers_fa3() is not None)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # for the package that the module is in
        return False


def _xformers_fa3() -> Path | None:
    """The fa3 library of an installed xformers, found without importing xformers."""
    spec = importlib.util.find_spec("xformers")
    found = [Path(folder) / "flash_attn_3" / "_C.so" for folder in (spec and spec.submodule_search_locations) or ()]
    return next((library for library in found if library.is_file()), None)


@functools.cache
def flash_kernel(name: str) -> FlashKernel:
    """The kernel with this name; its library is imported here."""
    return {"fa4": _fa4, "fa3": _fa3, "fa2": _fa2}[name]()


@torch.library.custom_op("azneobert::flash_attention", mutates_args=())
def flash_attention_op(
    q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed values (T, N, H) and log-sum-exp (N, T)."""
    return flash_kernel(name).forward(q_TNH, k_TNH, v_TNH, cu_seqlens, max_seqlen)


@flash_attention_op.register_fake
def _(
    q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, _ = q_TNH.shape
    return q_TNH.new_empty(q_TNH.shape), q_TNH.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op("azneobert::flash_attention_backward", mutates_args=())
def flash_attention_backward_op(
    dout_TNH: torch.Tensor,
    q_TNH: torch.Tensor,
    k_TNH: torch.Tensor,
    v_TNH: torch.Tensor,
    out_TNH: torch.Tensor,
    lse_NT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    name: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, each (T, N, H)."""
    dq, dk, dv = (torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device) for _ in range(3))
    flash_kernel(name).backward(
        dout_TNH.contiguous(), q_TNH, k_TNH, v_TNH, out_TNH, lse_NT, cu_seqlens, max_seqlen, (dq, dk, dv)
    )
    return dq, dk, dv


@flash_attention_backward_op.register_fake
def _(
    dout_TNH: torch.Tensor,
    q_TNH: torch.Tensor,
    k_TNH: torch.Tensor,
    v_TNH: torch.Tensor,
    out_TNH: torch.Tensor,
    lse_NT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    name: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = (q_TNH.new_empty(q_TNH.shape) for _ in range(3))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen, ctx.name = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: torch.Tensor, _dlse: None) -> tuple[Any, ...]:
    q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
    gradients = flash_attention_backward_op(dout, q, k, v, out, lse, cu_seqlens, ctx.max_seqlen, ctx.name)
    return *gradients, None, None, None


flash_attention_op.register_autograd(_differentiate, setup_context=_save)


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def full_rows(tokens: int, cu_seqlens: torch.Tensor, max_seqlen: int) -> int | None:
    """The number of rows if each is one window of the greatest length, by counts alone; otherwise None.

    A row that is not full has at least two windows, since padding is one: 3 rows with 4 entries are full, with 5 not.
    """
    rows, rest = divmod(tokens, max_seqlen)
    return rows if rest == 0 and cu_seqlens.shape[0] == rows + 1 else None


def _windows(cu_seqlens: torch.Tensor, max_seqlen: int) -> dict[str, Any]:
    """The arguments of FlashAttention 3 and 4 for packed sequences: queries and keys have the same windows here."""
    return {
        "cu_seqlens_q": cu_seqlens,
        "cu_seqlens_k": cu_seqlens,
        "max_seqlen_q": max_seqlen,
        "max_seqlen_k": max_seqlen,
    }


def _fa4() -> FlashKernel:
    from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd

    def forward(q, k, v, cu_seqlens, max_seqlen):  # type: ignore[no-untyped-def]
        tokens, heads, _ = q.shape
        rows = full_rows(tokens, cu_seqlens, max_seqlen)
        if rows is None:
            out, lse, *_ = _flash_attn_fwd(q, k, v, return_lse=True, **_windows(cu_seqlens, max_seqlen))
            return out, lse
        # A kernel without windows is faster; its log-sum-exp is (rows, N, length), used only by its own backward.
        q, k, v = (x.unflatten(0, (rows, max_seqlen)) for x in (q, k, v))
        out, lse, *_ = _flash_attn_fwd(q, k, v, return_lse=True)
        return out.flatten(0, 1), lse.view(heads, tokens)

    def backward(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, into):  # type: ignore[no-untyped-def]
        tokens, heads, _ = q.shape
        rows = full_rows(tokens, cu_seqlens, max_seqlen)
        by_token = (q, k, v, out, dout, *into)
        if rows is None:
            where = _windows(cu_seqlens, max_seqlen)
        else:
            where = {}
            by_token = tuple(x.unflatten(0, (rows, max_seqlen)) for x in by_token)
            lse = lse.view(rows, heads, max_seqlen)
        q, k, v, out, dout, dq, dk, dv = by_token
        _flash_attn_bwd(q, k, v, out, dout, lse, deterministic=_deterministic(), dq=dq, dk=dk, dv=dv, **where)

    return FlashKernel(forward, backward)


def _load_fa3() -> Any:
    """The operators `flash_attn_3::fwd` and `::bwd`, which either library registers as it is loaded."""
    library = None if _is_there(_FA3) else _xformers_fa3()
    if library is None:
        importlib.import_module(_FA3)
        return torch.ops.flash_attn_3
    # It is built for CUDA 12. Beside a torch for CUDA 13 it needs another runtime, of package nvidia-cuda-runtime-cu12.
    if _is_there("nvidia.cuda_runtime"):
        spec = importlib.util.find_spec("nvidia.cuda_runtime")
        for folder in (spec and spec.submodule_search_locations) or ():
            for runtime in Path(folder).glob("lib/libcudart.so.12"):
                ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(str(library))
    return torch.ops.flash_attn_3


def _fa3() -> FlashKernel:
    library = _load_fa3()

    def forward(q, k, v, cu_seqlens, max_seqlen):  # type: ignore[no-untyped-def]
        # Splits are for decoding; left to itself the kernel asks how many.
        where = _windows(cu_seqlens, max_seqlen)
        out, lse, *_ = library.fwd(q, k, v, num_splits=1, softmax_scale=q.shape[-1] ** -0.5, **where)
        return out, lse

    def backward(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, into):  # type: ignore[no-untyped-def]
        dq, dk, dv = into
        chosen = {"softmax_scale": q.shape[-1] ** -0.5, "deterministic": _deterministic()}
        library.bwd(dout, q, k, v, out, lse, dq=dq, dk=dk, dv=dv, **chosen, **_windows(cu_seqlens, max_seqlen))

    return FlashKernel(forward, backward)


def _fa2() -> FlashKernel:
    aten = torch.ops.aten

    def forward(q, k, v, cu_seqlens, max_seqlen):  # type: ignore[no-untyped-def]
        out, lse, *_ = aten._flash_attention_forward(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.0, False, False
        )
        return out, lse

    def backward(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, into):  # type: ignore[no-untyped-def]
        # Without dropout the two states of the random generator are not read.
        seed, offset = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
        gradients = aten._flash_attention_backward(
            dout, q, k, v, out, lse, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.0, False, seed, offset
        )
        for target, gradient in zip(into, gradients, strict=True):
            target.copy_(gradient)

    return FlashKernel(forward, backward)
