"""Triton kernels between the matrix products of a block: what is left of RMSNorm and of RoPE's backward.

All are bound by memory bandwidth, and each reads and writes every value once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

_ROWS = 16  # tokens that one program handles
_FP8_ROWS = 4
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max  # 448


def rms_from_sums(sums_TP: torch.Tensor, width: int, eps: float) -> torch.Tensor:
    """The inverse root mean square of rows of `width` values, from P partial sums of their squares: (T, P) -> (T,)."""
    rstd_T = torch.empty(len(sums_TP), dtype=torch.float32, device=sums_TP.device)
    _of_sums(sums_TP, sums_TP, rstd_T, width, eps, False)
    return rstd_T


def norm_correction(sums_TP: torch.Tensor, rstd_T: torch.Tensor, width: int) -> torch.Tensor:
    """What the gradient of RMSNorm's root adds to the gradient of its input x, as a factor of x: (T, P), (T,) -> (T,).

    `sums_TP` are partial sums of dL/d(rstd): rstd = (mean x^2 + eps)^-1/2, so drstd/dx = -rstd^3 x / width.
    """
    correction_T = torch.empty_like(rstd_T)
    _of_sums(sums_TP, rstd_T, correction_T, width, 0.0, True)
    return correction_T


def unrotate_(
    gradient_T3NH: torch.Tensor,
    rotated_T3NH: torch.Tensor,
    position_ids: torch.Tensor,
    cos_PH: torch.Tensor,
    sin_PH: torch.Tensor,
    rstd_T: torch.Tensor,
) -> torch.Tensor:
    """Turn the gradient of (rotated q, rotated k, v) into that of the raw projection, in place.

    In the forward pass the projection was multiplied by `rstd_T`, and the pairs (2i, 2i + 1) of each head of q and k
    were rotated. Returns `norm_correction` of that norm, (T,), from the rotated values: rotation keeps inner products.
    """
    tokens, _, heads, size = gradient_T3NH.shape
    correction_T = torch.empty_like(rstd_T)
    # Wide pieces of a row, since many short ones would jump between pages of memory.
    together = next(number for number in (4, 2, 1) if heads % number == 0)
    _unrotate[(triton.cdiv(tokens, _ROWS),)](
        gradient_T3NH,
        rotated_T3NH,
        position_ids,
        cos_PH,
        sin_PH,
        rstd_T,
        correction_T,
        tokens,
        heads // together,
        together,
        size // 2,
        _ROWS,
    )
    return correction_T


def normed_fp8(
    x_TD: torch.Tensor, rstd_T: torch.Tensor, weight_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows in e4m3 after the norm, and two factors of each row, (T,): (T, D), (T,), (1,) -> (T, D), (T,), (T,).

    A product with these rows and a weight that was multiplied by `weight_scale` becomes, times the first factor, that
    of the normed rows and the weight, and times the second one that of the rows before the norm.

    No largest value has to be found: D values with a mean square of 1 lie within sqrt(D). With D = 768 that is 27.7,
    and a scale of 16 makes at most 443 of it, where e4m3 ends at 448.
    """
    tokens, hidden = x_TD.shape
    scale = 2.0 ** math.floor(math.log2(_FP8_MAX / math.sqrt(hidden)))
    normed = torch.empty_like(x_TD, dtype=torch.float8_e4m3fn)
    unit_T, raw_T = torch.empty_like(rstd_T), torch.empty_like(rstd_T)
    _normed_fp8[(triton.cdiv(tokens, _FP8_ROWS),)](
        x_TD,
        rstd_T,
        weight_scale,
        normed,
        unit_T,
        raw_T,
        tokens,
        hidden,
        scale,
        triton.next_power_of_2(hidden),
        _FP8_ROWS,
    )
    return normed, unit_T, raw_T


