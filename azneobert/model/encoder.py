"""NeoBERT's encoder with its head for masked tokens; suffixes of shapes as in layers.py."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from azneobert.model.backend import REFERENCE, Backend
from azneobert.model.fused import fused_forward, fused_weights
from azneobert.model.layers import Encoder, Linear
from azneobert.recipe import Model


class MaskedLM(nn.Module):
    """The encoder and a bias-free head, which sees masked tokens only."""

    def __init__(self, config: Model, compute_dtype: torch.dtype = torch.float32, backend: Backend = REFERENCE):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, compute_dtype, backend)
        self.head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_embeddings:
            self.head.weight = cast(nn.Parameter, self.encoder.embedding.weight)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        masked_indices: torch.Tensor,
        targets: torch.Tensor | None = None,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Logits (M, V) of the tokens at `masked_indices` (M,), in fp32; with `targets` (M,) their mean loss instead.

        The mean cross-entropy is a scalar in fp64: each token's loss is fp32, but their mean is fp64, so that it hardly
        depends on how a global batch is divided. The other arguments are as for `Encoder`; `weights` are what
        `MaskedLM.weights` gives, with those in `cast_names` already cast.
        """
        inputs = (input_ids, position_ids, cu_seqlens, max_seqlen, masked_indices, targets)
        if self.encoder.backend.fused:
            return fused_forward(self.encoder, self.weights() if weights is None else weights, *inputs)
        if weights is not None:
            result: torch.Tensor = functional_call(self, weights, inputs)
            return result
        stream_TD = self.encoder.residual_stream(input_ids, position_ids, cu_seqlens, max_seqlen)
        logits_MV = self.head(self.encoder.final_norm(stream_TD[masked_indices])).float()
        return logits_MV if targets is None else mean_loss(logits_MV, targets)

    def weights(self) -> dict[str, torch.Tensor]:
        """The fp32 weights that `forward` uses, by name: the parameters, or what fused kernels take instead of them."""
        if self.encoder.backend.fused:
            return fused_weights(self.encoder, self.head.weight)
        return dict(self.named_parameters())

    def cast_names(self) -> set[str]:
        """Which of `weights` are cast to the compute dtype: those that matrix products take. The embedding is not: its
        rows are cast when they are read, so that the gradients of a token's many rows are added in fp32."""
        embedding = "encoder.embedding.weight"
        return {name for name, weight in self.weights().items() if weight.ndim == 2 and name != embedding}


def mean_loss(logits_MV: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy as `MaskedLM` gives it."""
    return F.cross_entropy(logits_MV, targets, reduction="none").double().mean()


def build_model(
    config: Model, seed: int, compute_dtype: torch.dtype = torch.float32, backend: Backend = REFERENCE
) -> MaskedLM:
    """A model with NeoBERT's initial weights: uniform(-0.02, 0.02) for every matrix, ones for the norms.

    The weights depend on the seed and the configuration only, not on the device or on torch's global generator.
    """
    model = MaskedLM(config, compute_dtype, backend)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.uniform_(-config.initializer_range, config.initializer_range, generator=generator)
    return model
