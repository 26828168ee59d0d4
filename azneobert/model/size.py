"""How large the model of a configuration is: widths, parameters, floating-point operations. Imports no torch."""

from __future__ import annotations

from azneobert.recipe import Model

FUSED_HEAD_SIZES = (32, 64, 128)  # that the kernels of azneobert/kernels take


def swiglu_size(intermediate_size: int) -> int:
    """The width of SwiGLU: two thirds of the plain feed-forward's, rounded up to a multiple of 8."""
    return -(-(2 * intermediate_size // 3) // 8) * 8


def count_parameters(config: Model) -> int:
    """The number of parameters of a MaskedLM with this configuration; a tied head counts once."""
    hidden, inner = config.hidden_size, swiglu_size(config.intermediate_size)
    block = 4 * hidden * hidden + 3 * hidden * inner + 2 * hidden
    embeddings = config.vocab_size * hidden * (1 if config.tie_embeddings else 2)
    return config.num_hidden_layers * block + hidden + embeddings


def flops_per_token(config: Model, attended: float, masking_rate: float) -> float:
    """Floating-point operations of forward and backward for each token, which attends to `attended` tokens on average.

    Matrix multiplications count 2 a weight forward and twice that backward; the head runs on masked tokens; attention
    counts 4 x tokens seen x hidden forward (scores and mixing), twice that backward. What is recomputed in the backward
    does not count.
    """
    hidden, inner = config.hidden_size, swiglu_size(config.intermediate_size)
    block = 4 * hidden * hidden + 3 * hidden * inner
    head = masking_rate * config.vocab_size * hidden
    attention = 2 * attended * hidden * config.num_hidden_layers
    return 6 * (config.num_hidden_layers * block + head + attention)
