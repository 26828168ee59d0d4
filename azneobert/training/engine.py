"""The engine: how one optimizer step is carried out, and how its state comes out and goes in.

The loop does not know which engine it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch.nn import functional as F  # noqa: N812

from azneobert.checkpoint.universal import TrainState
from azneobert.data.stream import Batch, PackedBatch
from azneobert.errors import CheckpointError, TrainingError
from azneobert.model.encoder import MaskedLM
from azneobert.recipe import ENGINES, Runtime, Training
from azneobert.training.optim import build_optimizer


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, and where its tensors live."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


class Engine(Protocol):
    """What the loop needs of an engine."""

    world: World
    model: MaskedLM

    def step(
        self, micro_batches: Iterator[PackedBatch], accumulation: int, rate: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on `accumulation` micro-batches; the mean loss over all ranks and the gradient norm before clipping."""

    def gather(self) -> TrainState | None:
        """The whole state on rank 0, nothing on the others."""

    def scatter(self, state: TrainState) -> None:
        """Take over a state, on every rank."""


class PlainEngine:
    """One process, or several with DistributedDataParallel: every rank holds the whole state."""

    def __init__(self, model: MaskedLM, training: Training, runtime: Runtime, accelerator: Accelerator):
        self.world = world_of(accelerator)
        self.model = model.to(self.world.device)
        if runtime.compile:
            self.model.compile()
        self._accelerator = accelerator
        self._clip_norm = training.clip_norm
        self._wrapped = accelerator.prepare_model(self.model)
        self._optimizer = build_optimizer(self.model, training)

    def step(
        self, micro_batches: Iterator[PackedBatch], accumulation: int, rate: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Engine.step`."""
        total = torch.zeros((), device=self.world.device)
        for number, batch in enumerate(islice(micro_batches, accumulation), start=1):
            with self._accelerator.no_sync(self._wrapped) if number < accumulation else nullcontext():
                loss = masked_loss(self._wrapped, batch.to(self.world.device)) / accumulation
                loss.backward()
            total += loss.detach()
        if self.world.size > 1:
            dist.all_reduce(total)
            total /= self.world.size
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total, norm

    def gather(self) -> TrainState | None:
        """See `Engine.gather`."""
        if not self.world.is_main:
            return None
        parameters = dict(self.model.named_parameters())
        moments = {name: self._optimizer.state.get(p, {}) for name, p in parameters.items()}
        steps = {int(state["step"]) for state in moments.values() if state}
        groups = [{k: v for k, v in g.items() if k in _GROUP_KEYS} for g in self._optimizer.param_groups]
        return TrainState(
            weights={name: _host(p) for name, p in parameters.items()},
            exp_avg={name: _host(s["exp_avg"]) for name, s in moments.items() if s},
            exp_avg_sq={name: _host(s["exp_avg_sq"]) for name, s in moments.items() if s},
            optimizer_step=steps.pop() if steps else 0,
            groups=groups,
            tied=_tied(self.model),
        )

    def scatter(self, state: TrainState) -> None:
        """See `Engine.scatter`."""
        parameters = dict(self.model.named_parameters())
        if parameters.keys() != state.weights.keys() or state.tied != _tied(self.model):
            names = ", ".join(sorted(parameters.keys() ^ state.weights.keys())[:3]) or "the tied names"
            raise CheckpointError(f"the checkpoint is of another model: {names} do not match")
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != state.weights[name].shape:
                    found, expected = tuple(state.weights[name].shape), tuple(parameter.shape)
                    raise CheckpointError(f"the checkpoint is of another model: {name} is {found}, not {expected}")
                parameter.copy_(state.weights[name])
        self._optimizer.state.clear()
        # A fused optimizer keeps its step count on the device; the others keep it on the host.
        step_device = self.world.device if self._optimizer.defaults["fused"] else torch.device("cpu")
        for name in state.exp_avg:
            self._optimizer.state[parameters[name]] = {
                "step": torch.tensor(float(state.optimizer_step), device=step_device),
                "exp_avg": state.exp_avg[name].to(self.world.device, copy=True),
                "exp_avg_sq": state.exp_avg_sq[name].to(self.world.device, copy=True),
            }


_GROUP_KEYS = ("names", "lr", "betas", "eps", "weight_decay")


def make_accelerator(device: str | None = None) -> Accelerator:
    """Accelerate for the world that the launcher made; `device` "cpu" keeps off a GPU that is there.

    Raises:
        TrainingError: Accelerate and the launcher disagree on how many processes there are.
    """
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # With a backend named, Accelerate takes a single process for one of several.
    handlers = [InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl")] if launched > 1 else []
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
    if accelerator.num_processes != launched:
        raise TrainingError(
            f"the launcher started {launched} processes, Accelerate sees {accelerator.num_processes}; "
            "start with pipelines/launch.py"
        )
    return accelerator


def make_engine(model: MaskedLM, training: Training, runtime: Runtime, accelerator: Accelerator) -> Engine:
    """The engine that the recipe names.

    Raises:
        TrainingError: the engine is not part of this version.
    """
    if runtime.engine not in ENGINES:
        raise TrainingError(f"runtime.engine: {runtime.engine} is not in this version; {' or '.join(ENGINES)} would do")
    return PlainEngine(model, training, runtime, accelerator)


def world_of(accelerator: Accelerator) -> World:
    """The place of this process among the others."""
    return World(accelerator.process_index, accelerator.num_processes, accelerator.device)


def masked_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The mean cross-entropy over the masked tokens of a batch: a scalar, in fp32."""
    return F.cross_entropy(logits_of(model, batch), batch.targets)


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The logits (M, V) of a batch's masked tokens."""
    return model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices)


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _tied(model: torch.nn.Module) -> dict[str, str]:
    owners: dict[torch.Tensor, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in owners:
            tied[name] = owners[parameter]
        owners.setdefault(parameter, name)
    return tied
