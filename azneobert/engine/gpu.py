"""What a process sets up once, before it first touches a GPU."""

from __future__ import annotations

import os

import torch

from azneobert.environment import cache_of_user


def prepare_gpu() -> None:
    """Memory in segments that grow, TF32 for what is computed in fp32, and compiled kernels kept for the next start.

    A setting that the environment makes goes before these.
    """
    if not os.environ.get("PYTORCH_CUDA_ALLOC_CONF") and not os.environ.get("PYTORCH_ALLOC_CONF"):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    torch.set_float32_matmul_precision("high")
    folder = cache_of_user()
    # /tmp, where these libraries would keep them, is another one on each node and empty after a restart.
    for name, place in {
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "QUACK_CACHE_DIR": "quack",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash-attention",
    }.items():
        os.environ.setdefault(name, str(folder / place))
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
