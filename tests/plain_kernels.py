"""What the kernels of azneobert/kernels compute, in plain torch and float64; results in the dtype that a kernel gives.

The functions have the names and arguments of those in epilogues.py, rows.py and flash.py, which say more.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from azneobert.kernels.flash import FlashKernel

Tensors = tuple[torch.Tensor, ...]


def rotation_frequencies(heads: int, size: int, theta: float, device: torch.device) -> torch.Tensor:
    """Of each column of the projection, (3D,): q and k turn, v does not."""
    inverse = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float64, device=device) / size)
    return torch.cat([inverse.repeat_interleave(2).repeat(2 * heads), inverse.new_zeros(heads * size)])


def project_rotated(
    x_TD: torch.Tensor, rstd_T: torch.Tensor, weight: torch.Tensor, positions_T: torch.Tensor, frequencies: torch.Tensor
) -> torch.Tensor:
    """rstd x W^T, of which the columns 2i and 2i + 1 turn together."""
    first, second = (rstd_T.double()[:, None] * (x_TD.double() @ weight.double().T)).unflatten(1, (-1, 2)).unbind(2)
    angles = torch.outer(positions_T.double(), frequencies[::2].double())
    turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
    return torch.stack(turned, dim=2).flatten(1).to(_wide(x_TD.dtype))


def project_residual(x_TK: torch.Tensor, weight: torch.Tensor, residual_TD: torch.Tensor) -> Tensors:
    """residual + x W^T, and the squares of its rows in two partial sums."""
    y = residual_TD.double() + x_TK.double() @ weight.double().T
    return y.to(residual_TD.dtype), _in_two_sums(y.square(), residual_TD)


def project_gated(x_TD: torch.Tensor, rstd_T: torch.Tensor, weight: torch.Tensor) -> Tensors:
    """x W^T, gate and up in turns, and silu(rstd gate) * rstd up."""
    product = x_TD.double() @ weight.double().T
    gate, up = (rstd_T.double()[:, None, None] * product.unflatten(1, (-1, 2))).unbind(2)
    return product.to(x_TD.dtype), (F.silu(gate) * up).to(x_TD.dtype)


def project_gated_fp8(x_TD: torch.Tensor, unit_T: torch.Tensor, raw_T: torch.Tensor, weight: torch.Tensor) -> Tensors:
    """The same from operands in fp8, of which `unit_T` makes the normed product and `raw_T` the raw one."""
    product = x_TD.double() @ weight.double().T
    gate, up = (unit_T.double()[:, None, None] * product.unflatten(1, (-1, 2))).unbind(2)
    return (raw_T.double()[:, None] * product).to(_wide(x_TD.dtype)), (F.silu(gate) * up).to(_wide(x_TD.dtype))


def gated_backward_fp8(
    dout_TD: torch.Tensor,
    unit_T: torch.Tensor,
    weight_FD: torch.Tensor,
    product_T2F: torch.Tensor,
    rstd_T: torch.Tensor,
) -> Tensors:
    """The same from operands in fp8, of which `unit_T` makes the gradient."""
    dout = dout_TD.double() * unit_T.double()[:, None]
    dproduct, sums = gated_backward(dout, weight_FD.double().T, product_T2F, rstd_T)
    return dproduct.to(product_T2F.dtype), sums.to(_statistics_dtype(product_T2F))


def gated_backward(
    dout_TD: torch.Tensor, weight_DF: torch.Tensor, product_T2F: torch.Tensor, rstd_T: torch.Tensor
) -> Tensors:
    """The gradient of `project_gated`'s product, and that of rstd in two partial sums."""
    dgated = dout_TD.double() @ weight_DF.double()
    rstd = rstd_T.double()[:, None]
    raw_gate, raw_up = product_T2F.double().unflatten(1, (-1, 2)).unbind(2)
    sigmoid = (rstd * raw_gate).sigmoid()
    dgate = dgated * rstd * raw_up * sigmoid * (1 + rstd * raw_gate * (1 - sigmoid))
    dup = dgated * rstd * raw_gate * sigmoid
    dproduct = torch.stack([dgate * rstd, dup * rstd], dim=2).flatten(1)
    return dproduct.to(dout_TD.dtype), _in_two_sums(dgate * raw_gate + dup * raw_up, dout_TD)


def back(dout_TD: torch.Tensor, weight_DK: torch.Tensor) -> torch.Tensor:
    """Back through a plain projection."""
    return (dout_TD.double() @ weight_DK.double()).to(dout_TD.dtype)


def norm_backward(
    dproduct_TK: torch.Tensor,
    weight_KD: torch.Tensor,
    dout_TD: torch.Tensor,
    x_TD: torch.Tensor,
    correction_T: torch.Tensor,
) -> torch.Tensor:
    """Back through a projection, the norm before it and the residual beside it."""
    through = dproduct_TK.double() @ weight_KD.double()
    return (through + dout_TD.double() + x_TD.double() * correction_T.double()[:, None]).to(x_TD.dtype)


def rms_from_sums(sums_TP: torch.Tensor, width: int, eps: float) -> torch.Tensor:
    """The inverse root mean square of rows, from partial sums of their squares."""
    return (sums_TP.double().sum(1) / width + eps).rsqrt().to(sums_TP.dtype)


def normed_fp8(x_TD: torch.Tensor, rstd_T: torch.Tensor, weight_scale: torch.Tensor) -> Tensors:
    """Normed rows in e4m3 by one scale, and the factors of a product with them."""
    scale = 2.0 ** math.floor(math.log2(448 / math.sqrt(x_TD.shape[1])))
    unit_T = torch.full_like(rstd_T, 1 / (scale * weight_scale.item()))
    return (x_TD.float() * rstd_T.float()[:, None] * scale).to(torch.float8_e4m3fn), unit_T, unit_T / rstd_T


