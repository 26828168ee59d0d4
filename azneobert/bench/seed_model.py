"""The model as the seed project computes it. `azneobert bench train` starts its ablation from it."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from azneobert.model.attention import Attention
from azneobert.model.backend import Backend
from azneobert.model.encoder import MaskedLM, build_model
from azneobert.model.layers import Block, Windows
from azneobert.recipe import Model


def rotate_as_complex(x_TNH: torch.Tensor, cos_TH: torch.Tensor, sin_TH: torch.Tensor) -> torch.Tensor:
    """Rotary embedding by complex numbers, of neighbouring pairs: (T, N, H) -> (T, N, H)."""
    half = x_TNH.shape[-1] // 2
    turns = torch.complex(cos_TH[:, :half], sin_TH[:, :half])
    pairs = torch.view_as_complex(x_TNH.float().unflatten(-1, (half, 2)))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(x_TNH.dtype)


class ComplexBlock(Block):
    """A block that rotates by complex numbers."""

    def forward(self, x_TD: torch.Tensor, windows: Windows, attention: Attention) -> torch.Tensor:
        """(T, D) -> (T, D)."""
        tokens, hidden = x_TD.shape
        qkv = self.qkv(self.attention_norm(x_TD)).view(tokens, 3, self.heads, hidden // self.heads)
        q_TNH, k_TNH, v_TNH = qkv.unbind(1)
        q_TNH = rotate_as_complex(q_TNH, windows.cos_TH, windows.sin_TH)
        k_TNH = rotate_as_complex(k_TNH, windows.cos_TH, windows.sin_TH)
        mixed_TNH = attention(q_TNH, k_TNH, v_TNH, windows.cu_seqlens, windows.max_seqlen)
        x_TD = x_TD + self.out(mixed_TNH.reshape(tokens, hidden))
        gate_TF, up_TF = self.gate_up(self.ffn_norm(x_TD)).chunk(2, dim=-1)
        return x_TD + self.down(F.silu(gate_TF) * up_TF)


class HeadOnAllTokens(MaskedLM):
    """A model whose head sees every token, and whose loss leaves out those that are not masked."""

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
        """The mean cross-entropy; arguments as for `MaskedLM`."""
        if weights is not None:
            inputs = (input_ids, position_ids, cu_seqlens, max_seqlen, masked_indices, targets)
            result: torch.Tensor = functional_call(self, weights, inputs)
            return result
        assert targets is not None
        logits_TV = self.head(self.encoder(input_ids, position_ids, cu_seqlens, max_seqlen)).float()
        labels_T = torch.full_like(input_ids, -100).index_copy(0, masked_indices, targets)
        return F.cross_entropy(logits_TV, labels_T).double()  # a repeated masked position counts once


def build_seed_model(
    config: Model, dtype: torch.dtype, backend: Backend, complex_rope: bool, head_on_all: bool
) -> MaskedLM:
    """A model that computes like the seed project as far as asked, with the weights of our model under seed 1."""
    model = (HeadOnAllTokens if head_on_all else MaskedLM)(config, dtype, backend)
    if complex_rope:
        model.encoder.blocks = nn.ModuleList(ComplexBlock(config) for _ in range(config.num_hidden_layers))
    model.load_state_dict(build_model(config, 1).state_dict())
    return model
