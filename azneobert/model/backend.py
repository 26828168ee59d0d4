"""Which kernels compute the model: chosen once at start, from what is asked for and what runs here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from azneobert.errors import TrainingError
from azneobert.model.attention import Attention, choose_attention, reference
from azneobert.model.size import FUSED_HEAD_SIZES
from azneobert.recipe import Model, Runtime


@dataclass(frozen=True)
class Backend:
    """An attention kernel by its name, and whether blocks and head run in the fused kernels of azneobert/kernels.

    With `fp8`, three of a block's products take 8-bit operands: kernels/block.py.
    """

    attention_name: str = "reference"
    attention: Attention = reference
    fused: bool = False
    fp8: bool = False

    def __str__(self) -> str:
        blocks = "fused, fp8" if self.fp8 else "fused" if self.fused else "torch"
        return f"attention {self.attention_name}, blocks {blocks}"


REFERENCE = Backend()


def choose_backend(
    runtime: Runtime, model: Model, device: torch.device, dtype: torch.dtype, *, fp8: bool = False
) -> Backend:
    """The kernels that `runtime.attention` and `runtime.blocks` ask for; with `auto` the fastest that run here.

    fp8: `training.fp8` of a recipe, for its trainings only.

    Raises:
        TrainingError: what is asked for by name cannot run on this device, in this dtype, or for this model.
    """
    name, attention = choose_attention(runtime.attention, device, dtype)
    if runtime.blocks == "torch":
        if fp8:
            raise TrainingError("training.fp8: true needs fused blocks, found runtime.blocks: torch; use auto")
        return Backend(name, attention)
    obstacle = obstacle_to_fused(model, name, device, dtype)
    if obstacle and runtime.blocks == "fused":
        raise TrainingError(f"runtime.blocks: fused needs {obstacle}; use auto")
    if obstacle and fp8:  # what a training computes must not depend on the card that it happens to get
        raise TrainingError(f"training.fp8: true needs {obstacle}; use false")
    return Backend(name, attention, fused=obstacle is None, fp8=fp8)


def obstacle_to_fused(model: Model, attention_name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What the fused kernels lack here, in words; None if they run."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return f"a Hopper GPU, found {device.type if device.type != 'cuda' else torch.cuda.get_device_name(device)}"
    if dtype != torch.bfloat16:
        return f"training.compute_dtype bfloat16, found {dtype}"
    if attention_name == "reference":
        return "a flash-attention kernel"
    if importlib.util.find_spec("quack") is None:
        return "the package quack-kernels, which is not installed"
    head_size = model.hidden_size // model.num_attention_heads
    if head_size not in FUSED_HEAD_SIZES:
        return f"a head size of 32, 64 or 128, found {head_size}"
    return None
