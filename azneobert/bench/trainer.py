"""`azneobert bench trainer`: the trainer against the bare step, on the same rows, by the clock on the wall.

`pretrain` itself runs, with everything that it does besides steps: loader, guards, held-out evaluation, checkpoints,
points on disk and their delivery to MLflow. Then `bench train` measures its step on the same rows.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from azneobert.bench.models import published_model, small_model
from azneobert.bench.prose import Wanted, prepare, sources_of
from azneobert.bench.ranks import run_ranks
from azneobert.bench.report import Row
from azneobert.bench.train import Job, Shape, measure
from azneobert.bench.variants import Variant
from azneobert.data.phase_rows import write_phase_rows
from azneobert.errors import AzNeoBertError, TrainingError
from azneobert.layout import RunFolder
from azneobert.provenance import run_provenance
from azneobert.recipe import EngineName, Recipe, load_recipe
from azneobert.tracking.points import read_points
from azneobert.training.inputs import Inputs
from azneobert.training.run import pretrain

_RECIPE = Path("recipes/h200.yaml")
_SAMPLE = Path("recipes/sample.yaml")  # names the collections of the embedded sample
_BAR = 0.97
_HELD_OUT_SHARE = 0.02  # of all rows trained on, at most; the published run's is 0.0024 (5,632 of 1,000 x 2,304)


@dataclass(frozen=True)
class Plan:
    """What is run: each of `cases` is an engine and on how many GPUs.

    A run has `steps` of `micro_steps` micro-batches on each GPU, and evaluates and saves `saves` times meanwhile.
    """

    cases: tuple[tuple[EngineName, int], ...]
    steps: int
    micro_steps: int
    saves: int
    vocab_size: int
    corpus: tuple[Path, ...]
    folder: Path
    toy: bool = False

    @property
    def micro_batch(self) -> int:
        """Rows that a GPU computes at a time: the published run's."""
        return 4 if self.toy else Shape().micro_batch


def cases_of(engines: list[EngineName], gpus: list[int]) -> tuple[tuple[EngineName, int], ...]:
    """Each engine on each number of GPUs; without numbers, on one and on all.

    Raises:
        AzNeoBertError: there are not so many.
    """
    there = torch.cuda.device_count()
    if gpus and not 1 <= min(gpus) <= max(gpus) <= there:
        raise AzNeoBertError(
            f"--gpus {','.join(map(str, gpus))}: torch sees {there}; expected numbers from 1 to {there}"
        )
    return tuple((engine, world) for world in gpus or sorted({1, there}) for engine in engines)


def toy_plan(folder: Path) -> Plan:
    """The same on any machine in a minute: shows that it runs."""
    return Plan((("plain", 1), ("zero2", 2)), 20, 2, 1, 1024, (), folder, toy=True)


def bench_trainer(plan: Plan) -> Iterator[Row]:
    """A row for each engine and number of GPUs.

    Raises:
        DataError: the text cannot be read, or is too small for the vocabulary.
    """
    for engine, world in plan.cases:
        what = f"pretrain, {engine} on {world} {_devices(world)}: its rate over that of its step"
        with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as scratch:
            try:
                yield _compared(plan, world, inputs_of(plan, engine, world, Path(scratch)), what)
            except TrainingError as error:
                yield Row(what, "failed", note=str(error))


