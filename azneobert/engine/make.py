"""Making an engine: the world that the launcher started, and the engine that the recipe names in it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from azneobert.engine.gpu import prepare_gpu
from azneobert.engine.interface import Engine
from azneobert.engine.plain import PlainEngine
from azneobert.environment import PROCESSES
from azneobert.errors import TrainingError
from azneobert.model.encoder import MaskedLM
from azneobert.recipe import EngineName, Guards, Runtime, Training


def make_accelerator(
    engine: EngineName = "plain", device: str | None = None, *, timeout: timedelta | None = None
) -> Accelerator:
    """Accelerate for the world that the launcher made; `device` "cpu" ignores any GPU.

    `timeout` is how long a collective may take; the default is torch's.

    Raises:
        TrainingError: the request, the launcher, Accelerate and torch disagree on the number of processes.
    """
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if not on_cpu:
        prepare_gpu()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = int(os.environ.get(PROCESSES, launched))
    # For DDP: all gradients come at once, so the buckets are large. Gradients that are views of the buckets need not be
    # copied out.
    handlers: list[Any] = [DistributedDataParallelKwargs(bucket_cap_mb=200, gradient_as_bucket_view=True)]
    options: dict[str, Any] = {}
    if engine == "zero2":
        from azneobert.engine.zero2 import deepspeed_plugin

        if on_cpu and torch.cuda.is_available():
            raise TrainingError("runtime.engine: zero2 takes a GPU where one is visible; hide it, or use plain")
        options["deepspeed_plugin"] = deepspeed_plugin(on_cpu)
    # With a backend named, Accelerate takes a single process for one of several; under DeepSpeed it always is one.
    if launched > 1 or engine == "zero2":
        handlers.append(InitProcessGroupKwargs("gloo" if on_cpu else "nccl", timeout=timeout))
    # If it is told to use the CPU, Accelerate leaves DeepSpeed out without a word.
    options["kwargs_handlers"] = handlers
    accelerator = Accelerator(cpu=on_cpu and engine == "plain", mixed_precision="no", **options)
    # DeepSpeed may run as many ranks while Accelerate takes each for the only one, and the other way round.
    joined = dist.get_world_size() if dist.is_initialized() else 1
    if not wanted == launched == accelerator.num_processes == joined:
        raise TrainingError(
            f"launcher: {wanted} processes were asked for, it started {launched}, Accelerate sees "
            f"{accelerator.num_processes}, {joined} have joined; start with pipelines/launch.py"
        )
    return accelerator


def make_engine(
    model: MaskedLM,
    training: Training,
    runtime: Runtime,
    accelerator: Accelerator,
    micro_batch: int,
    accumulation: int,
    guards: Guards | None = None,
) -> Engine:
    """The engine that the recipe names; the accelerator must be made for the same one."""
    order_sums(runtime.deterministic)
    guards = guards or Guards()
    if runtime.engine == "zero2":
        from azneobert.engine.zero2 import Zero2Engine

        return Zero2Engine(model, training, runtime, accelerator, micro_batch, accumulation, guards)
    return PlainEngine(model, training, runtime, accelerator, accumulation, guards)


def order_sums(deterministic: bool) -> None:
    """Make kernels add in one fixed order, or let them add in the order in which their threads come.

    It holds for the whole process; call it before the first matrix product on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may split its sums in other ways
    torch.use_deterministic_algorithms(deterministic)
    # A debugging aid, which would write all memory twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
