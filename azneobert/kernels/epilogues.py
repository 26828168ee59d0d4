"""What a block computes around its matrix products, as epilogues of QuACK's matrix multiplication for Hopper.

An epilogue runs while the product's result is still in registers, so that norms, rotation, SwiGLU and residuals need
no pass over memory of their own. Names: `acc` is an element of the product; in mode "acc_pair" it is two neighbouring
columns; `c` is an element of a matrix that is added or read along. In the forward pass the weight
of a norm is folded into the matrix that follows, and its inverse root mean square `rstd` scales that product's rows.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from quack.activation import dswiglu, swiglu
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.library import identity_epi, rstd_gated_preact_mod
from quack.epilogue.math import pack, unpack
from quack.epilogue.ops import ColVecLoad, ColVecReduce, TileLoad
from quack.epilogue.rotary import make_interleaved_inv_freq, rstd_rope_posfreq_epi
from quack.gemm_config import GemmConfig


@gemm_epilogue(reduces={"squares": ColVecReduce("squares", scaled=True)})
def _residual(acc, c):  # type: ignore[no-untyped-def]
    y = acc + c
    return {"D": y, "squares": (y, y)}


@gemm_epilogue(mode="packed_cd_b16x2", ops={"rstd": ColVecLoad("rstd")}, reduces={"root": ColVecReduce("root")})
def _gated_backward(acc, c, rstd):  # type: ignore[no-untyped-def]
    gate, up = unpack(c)
    dgate, dup, _ = dswiglu(gate * rstd, up * rstd, acc)
    return {"D": pack(dgate * rstd, dup * rstd), "root": dgate * gate + dup * up}


@gemm_epilogue(outputs=("postact",), ops={"unit": ColVecLoad("unit"), "raw": ColVecLoad("raw")}, mode="acc_pair")
def _gated_fp8(acc, unit, raw):  # type: ignore[no-untyped-def]
    gate, up = unpack(acc * unit)
    raw_gate, raw_up = unpack(acc * raw)
    return {"D": pack(raw_gate, raw_up), "postact": swiglu(gate, up)}


@gemm_epilogue(
    mode="packed_cd_b16x2",
    ops={"rstd": ColVecLoad("rstd"), "unit": ColVecLoad("unit")},
    reduces={"root": ColVecReduce("root")},
)
def _gated_backward_fp8(acc, c, rstd, unit):  # type: ignore[no-untyped-def]
    gate, up = unpack(c)
    dgate, dup, _ = dswiglu(gate * rstd, up * rstd, acc * unit)
    return {"D": pack(dgate * rstd, dup * rstd), "root": dgate * gate + dup * up}


# A token x = [1, 7] has a mean square of 25, so rstd is 0.2 (without eps). With W = [[3, 1]], the raw product W x is 10
# and the normed one 0.2 * 10 = 2. Say that the gradient of the normed one is 5, and that the residual brings [10, 20].
# The gradient of x has three parts:
#
#     through W x     dproduct is 5 * 0.2 = 1; acc is 1 * W                                         [ 3.0,  1.0]
#     through rstd    dL/d(rstd) is 5 * 10 = 50; correction is -0.2^3 * 50 / 2 = -0.2; times x      [-0.2, -1.4]
#     beside both     c                                                                             [10.0, 20.0]
#
# Together [12.8, 19.6]. Without c it is [2.8, -0.4], whose product with x is 0: a longer x has the same normed product.
@gemm_epilogue(ops={"x": TileLoad("x"), "correction": ColVecLoad("correction")})
def _norm_backward(acc, c, x, correction):  # type: ignore[no-untyped-def]
    return {"D": acc + c + x * correction}


# A Hopper tensor core keeps 14 bits of the sums of 8-bit products, so QuACK adds parts of them in fp32. Over the 768
# columns of a hidden state this gains nothing: without it, the error is that of rounding the result to bfloat16.
for _epilogue in (_gated_fp8, _gated_backward_fp8, rstd_rope_posfreq_epi):
    _epilogue.gemm = functools.partial(_epilogue.gemm, post_init_attrs=(("fp8_slow_accum", False),))


def _config(tile_m: int, tile_n: int, pingpong: bool, cluster: tuple[int, int]) -> GemmConfig:
    return GemmConfig(
        tile_m=tile_m,
        tile_n=tile_n,
        pingpong=pingpong,
        cluster_m=cluster[0],
        cluster_n=cluster[1],
        is_dynamic_persistent=False,
    )


# The fastest of 24 on an H200 for the published model at 49,152 tokens (docs/log.md). QuACK caches its plans by the
# identity of these objects, so each is made only once.
_ROTATED = _config(128, 192, True, (1, 1))
_NARROW_RESIDUAL = _config(128, 192, True, (1, 1))
_WIDE_RESIDUAL = _config(128, 128, True, (2, 1))
_GATED = _config(128, 192, True, (2, 1))
_GATED_BACKWARD = _config(128, 128, True, (1, 2))
_NORM_BACKWARD = _config(128, 128, True, (2, 1))
_GATED_FP8 = _config(128, 192, True, (1, 1))
_GATED_BACKWARD_FP8 = _config(128, 256, False, (1, 2))
_BACK = _config(192, 128, True, (1, 2))


def project_rotated(
    x_TD: torch.Tensor, rstd_T: torch.Tensor, weight: torch.Tensor, positions_T: torch.Tensor, frequencies: torch.Tensor
) -> torch.Tensor:
    """rotate(rstd x W^T): (T, D), (T,), (3D, D) -> (T, 3D). `frequencies` are `rotation_frequencies`.

    With x and W in fp8, `rstd_T` is the `unit_T` of `normed_fp8`.
    """
    return rstd_rope_posfreq_epi(
        x_TD,
        weight.T,
        config=_ROTATED,
        tuned=False,
        out_dtype=torch.bfloat16,
        rstd=rstd_T[None],
        pos=positions_T[None],
        freq=frequencies[None],
    )["D"]


def project_residual(x_TK: torch.Tensor, weight: torch.Tensor, residual_TD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """residual + x W^T, and partial sums of the squares of its rows: (T, K), (D, K), (T, D) -> (T, D), (T, parts)."""
    config = _WIDE_RESIDUAL if weight.shape[1] > weight.shape[0] else _NARROW_RESIDUAL
    squares = _partial_sums(len(x_TK), len(weight), config, x_TK.device)
    result = _residual(x_TK, weight.T, residual_TD, config=config, tuned=False, squares=squares)
    return result["D"], squares


def project_gated(x_TD: torch.Tensor, rstd_T: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """x W^T, gate and up in alternate columns, and silu(rstd gate) * rstd up: -> (T, 2F), (T, F)."""
    result = rstd_gated_preact_mod("swiglu")(x_TD, weight.T, config=_GATED, tuned=False, rstd=rstd_T[None])
    return result["D"], result["postact"]


def project_gated_fp8(
    x_TD: torch.Tensor, unit_T: torch.Tensor, raw_T: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The same as `project_gated` from what `normed_fp8` gives, and the weight in fp8."""
    result = _gated_fp8(
        x_TD, weight.T, config=_GATED_FP8, tuned=False, out_dtype=torch.bfloat16, unit=unit_T[None], raw=raw_T[None]
    )
    return result["D"], result["postact"]


