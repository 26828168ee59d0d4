"""The head and its loss as one operation that never holds all logits: gradients come out of the forward pass."""

from __future__ import annotations

from typing import Any

import torch

ROWS = 12_288  # masked tokens whose logits exist at once: 1.5 GiB in bfloat16 at 64,000 tokens


@torch.library.custom_op("azneobert::head_loss", mutates_args=())
def head_loss_op(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, targets_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean cross-entropy (fp64, of fp32 losses); the gradients of the losses' sum for hidden states and weight."""
    from quack.cross_entropy import cross_entropy_fwd_out

    rows = len(hidden_MD)
    chunks = -(-rows // ROWS)
    losses = torch.empty(rows, dtype=torch.float32, device=hidden_MD.device)
    dhidden = torch.empty_like(hidden_MD)
    dweight: torch.Tensor | None = None
    for hidden, targets, loss, gradient in zip(
        *(tensor.tensor_split(chunks) for tensor in (hidden_MD, targets_M, losses, dhidden)), strict=True
    ):
        logits = hidden @ weight_VD.T
        cross_entropy_fwd_out(logits, targets, None, loss, None, logits, None)  # the logits become their gradient
        torch.mm(logits, weight_VD, out=gradient)
        part = torch.mm(logits.T, hidden)
        dweight = part if dweight is None else dweight + part
    assert dweight is not None
    return losses.double().mean(), dhidden, dweight


@head_loss_op.register_fake
def _(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, targets_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss = hidden_MD.new_empty((), dtype=torch.float64)
    return loss, hidden_MD.new_empty(hidden_MD.shape), weight_VD.new_empty(weight_VD.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dloss: torch.Tensor, *_others: None) -> tuple[Any, ...]:
    # In fp32: a factor rounded to bfloat16 would stretch every gradient alike.
    factor = (dloss / len(ctx.saved_tensors[0])).float()
    dhidden, dweight = ((gradient.float() * factor).to(gradient.dtype) for gradient in ctx.saved_tensors)
    return dhidden, dweight, None


head_loss_op.register_autograd(_differentiate, setup_context=_save)
