"""`azneobert bench resume`: an interrupted run against the uninterrupted one, over engines, worlds and settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from azneobert.bench.models import bare_manifest, small_model, some_runtime, some_training
from azneobert.bench.ranks import run_ranks
from azneobert.bench.report import Row
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.checkpoint.universal import KINDS, read_checkpoint, write_checkpoint
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.interface import Engine
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.engine.optim import learning_rate
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model
from azneobert.recipe import EngineName

STEPS, CUT = 30, 10
_ROWS = 24  # what 1, 2, 3, 4, 6 and 8 ranks divide
_ROW_LENGTH = 1024 if torch.cuda.is_available() else 64  # long windows are where attention's sums may change order
_REORDERED = 1e-6


@dataclass(frozen=True)
class Setting:
    """What a world trains with; `accumulation` micro-batches make up the global batch."""

    engine: EngineName
    world: int
    accumulation: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A run that begins in one setting and is resumed in another; the reference stays in the first."""

    what: str
    before: Setting
    after: Setting

    @property
    def same(self) -> bool:
        """Whether nothing but the process changes, so that every bit must agree."""
        return self.before == self.after


def cases(worlds: tuple[int, ...]) -> Iterator[Case]:
    """All that these numbers of ranks allow."""
    settings: dict[str, dict[str, Any]] = {
        "": {},
        ", bf16 compute": {"compute_dtype": "bfloat16"},
        ", clipping at 0.01": {"clip_norm": 0.01},
        ", tied head": {"tie_embeddings": True},
        ", torch.compile": {"compile": True, "compute_dtype": "bfloat16"},
    }
    engines: tuple[EngineName, ...] = ("plain", "zero2")
    for engine in engines:
        for world in sorted(world for world in set(worlds) if world <= 2):
            for name, options in settings.items():
                if "compile" not in options or torch.cuda.is_available():  # minutes on a CPU, where a test covers it
                    setting = Setting(engine, world, options=options)
                    yield Case(f"{engine} {world} -> {engine} {world}{name}", setting, setting)
            accumulated = Setting(engine, world, accumulation=3)
            yield Case(f"{engine} {world} -> {engine} {world}, 3 micro-steps", accumulated, accumulated)
        for world in sorted(world for world in set(worlds) if world > 2):  # from three on, the order of a sum matters
            yield Case(f"{engine} {world} -> {engine} {world}", Setting(engine, world), Setting(engine, world))
    switches: tuple[tuple[EngineName, int, EngineName, int], ...] = (
        ("plain", 1, "zero2", 1),
        ("zero2", 1, "plain", 1),
        ("plain", 1, "zero2", 2),
        ("zero2", 2, "plain", 1),
        ("plain", 2, "zero2", 2),
        ("zero2", 2, "zero2", 1),
        ("zero2", 2, "zero2", 3),
        ("zero2", 2, "zero2", 4),
        ("zero2", 4, "zero2", 2),
        ("zero2", 8, "zero2", 4),
        ("zero2", 4, "zero2", 8),
    )
    for one, before, other, after in switches:
        if {before, after} <= set(worlds):
            yield Case(f"{one} {before} -> {other} {after}", Setting(one, before), Setting(other, after))
    rounded = {"compute_dtype": "bfloat16"}
    for engine in engines if {1, 2} <= set(worlds) else ():
        one_rank, two_ranks = Setting("plain", 1, options=rounded), Setting(engine, 2, options=rounded)
        yield Case(f"plain 1 -> {engine} 2, bf16 compute", one_rank, two_ranks)


def quick_cases() -> list[Case]:
    """One rank, each engine and from one to the other, with the usual settings: a minute on any machine."""
    sides: tuple[EngineName, ...] = ("plain", "zero2")
    return [Case(f"{one} 1 -> {other} 1", Setting(one, 1), Setting(other, 1)) for one in sides for other in sides]


def bench_resume(chosen: list[Case]) -> Iterator[Row]:
    """Every row of the table. A world is launched once for all its cases, since starting takes longer than training."""
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as name:
        scratch = Path(name)
        write_small_corpus(scratch, small_model().vocab_size, _ROW_LENGTH, documents=400)
        for (_, world), numbers in _by_launch([case.before for case in chosen]):
            settings = {number: chosen[number].before for number in numbers}
            run_ranks(train_and_interrupt, scratch, settings, world=world)
        for (_, world), numbers in _by_launch([case.after for case in chosen]):
            settings = {number: chosen[number].after for number in numbers}
            run_ranks(resume, scratch, settings, world=world)
        for number, case in enumerate(chosen):
            yield row_of(case, *(torch.load(scratch / f"{kind}-{number}.pt") for kind in ("whole", "resumed")))