def rows_fp8(x_TD: torch.Tensor, weight_scale: torch.Tensor) -> Tensors:
    """Rows in e4m3, each by a scale of its own, and the factor of a product with them."""
    scale = (448 / x_TD.float().abs().amax(1).clamp(min=1e-30)).log2().floor().exp2()
    return (x_TD.float() * scale[:, None]).to(torch.float8_e4m3fn), 1 / (scale * weight_scale)


def norm_correction(sums_TP: torch.Tensor, rstd_T: torch.Tensor, width: int) -> torch.Tensor:
    """The factor of x in x's gradient, from partial sums of the gradient of rstd."""
    return (-(rstd_T.double() ** 3) * sums_TP.double().sum(1) / width).to(rstd_T.dtype)


def unrotate_(
    gradient_T3NH: torch.Tensor,
    rotated_T3NH: torch.Tensor,
    position_ids: torch.Tensor,
    cos_PH: torch.Tensor,
    sin_PH: torch.Tensor,
    rstd_T: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the raw projection, in place; returns the factor of x in x's gradient."""
    _, _, heads, size = gradient_T3NH.shape
    gradient, rstd = gradient_T3NH.double(), rstd_T.double()
    # The raw projection is the rotated one, turned back, over rstd.
    drstd = (gradient * rotated_T3NH.double()).flatten(1).sum(1) / rstd
    first, second = gradient.unflatten(3, (-1, 2)).unbind(4)
    cos, sin = (table.double()[position_ids][:, None, None, : size // 2] for table in (cos_PH, sin_PH))
    turned = torch.stack([first * cos + second * sin, second * cos - first * sin], dim=4).flatten(3)
    raw = torch.cat([turned[:, :2], gradient[:, 2:]], dim=1)
    gradient_T3NH.copy_(raw * rstd[:, None, None, None])
    return norm_correction(drstd[:, None], rstd_T, heads * size)


def flash_forward(
    q_TNH: torch.Tensor, k_TNH: torch.Tensor, v_TNH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed values and log-sum-exp; each token sees its own window."""
    scores = _scores(q_TNH, k_TNH, cu_seqlens)
    lse = scores.logsumexp(2)
    mixed = torch.einsum("nts,snh->tnh", (scores - lse[:, :, None]).exp(), v_TNH.double())
    return mixed.to(q_TNH.dtype).contiguous(), lse.to(_statistics_dtype(q_TNH))


def flash_backward(
    dout_TNH: torch.Tensor,
    q_TNH: torch.Tensor,
    k_TNH: torch.Tensor,
    v_TNH: torch.Tensor,
    out_TNH: torch.Tensor,
    lse_NT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    into: Tensors,
) -> None:
    """The gradients of q, k and v, written into the last argument."""
    dout, q, k, v = (tensor.double() for tensor in (dout_TNH, q_TNH, k_TNH, v_TNH))
    shares = (_scores(q_TNH, k_TNH, cu_seqlens) - lse_NT.double()[:, :, None]).exp()
    dshares = torch.einsum("tnh,snh->nts", dout, v)
    dscores = shares * (dshares - (dout * out_TNH.double()).sum(2).T[:, :, None]) / q.shape[2] ** 0.5
    into[0].copy_(torch.einsum("nts,snh->tnh", dscores, k))
    into[1].copy_(torch.einsum("nts,tnh->snh", dscores, q))
    into[2].copy_(torch.einsum("nts,tnh->snh", shares, dout))


def cross_entropy_fwd_out(
    logits: torch.Tensor,
    targets: torch.Tensor,
    target_logit: None,
    loss: torch.Tensor,
    lse: None,
    dlogits: torch.Tensor,
    weight: None,
) -> None:
    """The loss of each row, and its gradient, which may take the place of the logits."""
    exact = logits.double()
    loss.copy_(F.cross_entropy(exact, targets, reduction="none"))
    dlogits.copy_(exact.softmax(1) - F.one_hot(targets, logits.shape[1]))


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operations of azneobert/kernels run on a CPU, on the functions above."""
    here = SimpleNamespace(**globals())
    for name in ("epilogues", "rows"):
        monkeypatch.setitem(sys.modules, f"azneobert.kernels.{name}", here)
        monkeypatch.setattr(f"azneobert.kernels.{name}", here, raising=False)
    monkeypatch.setitem(sys.modules, "quack.cross_entropy", here)
    for user in ("block", "flash"):
        monkeypatch.setattr(f"azneobert.kernels.{user}.flash_kernel", lambda name: FlashKernel(*_FLASH))


_FLASH = flash_forward, flash_backward


def _scores(q_TNH: torch.Tensor, k_TNH: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    window_T = torch.searchsorted(cu_seqlens, torch.arange(len(q_TNH), dtype=torch.int32), right=True)
    scores = torch.einsum("tnh,snh->nts", q_TNH.double(), k_TNH.double()) / q_TNH.shape[2] ** 0.5
    return scores.masked_fill(window_T[:, None] != window_T[None, :], -torch.inf)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What a kernel gives for inputs of a dtype: bfloat16 for those of 8 bits."""
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def _statistics_dtype(like: torch.Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _in_two_sums(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.stack([half.sum(1) for half in values.tensor_split(2, dim=1)], dim=1).to(_statistics_dtype(like))
