"""`azneobert bench train`: what a training step costs, from the seed project's way of computing it to ours.

Every row is a process of its own on each GPU, with the engine, the row plan, the stream and the loader that pretraining
uses; only the tokens are drawn at random. Steps are timed by events on the GPU, so that measuring does not stop it.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from azneobert.bench.models import published_model, small_model
from azneobert.bench.ranks import run_ranks
from azneobert.bench.report import Row
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.bench.variants import ABLATION, Variant, build_engine
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.interface import Engine
from azneobert.errors import TrainingError
from azneobert.kernels.flash import installed
from azneobert.model.size import flops_per_token
from azneobert.recipe import Guards, Model
from azneobert.training.inputs import Inputs, open_streams
from azneobert.training.meter import PEAK_FLOPS, Feed

DATASHEET = PEAK_FLOPS["NVIDIA H200"]
_WARM_STEPS = 2


@dataclass(frozen=True)
class Shape:
    """What a step trains on: rows of one full-length document each, or rows packed with short ones."""

    sequence_length: int = 1024
    micro_batch: int = 48
    accumulation: int = 6
    packed: bool = False

    def __str__(self) -> str:
        rows = "packed" if self.packed else "full"
        return f"{rows} rows of {self.sequence_length:,}, {self.accumulation} x {self.micro_batch}"


@dataclass(frozen=True)
class Job:
    """A row of the table before it is measured."""

    variant: Variant
    shape: Shape
    steps: int
    model: Model
    world: int = 1
    bar: float | None = None  # tokens a second
    profile: str | None = None  # a folder for the trace of one step
    guards: bool = False  # whether to measure what they cost
    text: Inputs | None = None  # whose training rows to take; otherwise random tokens


_OURS = ABLATION["fused"]


def jobs(names: list[str], rows: list[str], steps: int) -> Iterator[Job]:
    """The table for the GPUs that are there: the ablation, then our kernels on other rows, and fp8 if it is named.

    names: of ABLATION; rows: among free, packed, 4096, worlds, steady, guards.
    """
    model, shape = published_model(), Shape()
    world = torch.cuda.device_count()
    for name in names:
        variant = ABLATION[name]
        if variant.attention == "auto" or installed(variant.attention):
            # The logits of all tokens of 48 rows, in fp32 and with their gradient, leave no room beside an eager model.
            heavy = variant.head_on_all
            shaped = replace(shape, micro_batch=24, accumulation=12) if heavy else shape
            yield Job(variant, shaped, steps, model)
    others = {
        "free": (replace(shape, micro_batch=144), 330e3),
        "packed": (replace(shape, packed=True, micro_batch=144), 345e3),
        "4096": (replace(shape, sequence_length=4096, micro_batch=36), 215e3),
    }
    for row, (shaped, bar) in others.items():
        if row in rows:
            for variant in (_OURS, ABLATION["fp8"]) if "fp8" in names else (_OURS,):
                yield Job(variant, shaped, steps, model, bar=bar)
    if "worlds" in rows and world > 1:
        for variant in (_OURS, ABLATION["zero2"]):
            yield Job(variant, shape, steps, model, world=world)
    if "steady" in rows:
        yield Job(_OURS, replace(shape, packed=True, accumulation=1), 200, model)
    if "guards" in rows:
        yield Job(ABLATION["deterministic"], shape, steps, model, guards=True)


def toy_jobs() -> Iterator[Job]:
    """The same on any machine in a minute: shows that it runs."""
    shape = Shape(sequence_length=64, micro_batch=4, accumulation=2)
    for name in ("eager", "rope", "head", "fused", "zero2"):
        toy = replace(ABLATION[name], compile=False, attention="auto")
        yield Job(toy, shape, 3, small_model())
    yield Job(replace(_OURS, compile=False), replace(shape, packed=True), 3, small_model())
    yield Job(replace(ABLATION["deterministic"], compile=False, attention="auto"), shape, 3, small_model(), guards=True)


def bench_train(planned: list[Job]) -> Iterator[Row]:
    """Measure each job. Yields a row for its speed, and rows for its other figures that have a bar."""
    first: dict[str, Any] | None = None
    alone: dict[str, Any] | None = None
    for job in planned:
        try:
            if job.steps >= 200:
                measure(replace(job, steps=2))  # compiles the kernels for these rows
            found = measure(job)
        except TrainingError as error:
            yield Row(f"{job.variant.name}; {job.shape}", "failed", note=str(error))
            continue
        first = first or found
        yield speed_row(job, found, first)
        if job.variant == _OURS and job.world == 1 and job.shape == Shape():
            alone = found
            ratio = found["tokens_per_second"] / first["tokens_per_second"]
            if first is not found:
                yield Row("our kernels over the first row", f"{ratio:.2f} x", ">= 2.0 x", ratio >= 2.0)
        if job.world > 1 and alone:
            share = found["tokens_per_second"] / alone["tokens_per_second"]
            what = f"{job.world} GPUs, {job.variant.engine}: the rate of each, of one GPU's alone"
            yield Row(what, f"{share:.1%}", ">= 97%", share >= 0.97)
        if job.steps >= 200:
            yield from steadiness(found)
        if job.guards:
            yield from guards_cost(found)


def speed_row(job: Job, found: dict[str, Any], first: dict[str, Any]) -> Row:
    """Tokens a second of one GPU, and in the note everything else that was measured in the same steps."""
    rate = found["tokens_per_second"]
    note = [
        f"{found['step_ms']:.1f} ms a step",
        f"{rate / first['tokens_per_second']:.2f} x the first row",
        f"{rate * found['flops_per_token'] / 1e12:.0f} TFLOP/s",
        f"MFU {rate * found['flops_per_token'] / found['matmul_peak']:.1%} of a matrix product's rate here",
    ]
    if found["gpu"]:
        note.append(f"{rate * found['flops_per_token'] / DATASHEET:.1%} of {DATASHEET / 1e12:.0f} TFLOP/s")
    note += [
        f"{found['memory_gib']:.1f} GiB",
        f"loader {found['loader_share']:.2%} of the time",
        f"{found['host_syncs']} synchronisations with the host in a step",
        f"first step {found['start_seconds']:.0f} s after the start",
        found["backend"],
    ]
    bar = "" if job.bar is None else f">= {job.bar / 1e3:.0f} k"
    met = None if job.bar is None else rate >= job.bar
    world = f" on {job.world} GPUs" if job.world > 1 else ""
    return Row(f"{job.variant.name}{world}; {job.shape}", f"{rate / 1e3:.1f} k tokens/s", bar, met, "; ".join(note))


def steadiness(found: dict[str, Any]) -> Iterator[Row]:
    """Rows on how steady many steps in a row are."""
    ratio = found["step_p99_ms"] / found["step_ms"]
    yield Row("step time, 99th percentile over the median, 200 steps", f"{ratio:.3f}", "<= 1.05", ratio <= 1.05)
    share = found["loader_share"]
    yield Row("the loader's share of the step time", f"{share:.2%}", "< 1%", share < 0.01)
    start = found["start_seconds"]
    yield Row("start to the first optimizer step, compile cache warm", f"{start:.1f} s", "<= 45 s", start <= 45)


def guards_cost(found: dict[str, Any]) -> Iterator[Row]:
    """The cost of judging each update, and of computing a micro-batch a second time every `repeat_every` steps."""
    every = Guards().repeat_every
    repeating = (found["repeat_ms"] - found["alone_ms"]) / (every * found["alone_ms"])
    note = f"{found['repeat_ms']:.1f} ms a step with, {found['alone_ms']:.1f} ms without, medians in turns"
    what = f"a micro-batch computed twice, every {every} steps: share of the time"
    yield Row(what, f"{repeating:.3%}", "<= 0.1%", repeating <= 0.001, note)
    share = found["judge_ms"] / found["alone_ms"]
    yield Row(
        "judging an update: share of a step", f"{share:.3%}", "<= 0.1%", share <= 0.001, f"{found['judge_ms']:.3f} ms"
    )


def measure(job: Job) -> dict[str, Any]:
    """Run a job on its GPUs; the figures of rank 0.

    Raises:
        TrainingError: a rank failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if job.text is None:
            write_rows(folder, job)
        run_ranks(_rank, job, folder, time.time(), world=job.world)
        figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
        return figures


