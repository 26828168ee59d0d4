"""`azneobert bench checkpoint`: what a save costs the loop, how fast the disk is used, and what a conversion takes."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from azneobert.bench.measure import forget, in_child
from azneobert.bench.models import bare_manifest, published_model, small_model, some_runtime, some_training
from azneobert.bench.report import Row
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.checkpoint.convert import convert
from azneobert.checkpoint.rotation import BackgroundWriter, CheckpointFolder
from azneobert.checkpoint.universal import KINDS, TrainState, open_checkpoint, read_checkpoint, write_checkpoint
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.interface import Engine
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model
from azneobert.model.size import count_parameters
from azneobert.recipe import EngineName, Model

_ROWS, _ROW_LENGTH = 2, 128
_SHARDS = 8
_CHUNK = 1 << 24


def bench_checkpoint(full: bool, scratch: Path | None = None) -> Iterator[Row]:
    """Every row of the table, as it is measured: of the published model, or of a toy. `scratch` is the disk to use."""
    config, turns = (published_model(), 3) if full else (small_model(), 1)
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-", dir=scratch) as name:
        folder = Path(name)
        write_small_corpus(folder, config.vocab_size, _ROW_LENGTH, documents=400)
        engines: tuple[EngineName, ...] = ("plain", "zero2")
        for engine in engines:
            yield from _stall_rows(folder, config, engine, turns)
        yield from _disk_rows(folder, turns)
        yield from _convert_rows(folder, turns)
        yield from _resume_rows(folder, config, turns)


def _stall_rows(folder: Path, config: Model, engine: EngineName, turns: int) -> Iterator[Row]:
    measured = in_child(_stall, folder, config, engine, turns)
    stalls, copies, device, free, writing = measured.result
    bar = 1.0 if device == "cpu" else 0.3
    stall = statistics.median(stalls)
    yield Row(
        f"stall of the loop for one save, {engine} on 1 {device}",
        f"{stall:.3f} s",
        f"<= {bar} s",
        stall <= bar,
        f"median of {len(stalls)}, longest {max(stalls):.3f} s; of it the copy to the host "
        f"{statistics.median(copies):.3f} s, {12 * count_parameters(config) / 1e9:.2f} GB; "
        f"a step takes {free:.3f} s, and {writing:.3f} s while the checkpoint is being written",
    )


def _stall(
    folder: Path, config: Model, name: EngineName, turns: int
) -> tuple[list[float], list[float], str, float, float]:
    """Save again and again as the loop does; the last checkpoint stays for the other rows."""
    engine = _engine(config, name)
    batches = _batches(folder, 0)
    staging = engine.stage()
    checkpoints = CheckpointFolder(folder / "checkpoints", 1)
    writer = BackgroundWriter(checkpoints)
    stalls, copies, free, writing = [], [], [], []
    for step in range(1, turns + 2):
        free.append(_timed_step(engine, batches))
        start = time.perf_counter()
        state = engine.gather(staging)
        copied = time.perf_counter()
        assert state is not None
        writer.submit(state, bare_manifest(step), folder / "store" / "meta.json")  # any file will do as tokenizer
        stalls.append(time.perf_counter() - start)
        copies.append(copied - start)
        writing.append(_timed_step(engine, batches))
        writer.wait()
    # The first step compiles kernels and grows pools.
    return stalls[1:], copies[1:], engine.world.device.type, statistics.median(free[1:]), statistics.median(writing[1:])


def _disk_rows(folder: Path, turns: int) -> Iterator[Row]:
    """Our writing and reading against the disk's own, in turns, the page cache emptied before each reading."""
    state, _ = read_checkpoint(CheckpointFolder(folder / "checkpoints", 1).steps()[-1])
    state = TrainState(**{**vars(state), **{kind: _in_memory(getattr(state, kind)) for kind in KINDS}})
    size = 4 * sum(tensor.numel() for kind in KINDS for tensor in getattr(state, kind).values())
    times: dict[str, list[float]] = {"disk write": [], "disk read": [], "write": [], "read": []}
    for _ in range(turns):
        times["disk write"].append(_raw_write(folder / "raw", state))
        times["disk read"].append(_raw_read(folder / "raw"))
        (folder / "raw").unlink()
        start = time.perf_counter()
        (folder / "written").mkdir()
        write_checkpoint(folder / "written", state, bare_manifest(1), None)
        times["write"].append(time.perf_counter() - start)
        for file in (folder / "written").iterdir():
            forget(file)
        start = time.perf_counter()
        found, _ = read_checkpoint(folder / "written")
        for kind in KINDS:
            for name, tensor in getattr(state, kind).items():
                tensor.copy_(getattr(found, kind)[name])
        times["read"].append(time.perf_counter() - start)
        shutil.rmtree(folder / "written")
    rates = {what: size / statistics.median(seconds) / 1e9 for what, seconds in times.items()}
    both = sum(statistics.median(times[f"disk {way}"]) for way in ("write", "read")) / sum(
        statistics.median(times[way]) for way in ("write", "read")
    )
    for what, ratio in (
        ("write and hash, durably", rates["write"] / rates["disk write"]),
        ("read back, hash and copy", rates["read"] / rates["disk read"]),
        ("both, one after the other", both),
    ):
        way = what.split()[0]
        yield Row(
            f"{what}, against the disk's own sequential rate",
            f"{ratio:.0%}",
            ">= 60%",
            ratio >= 0.6,
            f"{rates[way]:.2f} GB/s against {rates[f'disk {way}']:.2f} GB/s, {size / 1e9:.2f} GB, medians of {turns} "
            "in turns"
            if way in rates
            else "",
        )


