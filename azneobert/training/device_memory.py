"""The memory of the device that a process computes on, and what is predicted to fit into it. It needs no engine."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from azneobert.engine.interface import World
from azneobert.model.backend import Backend
from azneobert.model.memory import MARGIN, StepMemory, blocks_of, largest_that_fits
from azneobert.recipe import PhaseName, Recipe

MOST_ON_CPU = 32  # rows; more rows are not faster on a CPU


@dataclass(frozen=True)
class Memory:
    """The bytes of a device (for a CPU, of this machine), and how many of them this process may have."""

    total: int
    free: int


def needed(recipe: Recipe, phase: PhaseName, backend: Backend, world: World) -> StepMemory:
    """The memory that a step of a phase takes on a rank of this world."""
    attention = backend.attention_name
    blocks = blocks_of(recipe.runtime, attention, fused=backend.fused)
    return StepMemory.of(recipe, phase, blocks, world.size, attention)


def rows_by_prediction(recipe: Recipe, phase: PhaseName, backend: Backend, world: World) -> int:
    """The most rows that this process computes at once outside of a run: the recipe's, or what is predicted to fit."""
    if recipe.runtime.max_micro_batch != "auto":
        return recipe.runtime.max_micro_batch
    candidates = list(range(1, MOST_ON_CPU + 1))
    memory = memory_of(world.device)
    need = needed(recipe, phase, backend, world)
    return largest_that_fits(need, candidates, memory.free - MARGIN * memory.total) or 1


def memory_of(device: torch.device) -> Memory:
    """The memory of a GPU, or of this machine within the limits of this process."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, free + torch.cuda.memory_allocated(device))
    system = psutil.virtual_memory()
    found = [Memory(system.total, system.available), *control_group_limits()]
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        found.append(Memory(most, most - psutil.Process().memory_info().vms))
    return Memory(min(each.total for each in found), max(0, min(each.free for each in found)))


def control_group_limits(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[Memory]:
    """The limits of the control groups that this process is in, such as a container's or a job's, of version 1 or 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = base / place.strip("/")  # in a container the path may be the host's, which is not there
        for folder in (group, *group.parents):
            if (limit := _limit(folder, *names)) is not None:
                yield limit
            if folder == base:
                break


def _limit(folder: Path, limit: str, usage: str, cache: str) -> Memory | None:
    try:
        total = int((folder / limit).read_text())  # not a number: no limit
        used = int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return Memory(total, total - used + int(statistics.get(cache, 0)))  # cached files make room