def write_rows(folder: Path, job: Job) -> None:
    """Random tokens and their row plan: documents that fill a row each, or of 450 tokens on average."""
    length = job.shape.sequence_length
    if job.shape.packed:
        mean = min(450, length)
        lengths = np.random.default_rng(1).lognormal(np.log(mean) - 0.5, 1.0, 1_000_000 // mean).clip(8).astype(int)
    else:
        lengths = np.full(max(64, 1_000_000 // length), length - 2)  # a window is framed by two more
    write_small_corpus(folder, job.model.vocab_size, length, lengths=lengths)


def _rank(job: Job, folder: Path, began: float) -> None:
    shape = job.shape
    engine = build_engine(job.variant, job.model, shape.micro_batch, shape.accumulation)
    device = engine.world.device
    on_gpu = device.type == "cuda"
    rows = shape.micro_batch * shape.accumulation * engine.world.size
    extra = _WARM_STEPS + 2 + (job.profile is not None) + 2 * (job.steps + 1) * job.guards
    first_samples = range(0, (job.steps + extra) * rows, rows)
    samples = SampleRange(first_samples, shape.micro_batch, shape.accumulation, engine.world.rank)
    stream = open_streams(job.text)[0] if job.text else open_small_corpus(folder)
    loader = micro_batch_loader(stream, samples, workers=4 if on_gpu else 0, pin_memory=on_gpu)
    batches = Feed(loader)
    engine.step(batches, 1e-4)[0].item()
    start_seconds = time.time() - began
    for _ in range(_WARM_STEPS):
        engine.step(batches, 1e-4)
    syncs = host_syncs(engine, batches) if on_gpu else 0
    durations, wall, waited, attended = timed_steps(engine, batches, job.steps)
    cost = _guards_cost(engine, batches, job.steps) if job.guards else {}
    if job.profile is not None:
        write_trace(engine, batches, Path(job.profile) / f"{slug(job)}-{engine.world.rank}.json")
    loader.close()
    if engine.world.is_main:
        tokens = shape.micro_batch * shape.accumulation * shape.sequence_length
        figures = {
            "tokens_per_second": tokens / np.mean(durations),
            "step_ms": 1e3 * np.median(durations),
            "step_p99_ms": 1e3 * np.quantile(durations, 0.99),
            "loader_share": waited / wall,
            "flops_per_token": flops_per_token(job.model, attended, stream.masks_per_row / shape.sequence_length),
            "matmul_peak": matmul_peak(device, engine.model.encoder.compute_dtype),
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
            "host_syncs": syncs,
            "start_seconds": start_seconds,
            "backend": str(engine.model.encoder.backend),
            "gpu": on_gpu,
            **cost,
        }
        (folder / "figures.json").write_text(json.dumps(figures, default=float))
    if engine.world.size > 1:
        torch.distributed.destroy_process_group()


class _Marks:
    """Moments in the queue of a GPU, or by the host's clock where there is none."""

    def __init__(self, on_gpu: bool):
        self._on_gpu = on_gpu
        self._marks: list[Any] = []

    def add(self) -> None:
        """Record this moment, on a GPU the moment when its queue gets here."""
        self._marks.append(torch.cuda.Event(enable_timing=True) if self._on_gpu else time.perf_counter())
        if self._on_gpu:
            self._marks[-1].record()

    def seconds(self) -> list[float]:
        """Seconds from each mark to the next; the GPU must have reached the last mark."""
        return [a.elapsed_time(b) / 1e3 if self._on_gpu else b - a for a, b in pairwise(self._marks)]


def timed_steps(engine: Engine, batches: Feed, steps: int) -> tuple[list[float], float, float, float]:
    """Seconds of each step, of all steps by the host's clock, and of waiting for data; and the mean attended length."""
    on_gpu = engine.world.device.type == "cuda"
    marks = _Marks(on_gpu)
    _wait_for_gpu(on_gpu)
    batches.read()
    start = time.perf_counter()
    marks.add()
    for _ in range(steps):
        engine.step(batches, 1e-4)
        marks.add()
    _wait_for_gpu(on_gpu)
    wall = time.perf_counter() - start
    return marks.seconds(), wall, *batches.read()


def _guards_cost(engine: Engine, batches: Feed, steps: int) -> dict[str, float]:
    """Milliseconds of a step with and without a repetition, in turns, and of judging one."""
    on_gpu = engine.world.device.type == "cuda"
    marks = _Marks(on_gpu)
    engine.step(batches, 1e-4, repeat=True)  # memory for the second set of gradients
    engine.step(batches, 1e-4)
    marks.add()
    for _ in range(steps):
        for repeat in (True, False):
            engine.step(batches, 1e-4, repeat=repeat)
            marks.add()
    loss, norm = torch.ones((), device=engine.world.device), torch.ones((), device=engine.world.device)
    for _ in range(100):
        engine.guard.judge(loss, norm)
    marks.add()
    _wait_for_gpu(on_gpu)
    times = [1e3 * seconds for seconds in marks.seconds()]
    return {
        "repeat_ms": float(np.median(times[:-1:2])),
        "alone_ms": float(np.median(times[1:-1:2])),
        "judge_ms": times[-1] / 100,
    }


def host_syncs(engine: Engine, batches: Feed) -> int:
    """How often a step makes the host wait for the GPU, as far as torch knows of it."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.step(batches, 1e-4)
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def write_trace(engine: Engine, batches: Feed, file: Path) -> None:
    """A trace of one step for chrome://tracing or Perfetto."""
    from torch.profiler import ProfilerActivity, profile

    file.parent.mkdir(parents=True, exist_ok=True)
    on_gpu = engine.world.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as traced:
        engine.step(batches, 1e-4)
        _wait_for_gpu(on_gpu)
    traced.export_chrome_trace(str(file))


def slug(job: Job) -> str:
    """A job's name as a file's."""
    return re.sub(r"\W+", "-", f"{job.variant.name} {job.shape}").strip("-").lower()


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The rate of a large square matrix product here, FLOP/s: the yardstick that no data sheet gives."""
    on_gpu = device.type == "cuda"
    size, times = (8192, 30) if on_gpu else (512, 3)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    _wait_for_gpu(on_gpu)
    start = time.perf_counter()
    for _ in range(times):
        a @ b
    _wait_for_gpu(on_gpu)
    return 2 * size**3 * times / (time.perf_counter() - start)


def _wait_for_gpu(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