def rows_fp8(x_TD: torch.Tensor, weight_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in e4m3, each times a power of two of its own, and a factor of each row: (T, D), (1,) -> (T, D), (T,).

    A product with these rows and a weight that was multiplied by `weight_scale` becomes, times the factor, that of the
    rows and the weight.
    """
    tokens, hidden = x_TD.shape
    scaled = torch.empty_like(x_TD, dtype=torch.float8_e4m3fn)
    unit_T = torch.empty(tokens, dtype=torch.float32, device=x_TD.device)
    _rows_fp8[(triton.cdiv(tokens, _FP8_ROWS),)](
        x_TD, weight_scale, scaled, unit_T, tokens, hidden, _FP8_MAX, triton.next_power_of_2(hidden), _FP8_ROWS
    )
    return scaled, unit_T


def _of_sums(
    sums_TP: torch.Tensor, rstd_T: torch.Tensor, target_T: torch.Tensor, width: int, eps: float, correction: bool
) -> None:
    rows, parts = sums_TP.shape
    columns = triton.next_power_of_2(parts)
    _finish_sums[(triton.cdiv(rows, 256),)](
        sums_TP, rstd_T, target_T, rows, parts, width, eps, columns, 256, correction, num_warps=8
    )


@triton.jit
def _finish_sums(  # type: ignore[no-untyped-def]
    sums, rstd, target, rows, parts, width, eps, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, CORRECTION: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < parts)
    total = tl.sum(tl.load(sums + row[:, None] * parts + column[None, :], mask=inside, other=0.0), axis=1)
    if CORRECTION:
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)
        result = -scale * scale * scale * total / width
    else:
        result = tl.rsqrt(total / width + eps)
    tl.store(target + row, result, mask=row < rows)


@triton.jit
def _normed_fp8(  # type: ignore[no-untyped-def]
    x,
    rstd,
    weight_scale,
    normed,
    unit,
    raw,
    rows,
    width: tl.constexpr,
    scale: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)
    here = row < rows
    inside = here[:, None] & (column[None, :] < width)
    at = row[:, None] * width + column[None, :]
    root = tl.load(rstd + row, mask=here, other=1.0)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * root[:, None] * scale
    tl.store(normed + at, value.to(normed.dtype.element_ty), mask=inside)
    back = 1.0 / (scale * tl.load(weight_scale))
    tl.store(unit + row, back + 0.0 * root, mask=here)
    tl.store(raw + row, back / root, mask=here)


@triton.jit
def _rows_fp8(  # type: ignore[no-untyped-def]
    x,
    weight_scale,
    scaled,
    unit,
    rows,
    width: tl.constexpr,
    largest: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)
    here = row < rows
    inside = here[:, None] & (column[None, :] < width)
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    top = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-30)
    scale = tl.exp2(tl.floor(tl.log2(largest / top)))
    tl.store(scaled + at, (value * scale[:, None]).to(scaled.dtype.element_ty), mask=inside)
    tl.store(unit + row, 1.0 / (scale * tl.load(weight_scale)), mask=here)


@triton.jit
def _unrotate(  # type: ignore[no-untyped-def]
    gradient,
    rotated,
    positions,
    cos,
    sin,
    rstd,
    correction,
    tokens,
    PIECES: tl.constexpr,  # of q, as many of k and of v
    HEADS: tl.constexpr,  # in a piece
    HALF: tl.constexpr,  # of a head
    BLOCK: tl.constexpr,
):
    SIZE: tl.constexpr = 2 * HALF * HEADS
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = row < tokens
    pair = tl.arange(0, HALF * HEADS) % HALF
    lane = tl.arange(0, SIZE)
    angle = tl.load(positions + row, mask=here, other=0)[:, None] * (2 * HALF) + pair[None, :]
    c = tl.load(cos + angle)
    s = tl.load(sin + angle)
    scale = tl.load(rstd + row, mask=here, other=0.0)
    dot = tl.zeros([BLOCK, SIZE], dtype=tl.float32)
    for piece in range(3 * PIECES):
        at = row[:, None] * (3 * PIECES * SIZE) + piece * SIZE + lane[None, :]
        dz = tl.load(gradient + at, mask=here[:, None], other=0.0).to(tl.float32)
        dot += dz * tl.load(rotated + at, mask=here[:, None], other=0.0).to(tl.float32)
        if piece < 2 * PIECES:
            first, second = tl.split(tl.reshape(dz, [BLOCK, HALF * HEADS, 2]))
            turned = tl.join(first * c + second * s, second * c - first * s)
            dz = tl.reshape(turned, [BLOCK, SIZE])
        tl.store(gradient + at, (dz * scale[:, None]).to(gradient.dtype.element_ty), mask=here[:, None])
    # The projection is the rotated value divided by rstd, so its share of dL/d(rstd) is the sum divided by rstd.
    total = tl.sum(dot, axis=1)
    tl.store(correction + row, -scale * scale * total / (PIECES * SIZE), mask=here)
