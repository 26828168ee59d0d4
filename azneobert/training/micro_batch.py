"""The micro-batch of `runtime.max_micro_batch: auto`: the largest that fits, found before training and written down.

On a GPU trials decide, beginning at the prediction of memory.py. A trial is a forward and a backward pass of the model
as it will be trained, on the phase's own rows, with room held for what exists only later. On a CPU the prediction alone
decides.
"""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list

from azneobert.data.stream import PackedBatch, Stream
from azneobert.dotted import differences
from azneobert.engine.interface import World
from azneobert.engine.make import order_sums
from azneobert.engine.micro_batches import MicroBatches
from azneobert.errors import TrainingError
from azneobert.files import read_json, write_json
from azneobert.model.backend import Backend
from azneobert.model.encoder import MaskedLM
from azneobert.model.memory import MARGIN, StepMemory, largest_that_fits, micro_batches
from azneobert.recipe import Runtime
from azneobert.training.device_memory import MOST_ON_CPU, Memory, memory_of, needed
from azneobert.training.inputs import Inputs

SECONDS = 60.0  # after which no larger micro-batch is tried, once one has been found to fit
_LESS = 0.9  # after one that did not fit, the next is predicted to take at most this part of it
_GIB = 2**30


def micro_batch_rows(inputs: Inputs, model: MaskedLM, stream: Stream, world: World) -> int:
    """The most rows that a micro-batch of this phase may have, the same on every rank: the recipe's, or what fits.

    The result is kept in the run's folder, and taken from there as long as all that it depends on is the same. The
    model and the state of torch are the same afterwards.

    Raises:
        TrainingError: not even one row fits.
    """
    recipe, phase = inputs.recipe, inputs.phase
    if recipe.runtime.max_micro_batch != "auto":
        return recipe.runtime.max_micro_batch
    memory = memory_of(world.device)
    facts = _facts(inputs, model.encoder.backend, world, memory)
    known = _written_down(inputs, facts) if world.is_main else None
    [rows] = broadcast_object_list([known])
    if rows is not None:
        return int(rows)
    need = needed(recipe, phase, model.encoder.backend, world)
    candidates = micro_batches(recipe.phase(phase).global_batch // world.size)
    if world.device.type == "cuda":
        found = rows_by_trial(model, recipe.runtime, stream, world, need, candidates, memory)
    else:
        found = _by_prediction(world, need, candidates, memory)
    if found is None:
        raise TrainingError(
            f"{phase}: no micro-batch fits: one row of {need.sequence_length:,} tokens is predicted to take "
            f"{_gib(need.peak_bytes(1))} GiB, and {_gib(memory.free)} of {_gib(memory.total)} GiB are free on "
            f"{_device_name(world.device)}; use a smaller model, shorter rows, or more memory"
        )
    rows, taken = found
    if world.is_main:
        said = "fits" if world.device.type == "cuda" else "is predicted to fit"
        print(f"{phase}: micro-batch {rows} {said} ({_gib(taken)} of {_gib(memory.total)} GiB)", flush=True)
        write_json(inputs.run.micro_batch_file, {"micro_batch": rows, "bytes": taken, "found_for": facts})
    return rows


def find_largest(
    candidates: list[int],
    predicted: Callable[[int], int],
    memory: float,
    attempt: Callable[[int], tuple[int | None, float]],
) -> tuple[int, int] | None:
    """The largest candidate (ascending) that fits into `memory` bytes by an attempt, and its bytes.

    `attempt` gives the bytes that were taken, or None if they were too many, and the seconds of the whole search so
    far. The first attempt is the largest that is predicted to fit; one that fits corrects the later predictions.
    """
    found: tuple[int, int] | None = None
    error = 1.0
    rows = max((each for each in candidates if predicted(each) <= memory), default=candidates[0])
    while True:
        taken, seconds = attempt(rows)
        if taken is None:
            candidates = [each for each in candidates if each < rows]
            most = _LESS * predicted(rows)
            clearly_less = (each for each in candidates if predicted(each) <= most)
            following = max(clearly_less, default=max(candidates, default=None))
        else:
            found, error = (rows, taken), taken / predicted(rows)
            candidates = [each for each in candidates if each > rows]
            following = max((each for each in candidates if error * predicted(each) <= memory), default=None)
        if following is None or (found is not None and seconds > SECONDS):
            return found
        rows = following


def rehearse(model: MaskedLM, runtime: Runtime, batch: PackedBatch, need: StepMemory, spare: int) -> bool:
    """Whether a micro-batch, and what exists beside it in a run, fit into the memory of the model's device.

    `spare` bytes stay free. Afterwards the model has no gradients, and its weights are unchanged.
    """
    device = next(model.parameters()).device
    rows = batch.sizes[1] // need.sequence_length
    held = []
    try:
        # The parameters are there; moments, buckets and the gradients of micro-batches before this one are not.
        held += [_room(spare, device), _room(need.state_bytes(), device)]
        MicroBatches(model, runtime, device, 1).probe(batch, 1)
        held.append(_room(need.bytes_beside(rows) - need.state_bytes() - need.gradient_bytes(), device))
    except torch.OutOfMemoryError:
        return False
    return True


def _room(count: int, device: torch.device) -> torch.Tensor:
    return torch.empty(max(0, count), dtype=torch.uint8, device=device)


def rows_by_trial(
    model: MaskedLM,
    runtime: Runtime,
    stream: Stream,
    world: World,
    need: StepMemory,
    candidates: list[int],
    memory: Memory,
) -> tuple[int, int] | None:
    """The largest candidate (ascending) that fits on every rank's GPU, and the most bytes that it takes on one.

    model: it is left on the GPU, unchanged, for an engine; stream: the phase's, whose rows are tried.
    """
    began = time.monotonic()
    spare = int(MARGIN * memory.total)
    model.to(world.device)
    order_sums(runtime.deterministic)  # before the first matrix product

    def attempt(rows: int) -> tuple[int | None, float]:
        _forget(world.device)
        fits = rehearse(model, runtime, stream.packed_batch(0, rows), need, spare)
        taken = torch.cuda.max_memory_allocated(world.device) - spare if fits else float("inf")
        taken, seconds = _largest_of_ranks((taken, time.monotonic() - began), world)
        return None if taken == float("inf") else int(taken), seconds

    most = -_largest_of_ranks((-float(memory.free - spare),), world)[0]
    found = find_largest(candidates, need.peak_bytes, most, attempt)
    _forget(world.device)
    return found


def _forget(device: torch.device) -> None:
    """Leave nothing of a trial: no memory, no peak, and no kernels compiled for shapes that may change."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def _by_prediction(world: World, need: StepMemory, candidates: list[int], memory: Memory) -> tuple[int, int] | None:
    # Room for the copy of parameters and moments that a checkpoint is written from: engine/staging.py.
    room = (memory.free - MARGIN * memory.total) / _ranks_on_this_host(world) - 3 * need.gradient_bytes()
    [least] = _largest_of_ranks((-room,), world)
    within = [rows for rows in candidates if rows <= MOST_ON_CPU]
    rows = largest_that_fits(need, within, -least)
    return None if rows is None else (rows, need.peak_bytes(rows))


def _ranks_on_this_host(world: World) -> int:
    hosts = [socket.gethostname()] * world.size
    if world.size > 1:  # LOCAL_WORLD_SIZE is set by Accelerate, to 1 where it does not know
        dist.all_gather_object(hosts, socket.gethostname())
    return hosts.count(socket.gethostname())


def _largest_of_ranks(values: tuple[float, ...], world: World) -> list[float]:
    together = torch.tensor(values, dtype=torch.float64, device=world.device)
    if world.size > 1:
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
    result: list[float] = together.tolist()
    return result


def _facts(inputs: Inputs, backend: Backend, world: World, memory: Memory) -> dict[str, Any]:
    """Everything that the result of a search depends on."""
    recipe = inputs.recipe
    phase = recipe.phase(inputs.phase)
    return {
        "device": _device_name(world.device),
        "memory": memory.total,
        "processes": world.size,
        "engine": recipe.runtime.engine,
        "kernels": str(backend),
        "compile": recipe.runtime.compile,
        "compute_dtype": recipe.training.compute_dtype,
        "masking_rate": recipe.training.masking_rate,
        "sequence_length": phase.sequence_length,
        "global_batch": phase.global_batch,
        "model": recipe.model.model_dump(mode="json"),
    }


def _written_down(inputs: Inputs, facts: dict[str, Any]) -> int | None:
    """The earlier result, if it is for the same facts; if it cannot be used, the reason is printed."""
    file = inputs.run.micro_batch_file
    try:
        content = read_json(file)
        rows, found_for = int(content["micro_batch"]), dict(content["found_for"])
        if rows < 1:
            raise ValueError(f"a micro-batch of {rows} rows")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        print(f"{inputs.phase}: {file} is damaged; the micro-batch is looked for anew", flush=True)
        return None
    if changed := differences(found_for, facts):
        print(
            f"{inputs.phase}: {file} is for other settings ({'; '.join(changed[:3])}); the micro-batch is looked for "
            "anew",
            flush=True,
        )
        return None
    print(f"{inputs.phase}: micro-batch {rows}, as {file} says", flush=True)
    return rows


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _gib(count: float) -> str:
    return f"{count / _GIB:,.1f}"