def gated_backward_fp8(
    dout_TD: torch.Tensor,
    unit_T: torch.Tensor,
    weight_FD: torch.Tensor,
    product_T2F: torch.Tensor,
    rstd_T: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The same as `gated_backward` from what `rows_fp8` gives, and the transposed weight in fp8."""
    sums = _partial_sums(len(dout_TD), len(weight_FD), _GATED_BACKWARD_FP8, dout_TD.device)
    result = _gated_backward_fp8(
        dout_TD,
        weight_FD.T,
        product_T2F,
        config=_GATED_BACKWARD_FP8,
        tuned=False,
        rstd=rstd_T[None],
        unit=unit_T[None],
        root=sums,
    )
    return result["D"], sums


def gated_backward(
    dout_TD: torch.Tensor, weight_DF: torch.Tensor, product_T2F: torch.Tensor, rstd_T: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Back through `project_gated` from the gradient after the down projection.

    Returns the gradient of the product (T, 2F), and partial sums of dL/d(rstd), (T, parts).
    """
    sums = _partial_sums(len(dout_TD), weight_DF.shape[1], _GATED_BACKWARD, dout_TD.device)
    result = _gated_backward(
        dout_TD, weight_DF, product_T2F, config=_GATED_BACKWARD, tuned=False, rstd=rstd_T[None], root=sums
    )
    return result["D"], sums


def back(dout_TD: torch.Tensor, weight_DK: torch.Tensor) -> torch.Tensor:
    """Back through a projection with nothing around it: the gradient of its input, (T, D), (D, K) -> (T, K)."""
    return identity_epi(dout_TD, weight_DK, config=_BACK, tuned=False)["D"]


def norm_backward(
    dproduct_TK: torch.Tensor,
    weight_KD: torch.Tensor,
    dout_TD: torch.Tensor,
    x_TD: torch.Tensor,
    correction_T: torch.Tensor,
) -> torch.Tensor:
    """Back through a projection, the norm before it and the residual beside it: the gradient of x, (T, D)."""
    return _norm_backward(
        dproduct_TK, weight_KD, dout_TD, config=_NORM_BACKWARD, tuned=False, x=x_TD, correction=correction_T[None]
    )["D"]


def _partial_sums(rows: int, columns: int, config: GemmConfig, device: torch.device) -> torch.Tensor:
    """Room for one sum of each row and tile of columns; the kernels in rows.py add them up."""
    return torch.empty((rows, -(-columns // config.tile_n)), dtype=torch.float32, device=device)


@functools.cache
def rotation_frequencies(heads: int, size: int, theta: float, device: torch.device) -> torch.Tensor:
    """The frequency of each column pair, in turns per position, as two numbers in neighbouring columns: (3D,), fp32.

    The columns of q and k rotate, those of v do not.
    """
    inverse = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    frequencies: Any = make_interleaved_inv_freq(inverse, 2 * heads * size, heads * size)
    return frequencies.to(device)
