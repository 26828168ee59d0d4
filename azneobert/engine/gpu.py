"""What a process sets up once, before it first touches a GPU."""

from __future__ import annotations

import os

import torch

from azneobert.environment import cache_of_user


def prepare_gpu() -> None:
    """Set up growing memory segments, TF32 for fp32 matrix products, and a lasting cache of compiled kernels.

    Settings in the environment take precedence.
    """
    if not os.environ.get("PYTORCH_CUDA_ALLOC_CONF") and not os.environ.get("PYTORCH_ALLOC_CONF"):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    torch.set_float32_matmul_precision("high")
    folder = cache_of_user()
    # By default these libraries use /tmp, which is a different one on each node and empty after a restart.
    for name, place in {
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "QUACK_CACHE_DIR": "quack",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash-attention",
    }.items():
        os.environ.setdefault(name, str(folder / place))
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