def inputs_of(plan: Plan, engine: EngineName, world: int, scratch: Path) -> Inputs:
    """Phase 1 of the published recipe on the plan's text, for the plan's steps, in a scratch folder."""
    published = load_recipe(_RECIPE)
    model = small_model() if plan.toy else published_model()
    model = model.model_copy(update={"vocab_size": plan.vocab_size})
    length, rows = 64 if plan.toy else published.phase1.sequence_length, plan.micro_batch
    sources = sources_of(list(plan.corpus)) or dict(load_recipe(_SAMPLE).data.files)
    cleaning = published.data.cleaning.model_copy(update={"validation_fraction": 0.1})
    prepare(Wanted(sources, cleaning, plan.vocab_size, length), plan.folder)
    every = max(1, plan.steps // (plan.saves + 1))  # the last step's own checkpoint comes after the clock has stopped
    evaluated = _HELD_OUT_SHARE * plan.steps * plan.micro_steps * rows * world / plan.saves
    changes: dict[str, dict[str, Any]] = {
        "data": {"files": sources, "hub": {}, "order": tuple(sources), "cleaning": cleaning},
        "phase1": {"global_batch": rows * plan.micro_steps * world, "steps": plan.steps, "sequence_length": length},
        "runtime": {"engine": engine, "processes": world, "max_micro_batch": rows, "checkpoint_every": every}
        | {"keep_checkpoints": 1, "keep_every": 0},
        "evaluation": {"every": every, "max_rows_per_collection": max(1, round(evaluated / len(sources)))},
        "tracking": {"mlflow_uri": f"sqlite:///{scratch}/mlflow.db"},
    }
    if plan.toy:
        changes["runtime"] |= {"compile": False, "workers": 0, "log_every": 2}
        changes["training"] = {"compute_dtype": "float32"}
    recipe = _changed(published.model_copy(update={"model": model}), changes)
    rows_folder = scratch / "rows"
    write_phase_rows(plan.folder / "tokens", tuple(sources), recipe.phase1, recipe.seed, rows_folder)
    return Inputs(
        recipe=recipe,
        phase="phase1",
        tokens=plan.folder / "tokens",
        rows=rows_folder,
        tokenizer=plan.folder / "tokenizer.json",
        run=RunFolder(scratch / "run"),
        start=None,
        provenance=run_provenance(),
    )


def _changed(recipe: Recipe, changes: dict[str, dict[str, Any]]) -> Recipe:
    blocks = {name: getattr(recipe, name).model_copy(update=values) for name, values in changes.items()}
    return recipe.model_copy(update=blocks)


def _compared(plan: Plan, world: int, inputs: Inputs, what: str) -> Row:
    run_ranks(_pretrain, inputs, world=world)
    found = rate_of(inputs, world)
    shutil.rmtree(inputs.run.path)
    bare = _step_rate(plan, world, inputs)  # after the run, which has compiled what needs compiling
    share = found.rate / bare
    runtime, phase = inputs.recipe.runtime, inputs.recipe.phase1
    note = [
        f"{found.rate / 1e3:.1f} k tokens/s of each from step {found.first} to {found.last}, {found.seconds:.1f} s",
        f"its step {bare / 1e3:.1f} k",
        f"by its own meter {found.metered / 1e3:.1f} k between evaluations and saves (median)",
        f"{(found.last - 1) // runtime.checkpoint_every} checkpoints and {found.evaluations} evaluations in that time",
        f"a step of {phase.global_batch} packed rows of {phase.sequence_length:,}",
        f"{found.memory_gib:.1f} GiB",
    ]
    return Row(what, f"{share:.1%}", f">= {_BAR:.0%}", share >= _BAR, "; ".join(note))


def _pretrain(inputs: Inputs) -> None:
    pretrain(inputs)


def _step_rate(plan: Plan, world: int, inputs: Inputs) -> float:
    """Tokens a second of one GPU in the step of `bench train`, on the rows of these inputs."""
    runtime, phase = inputs.recipe.runtime, inputs.recipe.phase1
    variant = Variant(
        f"the step, {runtime.engine}",
        compile=runtime.compile,
        attention=runtime.attention,
        blocks=runtime.blocks,
        deterministic=runtime.deterministic,
        engine=runtime.engine,
        exact=inputs.recipe.training.compute_dtype == "float32",
    )
    shape = Shape(phase.sequence_length, plan.micro_batch, plan.micro_steps, packed=True)
    steps = max(3, plan.steps // 5)
    found = measure(Job(variant, shape, steps, inputs.recipe.model, world=world, text=inputs))
    return float(found["tokens_per_second"])


@dataclass(frozen=True)
class Found:
    """What a run's points say about the time from its first to its last reading. Tokens a second are of one GPU."""

    first: int
    last: int
    seconds: float
    rate: float
    metered: float
    evaluations: int
    memory_gib: float


def rate_of(inputs: Inputs, world: int) -> Found:
    """The rate of a run by the wall clock, including everything between two steps.

    Raises:
        TrainingError: the run has left fewer than two readings.
    """
    points = read_points(inputs.run.tracking)
    readings = [point for point in points if "train/loss" in point["values"]]
    if len(readings) < 2:
        raise TrainingError(f"{inputs.run.tracking}: {len(readings)} readings of the loss; use more steps")
    first, last = readings[0], readings[-1]
    seconds = (last["time_ms"] - first["time_ms"]) / 1e3
    tokens = last["values"]["train/tokens"] - first["values"]["train/tokens"]
    between = [p for p in points if first["step"] < p["step"] < last["step"] and "eval/loss" in p["values"]]
    metered = [reading["values"]["train/tokens_per_second"] / world for reading in readings[1:]]
    return Found(
        first=first["step"],
        last=last["step"],
        seconds=seconds,
        rate=tokens / seconds / world,
        metered=statistics.median(metered),
        evaluations=len(between),
        memory_gib=last["values"]["train/memory_gib"],
    )


def _devices(world: int) -> str:
    one, several = ("GPU", "GPUs") if torch.cuda.is_available() else ("process", "processes")
    return one if world == 1 else several