def _by_launch(settings: list[Setting]) -> Iterator[tuple[tuple[str, int], list[int]]]:
    """The numbers of the settings that share a launch: Accelerate allows one kind of engine in a process."""
    launches: dict[tuple[str, int], list[int]] = {}
    for number, setting in enumerate(settings):
        launches.setdefault((setting.engine, setting.world), []).append(number)
    yield from launches.items()


def train_and_interrupt(scratch: Path, settings: dict[int, Setting]) -> None:
    """What one rank does first: each run once to its end, and once as far as the cut, with a checkpoint there."""
    accelerator = make_accelerator(next(iter(settings.values())).engine)
    for number, setting in settings.items():
        _train(scratch, setting, accelerator, (0, STEPS), scratch / f"whole-{number}.pt")
        _train(scratch, setting, accelerator, (0, CUT), scratch / f"checkpoint-{number}")


def resume(scratch: Path, settings: dict[int, Setting]) -> None:
    """What one rank of a later world does: go on from each checkpoint to the end."""
    accelerator = make_accelerator(next(iter(settings.values())).engine)
    for number, setting in settings.items():
        start = scratch / f"checkpoint-{number}"
        _train(scratch, setting, accelerator, (CUT, STEPS), scratch / f"resumed-{number}.pt", start)


def row_of(case: Case, whole: dict[str, Any], resumed: dict[str, Any]) -> Row:
    """What the table says of a case, from the losses and states of both runs."""
    expected = whole["losses"][CUT:]
    differences = [abs(a - b) for a, b in zip(expected, resumed["losses"], strict=True)]
    weights = max(float((whole["state"][k] - resumed["state"][k]).abs().max()) for k in whole["state"])
    identical = differences == [0.0] * len(differences) and all(
        torch.equal(whole["state"][name], resumed["state"][name]) for name in whole["state"]
    )
    figure = "identical" if identical else f"{max(differences):.1e}"
    # In bf16, another order of a sum can round the other way: the difference is shown, and has no bar.
    rounded = not case.same and case.before.options.get("compute_dtype") == "bfloat16"
    met = None if rounded else identical if case.same else max(differences) <= _REORDERED
    return Row(
        case.what,
        figure,
        "" if rounded else "identical" if case.same else "<= 1e-6",
        met,
        f"{STEPS - CUT} losses, weights and both moments"
        if identical
        else f"first loss {'equal' if differences[0] == 0 else f'differs by {differences[0]:.1e}'}; "
        f"weights and moments differ by {weights:.1e} at most after {STEPS - CUT} steps",
    )


def _train(
    scratch: Path,
    setting: Setting,
    accelerator: Accelerator,
    steps: tuple[int, int],
    target: Path,
    start: Path | None = None,
) -> None:
    """Train from one step to another. At the cut, write a checkpoint; at the end, the losses and the state."""
    torch.set_float32_matmul_precision("highest")  # the rows in fp32 compare engines, not roundings
    engine = build_engine(setting, accelerator)
    if start is not None:
        engine.scatter(read_checkpoint(start)[0])
    first, last = steps
    micro_batch = _ROWS // setting.world // setting.accumulation
    first_samples = range(first * _ROWS, last * _ROWS, _ROWS)
    samples = SampleRange(first_samples, micro_batch, setting.accumulation, engine.world.rank)
    batches = micro_batch_loader(open_small_corpus(scratch), samples, workers=0, pin_memory=False)
    losses = [engine.step(batches, learning_rate(step, 5, STEPS, 2e-3))[0].item() for step in range(first, last)]
    state = engine.gather()
    if state is not None and last == CUT:
        target.mkdir()
        write_checkpoint(target, state, bare_manifest(last), None)
    elif state is not None:
        tensors = {f"{kind}.{name}": tensor for kind in KINDS for name, tensor in getattr(state, kind).items()}
        torch.save({"losses": losses, "state": tensors}, target)
    accelerator.wait_for_everyone()  # the other ranks read the checkpoint too


def build_engine(setting: Setting, accelerator: Accelerator) -> Engine:
    """A model of two layers in an engine."""
    options = setting.options
    compute_dtype = options.get("compute_dtype", "float32")
    config = small_model(tie_embeddings=options.get("tie_embeddings", False))
    dtype = getattr(torch, compute_dtype)
    training = some_training(compute_dtype=compute_dtype, clip_norm=options.get("clip_norm", 1.0))
    micro_batch = _ROWS // setting.world // setting.accumulation
    runtime = some_runtime(setting.engine, compile_model=options.get("compile", False))
    model = build_model(config, 1, dtype, choose_backend(runtime, config, accelerator.device, dtype))
    return make_engine(model, training, runtime, accelerator, micro_batch, setting.accumulation)
