"""`azneobert bench scaling`: what a step loses on several GPUs, predicted from the traffic between them, and measured.

A step of either engine first computes all its micro-batches and then exchanges, so nothing overlaps:

    step on N GPUs = step of the slowest GPU, with the others at work too, + the step's collectives on N GPUs

Both parts and the whole step are measured here. If the sum is right, the same two parts predict more GPUs: a collective
over N ranks moves (N - 1) / N of what it would move over very many ranks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from azneobert.bench.models import published_model, small_model
from azneobert.bench.ranks import run_ranks
from azneobert.bench.report import Row
from azneobert.bench.train import Job, Shape, measure
from azneobert.bench.variants import ABLATION, Variant
from azneobert.engine.make import make_accelerator
from azneobert.engine.optim import parameter_groups
from azneobert.errors import AzNeoBertError, TrainingError
from azneobert.model.encoder import MaskedLM
from azneobert.recipe import EngineName, Model

Kind = Literal["all_reduce", "all_gather"]
_BYTES = 4  # gradients and weights cross in fp32
_REPETITIONS = 20
# The published batch, 2,304 rows of 1,024 on eight GPUs, in six micro-batches and in two; and 512 rows of 4,096.
_SHAPES = (Shape(), Shape(micro_batch=144, accumulation=2), Shape(4096, micro_batch=32, accumulation=2))
_EFFICIENCY, _RATE, _STEP = 0.95, 2.5e6, 0.95  # at least, at least, at most: on eight


@dataclass(frozen=True)
class Plan:
    """What is measured: `shapes` of a step with each of `engines` on `world` ranks. `ahead` ranks are predicted."""

    engines: tuple[EngineName, ...]
    world: int
    ahead: int
    steps: int
    model: Model
    shapes: tuple[Shape, ...]
    quick: bool = False

    def variant(self, engine: EngineName) -> Variant:
        """How a step is computed. The quick form leaves out what needs a GPU."""
        variant = ABLATION["zero2" if engine == "zero2" else "fused"]
        return replace(variant, compile=False) if self.quick else variant


def full_plan(engines: list[EngineName], gpus: int | None, ahead: int, steps: int) -> Plan:
    """The published model at the published run's batches, on `gpus` GPUs or on all.

    Raises:
        AzNeoBertError: there are fewer, or only one.
    """
    there = torch.cuda.device_count()
    world = there if gpus is None else gpus
    if not 2 <= world <= there:
        raise AzNeoBertError(f"--gpus {world}: torch sees {there}; expected two or more, and no more than there are")
    return Plan(tuple(engines), world, ahead, steps, published_model(), _SHAPES)


def toy_plan() -> Plan:
    """The same on any machine in a minute: shows that it runs."""
    return Plan(("plain", "zero2"), 2, 4, 3, small_model(), (Shape(64, 4, 2),), quick=True)


def exchanged(engine: EngineName, config: Model) -> list[tuple[Kind, int]]:
    """What a step sends to other ranks, in elements, but for a few scalars.

    Both engines all-reduce all gradients, bucket by bucket: DeepSpeed too reduces whole buckets and keeps its rank's
    part (engine/zero2.py says why). ZeRO-2 then all-gathers the new weights from the ranks' parts.
    """
    with torch.device("meta"):
        model = MaskedLM(config)
    groups = [sum(p.numel() for p in group["params"]) for group in parameter_groups(model, 0.0)]
    sums: list[tuple[Kind, int]] = [("all_reduce", sum(groups))]
    return sums + ([("all_gather", size) for size in groups] if engine == "zero2" else [])


def moved(kind: Kind, elements: int, world: int) -> float:
    """The least bytes that each rank has to send. Bytes by this rule over time give a rate that holds for any world.

    In an all-reduce of 1 GB over two ranks each rank sends 1 GB, over eight ranks 1.75 GB; in an all-gather half of
    that. NCCL's own benchmarks (nccl-tests) compute their bus bandwidth by this rule.
    """
    share = (world - 1) / world
    return elements * _BYTES * share * (2 if kind == "all_reduce" else 1)


def bench_scaling(plan: Plan) -> Iterator[Row]:
    """Rows for the links; then for each engine and shape the step, its two parts, their sum, and the prediction."""
    links: dict[tuple[Kind, int], float] = {}
    for engine in plan.engines:
        missing = [item for item in exchanged(engine, plan.model) if item not in links]
        links |= zip(missing, link_seconds(missing, plan.world), strict=True)
        for kind, elements in missing:
            yield _link_row(kind, elements, links[kind, elements], plan.world)
    for shape in plan.shapes:
        for engine in plan.engines:
            what = f"{engine}; {shape}"
            job = Job(plan.variant(engine), shape, plan.steps, plan.model)
            try:
                beside = measure_beside(job, plan.world)
                together = measure(replace(job, world=plan.world))
            except TrainingError as error:
                yield Row(what, "failed", note=str(error))
                continue
            parts = [(kind, elements, links[kind, elements]) for kind, elements in exchanged(engine, plan.model)]
            yield from step_rows(plan, what, shape, beside, together["step_ms"] / 1e3, parts)


def _link_row(kind: Kind, elements: int, seconds: float, world: int) -> Row:
    rate = moved(kind, elements, world) / seconds
    what = f"{kind} of {elements * _BYTES / 1e6:,.1f} MB over {world} ranks"
    return Row(what, f"{1e3 * seconds:.2f} ms", note=f"{rate / 1e9:.1f} GB/s from each, median of {_REPETITIONS}")


def step_rows(
    plan: Plan, what: str, shape: Shape, beside: list[float], together: float, parts: list[tuple[Kind, int, float]]
) -> Iterator[Row]:
    """The measured step, the prediction here and its error, and the prediction for more ranks.

    beside: seconds of each GPU's own step, all GPUs at work at once; together: seconds of the common step; parts: its
    collectives with their seconds here.
    """
    rows = shape.micro_batch * shape.accumulation
    tokens = rows * shape.sequence_length
    crossing = sum(seconds for _, _, seconds in parts)
    predicted = max(beside) + crossing
    share = max(beside) / together
    yield Row(
        f"{what}: a step on {plan.world}",
        f"{1e3 * together:.1f} ms",
        note=f"{1e3 * max(beside):.1f} ms of the slowest by itself ({1e3 * min(beside):.1f} of the fastest) + "
        f"{1e3 * crossing:.1f} ms of collectives = {1e3 * predicted:.1f} ms predicted, "
        f"{together / predicted - 1:+.2%}; {tokens * plan.world / together / 1e6:.3f} M tokens/s",
    )
    what_share = f"{what}: {plan.world} ranks over {plan.world} times the slowest"
    yield Row(what_share, f"{share:.1%}", f">= {_EFFICIENCY:.0%}", share >= _EFFICIENCY)
    if plan.ahead <= plan.world:
        if plan.world == 8:
            yield from _published_bars(what, shape, tokens, together)
        return
    longer = sum(
        seconds * moved(kind, elements, plan.ahead) / moved(kind, elements, plan.world)
        for kind, elements, seconds in parts
    )
    step = max(beside) + longer
    yield Row(
        f"{what}: predicted for {plan.ahead}",
        f"{1e3 * step:.1f} ms",
        note=f"{1e3 * longer:.1f} ms of it collectives, at the rate of the links measured here; "
        f"{max(beside) / step:.1%} of {plan.ahead} times the slowest; {rows * plan.ahead:,} rows a step; "
        f"{tokens * plan.ahead / step / 1e6:.3f} M tokens/s",
    )


def _published_bars(what: str, shape: Shape, tokens: int, together: float) -> Iterator[Row]:
    if shape.sequence_length == Shape().sequence_length:
        rate = 8 * tokens / together
        yield Row(f"{what}: tokens/s on 8", f"{rate / 1e6:.3f} M", f">= {_RATE / 1e6} M", rate >= _RATE)
        yield Row(f"{what}: the step", f"{together:.3f} s", f"<= {_STEP} s", together <= _STEP)


# Measuring


def link_seconds(collectives: list[tuple[Kind, int]], world: int) -> list[float]:
    """The seconds of each collective over `world` ranks: the median of many runs on rank 0.

    Raises:
        TrainingError: a rank failed.
    """
    if not collectives:
        return []
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "seconds.json"
        run_ranks(_links_rank, collectives, file, world=world)
        found: list[float] = json.loads(file.read_text())
        return found


def _links_rank(collectives: list[tuple[Kind, int]], file: Path) -> None:
    accelerator = make_accelerator()
    device, world = accelerator.device, accelerator.num_processes
    found = []
    for kind, elements in collectives:
        own = -(-elements // world)
        whole = torch.zeros(own * world, device=device)
        part = torch.zeros(own, device=device)
        seconds = []
        for _ in range(3 + _REPETITIONS):
            _wait(device)
            dist.barrier()
            _wait(device)
            start = time.perf_counter()
            if kind == "all_reduce":
                dist.all_reduce(whole)
            else:
                dist.all_gather_into_tensor(whole, part)
            _wait(device)
            seconds.append(time.perf_counter() - start)
        found.append(statistics.median(seconds[3:]))
    if accelerator.is_main_process:
        file.write_text(json.dumps(found))
    dist.destroy_process_group()


def measure_beside(job: Job, world: int) -> list[float]:
    """Seconds of each GPU's own step, with all GPUs at work at once, so that they share host, power and air.

    Raises:
        TrainingError: one of them failed.
    """
    with ProcessPoolExecutor(world, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_measure_on, number, job) for number in range(world)]
        return [future.result()["step_ms"] / 1e3 for future in futures]


def _measure_on(number: int, job: Job) -> dict[str, Any]:
    os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
    return measure(job)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