def _in_memory(tensors: Any) -> dict[str, torch.Tensor]:
    return {name: tensors[name].clone() for name in tensors}


def _raw_write(file: Path, state: TrainState) -> float:
    start = time.perf_counter()
    with file.open("wb", buffering=0) as raw:
        for kind in KINDS:
            for tensor in getattr(state, kind).values():
                content = tensor.view(-1).numpy().data.cast("B")
                for begin in range(0, len(content), _CHUNK):
                    raw.write(content[begin : begin + _CHUNK])
        os.fsync(raw.fileno())
    return time.perf_counter() - start


def _raw_read(file: Path) -> float:
    forget(file)
    buffer = bytearray(_CHUNK)
    start = time.perf_counter()
    with file.open("rb", buffering=0) as raw:
        while raw.readinto(buffer):
            pass
    return time.perf_counter() - start


def _convert_rows(folder: Path, turns: int) -> Iterator[Row]:
    source = folder / "zero2"
    convert(CheckpointFolder(folder / "checkpoints", 1).steps()[-1], source, "zero2", world_size=_SHARDS)
    shards = sorted((source / "pytorch_model").glob("*_optim_states.pt"))
    largest = max(file.stat().st_size for file in (source / "pytorch_model").iterdir())
    bare, ours, peaks = [], [], []
    for turn in range(turns):
        bare.append(_cat_and_sum(shards, folder / "joined"))
        measured = in_child(convert, source, folder / f"universal-{turn}", "universal")
        ours.append(measured.seconds)
        peaks.append(measured.peak)
        shutil.rmtree(folder / f"universal-{turn}")
    ratio = statistics.median(ours) / statistics.median(bare)
    yield Row(
        f"convert ZeRO-2 ({_SHARDS} shards) to universal, against cat and sha256sum",
        f"{ratio:.2f} x",
        "<= 2.5 x",
        ratio <= 2.5,
        f"{statistics.median(ours):.1f} s against {statistics.median(bare):.1f} s, medians of {turns} in turns",
    )
    peak = max(peaks)
    yield Row(
        "peak memory of that conversion, against the largest file",
        f"{peak / largest:.2f} x",
        "<= 1.5 x",
        peak <= 1.5 * largest,
        f"{peak / 1e6:.0f} MB, the interpreter and torch included; the largest file has {largest / 1e6:.0f} MB",
    )
    shutil.rmtree(source)


def _cat_and_sum(shards: list[Path], target: Path) -> float:
    start = time.perf_counter()
    with target.open("wb") as joined:
        subprocess.run(["cat", *shards], stdout=joined, check=True)
    subprocess.run(["sha256sum", target], stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def _resume_rows(folder: Path, config: Model, turns: int) -> Iterator[Row]:
    near, far = in_child(_resume, folder, config, turns, (10, 100_000)).result
    yield Row(
        "resume to the first step at step 100,000, over that at step 10",
        f"{far / near:.2f}",
        "1, within noise",
        far / near <= 1.25,
        f"{far:.2f} s and {near:.2f} s: verify, read, scatter, first batch and step; medians of {turns} in turns",
    )


def _resume(folder: Path, config: Model, turns: int, steps: tuple[int, int]) -> tuple[float, float]:
    near, far = steps
    engine = _engine(config, "plain")
    checkpoint = CheckpointFolder(folder / "checkpoints", 1)
    durations: dict[int, list[float]] = {near: [], far: []}
    for turn in range(turns + 1):
        for step, seconds in durations.items():
            start = time.perf_counter()
            newest = checkpoint.latest()
            assert newest is not None
            engine.scatter(open_checkpoint(newest[0]))
            _timed_step(engine, _batches(folder, step))
            if turn:  # the first turn compiles kernels and grows pools
                seconds.append(time.perf_counter() - start)
    return statistics.median(durations[near]), statistics.median(durations[far])


def _engine(config: Model, name: EngineName) -> Engine:
    accelerator = make_accelerator(name)
    dtype = torch.bfloat16 if accelerator.device.type == "cuda" else torch.float32
    runtime = some_runtime(name)
    model = build_model(config, 1, dtype, choose_backend(runtime, config, accelerator.device, dtype))
    compute_dtype = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return make_engine(model, some_training(compute_dtype), runtime, accelerator, _ROWS, 1)


def _batches(folder: Path, step: int) -> Any:
    samples = SampleRange(range(step * _ROWS, (step + 100) * _ROWS, _ROWS), _ROWS, 1, 0)
    return micro_batch_loader(open_small_corpus(folder), samples, workers=0, pin_memory=False)


def _timed_step(engine: Engine, batches: Any) -> float:
    start = time.perf_counter()
    loss, _ = engine.step(batches, 1e-4)
    loss.item()
    return time.perf_counter() - start
