"""Models and settings for benchmarks."""

from __future__ import annotations

from typing import Any

from azneobert.checkpoint.manifest import Manifest
from azneobert.recipe import EngineName, Model, Runtime, Training


def published_model() -> Model:
    """NeoBERT's size, 296.5 M parameters."""
    return small_model().model_copy(
        update={
            "hidden_size": 768,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "vocab_size": 64_000,
            "max_position_embeddings": 4096,
        }
    )


def middling_model(vocab_size: int = 4096) -> Model:
    """A NeoBERT of 6 layers of 256, with the published model's head size: trained past the plateau in seconds."""
    return small_model().model_copy(
        update={
            "hidden_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "vocab_size": vocab_size,
        }
    )


def small_model(tie_embeddings: bool = False) -> Model:
    """A NeoBERT of two layers, small enough for thirty steps in a second."""
    return Model(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        vocab_size=512,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        tie_embeddings=tie_embeddings,
    )


def some_training(compute_dtype: Any = "float32", clip_norm: float = 1.0) -> Training:
    """The published run's numbers."""
    return Training(
        masking_rate=0.2,
        adam_betas=(0.9, 0.95),
        adam_eps=1e-8,
        weight_decay=0.01,
        clip_norm=clip_norm,
        compute_dtype=compute_dtype,
    )


def some_runtime(engine: EngineName, compile_model: bool = False, **changes: Any) -> Runtime:
    """The runtime settings that an engine needs. The rest is for the training loop, which a benchmark does not have."""
    runtime = Runtime(
        engine=engine,
        processes=1,
        max_micro_batch=1,
        attention="auto",
        blocks="auto",
        compile=compile_model,
        deterministic=True,
        workers=0,
        log_every=1,
        checkpoint_every=1,
        keep_checkpoints=1,
    )
    return runtime.model_copy(update=changes)


def bare_manifest(step: int) -> Manifest:
    """A manifest that says no more than the step."""
    return Manifest("bench", step, 0, 0, "bench", {}, {}, {}, {}, {})
