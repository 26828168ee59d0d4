"""The engine: how one optimizer step is carried out, and how its state comes out and goes in.

The loop does not know which engine it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from azneobert.checkpoint.tensors import shapes_of
from azneobert.checkpoint.universal import TrainState
from azneobert.data.stream import Batch, PackedBatch
from azneobert.errors import CheckpointError, TrainingError
from azneobert.model.encoder import MaskedLM
from azneobert.recipe import EngineName, Runtime, Training
from azneobert.training.gpu import prepare_gpu
from azneobert.training.staging import Staging
from azneobert.training.weights import StepWeights

PROCESSES = "AZNEOBERT_PROCESSES"  # in the environment: how many ranks were asked for
_GROUP_KEYS = ("names", "lr", "betas", "eps", "weight_decay")


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
    """What the loop needs of an engine. Each rank's step takes `accumulation` micro-batches."""

    world: World
    model: MaskedLM
    accumulation: int

    def step(self, micro_batches: Iterator[PackedBatch], rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on a global batch; the mean loss over all ranks and the gradient norm before clipping."""

    def stage(self) -> Staging | None:
        """Room on the host for what `gather` brings, on rank 0; nothing on the others."""

    def gather(self, staging: Staging | None = None) -> TrainState | None:
        """The whole state on rank 0, nothing on the others. It lies in `staging`, where that is given."""

    def scatter(self, state: TrainState) -> None:
        """Take over a state, on every rank.

        Raises:
            CheckpointError: the state is of another model.
        """


def make_accelerator(engine: EngineName = "plain", device: str | None = None) -> Accelerator:
    """Accelerate for the world that the launcher made; `device` "cpu" keeps off a GPU that is there.

    Raises:
        TrainingError: who asked, the launcher, Accelerate and torch disagree on how many processes there are.
    """
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if not on_cpu:
        prepare_gpu()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = int(os.environ.get(PROCESSES, launched))
    options: dict[str, Any] = {}
    if engine == "zero2":
        from azneobert.training.zero2_engine import deepspeed_plugin

        if on_cpu and torch.cuda.is_available():
            raise TrainingError("runtime.engine: zero2 takes a GPU where one is visible; hide it, or plain would do")
        options["deepspeed_plugin"] = deepspeed_plugin(on_cpu)
    # With a backend named, Accelerate takes a single process for one of several; under DeepSpeed it always is one.
    if launched > 1 or engine == "zero2":
        options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl")]
    # Told to use the CPU, Accelerate would leave DeepSpeed out without a word.
    accelerator = Accelerator(cpu=on_cpu and engine == "plain", mixed_precision="no", **options)
    # DeepSpeed may run as many ranks while Accelerate takes each for the only one, and the other way round.
    joined = dist.get_world_size() if dist.is_initialized() else 1
    if not wanted == launched == accelerator.num_processes == joined:
        raise TrainingError(
            f"{wanted} processes were asked for, the launcher started {launched}, Accelerate sees "
            f"{accelerator.num_processes}, {joined} have joined; start with pipelines/launch.py"
        )
    return accelerator


def make_engine(
    model: MaskedLM, training: Training, runtime: Runtime, accelerator: Accelerator, micro_batch: int, accumulation: int
) -> Engine:
    """The engine that the recipe names; the accelerator must be made for the same one."""
    order_sums(runtime.deterministic)
    if runtime.engine == "zero2":
        from azneobert.training.zero2_engine import Zero2Engine

        return Zero2Engine(model, training, runtime, accelerator, micro_batch, accumulation)
    from azneobert.training.plain_engine import PlainEngine

    return PlainEngine(model, training, runtime, accelerator, accumulation)


def order_sums(deterministic: bool) -> None:
    """Have kernels that would add in whatever order their threads come add in one order, or let them.

    For this whole process, and before the first matrix product on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may split its sums anew
    torch.use_deterministic_algorithms(deterministic)
    # A debugging aid, which would write all memory twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def world_of(accelerator: Accelerator) -> World:
    """The place of this process among the others."""
    return World(accelerator.process_index, accelerator.num_processes, accelerator.device)


def masked_loss(model: torch.nn.Module, batch: Batch, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The mean cross-entropy over the masked tokens of a batch: a scalar, in fp64. `weights` as in `MaskedLM`."""
    loss: torch.Tensor = model(*_inputs(batch), batch.targets, weights)
    return loss


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The logits (M, V) of a batch's masked tokens."""
    logits: torch.Tensor = model(*_inputs(batch))
    return logits


class Weights(torch.nn.Module):
    """A model as what makes a step's weights of its parameters: what DDP and DeepSpeed wrap, once a step."""

    def __init__(self, model: MaskedLM):
        super().__init__()
        self.model = model

    def forward(self, nothing: None) -> dict[str, torch.Tensor]:
        """See `MaskedLM.weights`. It needs no input, but DDP on a GPU fails where it is called with none."""
        return self.model.weights()


class MicroBatches:
    """The micro-batches of a step through a model, compiled where the recipe asks for it."""

    def __init__(self, model: MaskedLM, runtime: Runtime, device: torch.device, accumulation: int):
        self._model = model
        self._device = device
        self._accumulation = accumulation
        self._compiled = runtime.compile
        self._loss = torch.compile(masked_loss) if runtime.compile else masked_loss
        self._cast_names = model.cast_names()

    def run(self, made: dict[str, torch.Tensor], batches: Iterator[PackedBatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of a step's micro-batches.

        made: the step's weights. Returns the mean loss, in fp64, and a scalar whose backward delivers the gradients.
        """
        weights = StepWeights(made, self._cast_names, self._model.encoder.compute_dtype)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for batch in islice(batches, self._accumulation):
            moved = move(batch, self._device, self._compiled)
            loss = self._loss(self._model, moved, weights.leaves) / self._accumulation
            loss.backward()
            total += loss.detach()
        return total, weights.deliver()


def move(batch: PackedBatch, device: torch.device, compiled: bool) -> Batch:
    """A batch on its device; of a compiled model, the number of its windows may change from batch to batch."""
    moved = batch.to(device)
    if compiled:
        torch._dynamo.maybe_mark_dynamic(moved.cu_seqlens, 0)
    return moved


def _inputs(batch: Batch) -> tuple[torch.Tensor | int, ...]:
    return batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen, batch.masked_indices


def described_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The names and hyper-parameters of an optimizer's groups, as a checkpoint keeps them."""
    return [{key: group[key] for key in _GROUP_KEYS} for group in optimizer.param_groups]


def tied_parameters(model: torch.nn.Module) -> dict[str, str]:
    """Each name under which a parameter stands again, and the name under which it stood first."""
    owners: dict[torch.Tensor, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in owners:
            tied[name] = owners[parameter]
        owners.setdefault(parameter, name)
    return tied


def persistent_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the host of the buffers that belong into a checkpoint, by name."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    saved = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in saved.items()}


def take_over_model(model: torch.nn.Module, state: TrainState) -> None:
    """Copy weights and buffers of a state into a model.

    Raises:
        CheckpointError: the state is of another model.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    found, expected = shapes_of(state.weights), shapes_of(parameters)
    names = found.keys() ^ expected.keys() | state.buffers.keys() ^ persistent_buffers(model).keys()
    if names or state.tied != tied_parameters(model):
        named = ", ".join(sorted(names)[:3]) or "the tied names"
        raise CheckpointError(f"the checkpoint is of another model: {named} do not match")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"the checkpoint is of another model: {name} is {found[name]}, not {shape}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.weights[name])
        for name in state.buffers:
            buffers[name].copy_(state.buffers[name])
