"""One phase of pretraining, from its inputs to its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from azneobert.checkpoint.finite import check_finite
from azneobert.course import divide_batch
from azneobert.data.rows import plan_facts
from azneobert.data.stream import SampleRange, Stream, lost_worker, micro_batch_loader
from azneobert.engine.interface import Engine, World, world_of
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.engine.state import initial_state
from azneobert.environment import experiment_tag
from azneobert.errors import AzNeoBertError, RecipeError, TrainingError
from azneobert.files import write_json
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import MaskedLM, build_model
from azneobert.model.size import count_parameters
from azneobert.recipe import PhaseName, Recipe, check_division
from azneobert.tracking.record import RunInfo
from azneobert.tracking.tracker import Tracker
from azneobert.training.folder import LINEAGE, lineage_document, settle_tracking
from azneobert.training.guards import Rewind, RunGuards
from azneobert.training.inputs import Inputs, open_streams, run_lock, verify_data
from azneobert.training.loop import Run, train
from azneobert.training.meter import Feed, Meter
from azneobert.training.micro_batch import micro_batch_rows
from azneobert.training.position import Position, agree_on_position, rewound
from azneobert.training.saving import Saver
from azneobert.training.stopping import StopRequest
from azneobert.training.watchdog import FIRST_STEP_SECONDS, Watchdog, collective_timeout


def pretrain(inputs: Inputs, accept_changed: tuple[str, ...] = ()) -> bool:
    """Train a phase in its folder, from the newest whole checkpoint there if there is one.

    Returns whether the phase is complete; False means that it was asked to stop and can be started again.

    Raises:
        AzNeoBertError: an input is missing, damaged, or does not fit the others or the checkpoint.
    """
    recipe = inputs.recipe
    phase = recipe.phase(inputs.phase)
    accelerator = make_accelerator(recipe.runtime.engine, timeout=collective_timeout(recipe.runtime.stall_seconds))
    world = world_of(accelerator)
    _check_division(recipe, inputs.phase, world.size)
    stall_seconds = recipe.runtime.stall_seconds
    first = FIRST_STEP_SECONDS if world.device.type == "cuda" else 0.0
    with (
        _others_may_end(inputs.phase, world),
        run_lock(inputs.run) if world.is_main else nullcontext(),
        Watchdog(inputs.run, world.rank, world.size, stall_seconds, first=first) as watchdog,
    ):
        accelerator.wait_for_everyone()
        watchdog.start()  # the folder is this run's now
        streams = open_streams(inputs)
        position = agree_on_position(inputs, streams[0], accelerator, accept_changed)
        watchdog.step = position.step
        if position.step >= phase.steps:
            _say_how_it_ended(inputs, world, position.step)
            return True
        verification = verify_data(inputs) if accelerator.is_local_main_process else None
        model = _build_model(inputs, world)
        rows = micro_batch_rows(inputs, model, streams[0], world)
        micro_batch, accumulation = divide_batch(phase.global_batch, world.size, rows)
        engine = make_engine(
            model, recipe.training, recipe.runtime, accelerator, micro_batch, accumulation, recipe.guards
        )
        _take_over(inputs, engine, position)
        if world.is_main:
            _announce(inputs, engine, micro_batch, position)
        with (
            _tracked(inputs, position, _settings(streams[0], engine, micro_batch), world) as tracked,
            StopRequest(inputs.run.stop_file, hurry=watchdog.hurry, timeout=collective_timeout(stall_seconds)) as stop,
            Saver(inputs, engine, position, tracked.run_id, verification) as saver,
        ):
            while True:
                ended = _train_from(position, inputs, engine, streams, micro_batch, tracked, saver, stop, watchdog)
                if not isinstance(ended, Rewind):
                    break
                with watchdog.doing("rewinding"):
                    saver.wait()
                    found = agree_on_position(inputs, streams[0], accelerator, accept_changed)
                    position = saver.position = rewound(inputs, found, position, ended)
                    _take_over(inputs, engine, position, anew=True)
                if tracked.tracker:
                    tracked.tracker.begin_segment(position.step)
                    print(f"{inputs.phase}: {ended.why}: rewound to step {position.step}", flush=True)
            watchdog.now("finishing")
            tracked.complete = ended == phase.steps
        _say_how_it_ended(inputs, world, ended)
        accelerator.end_training()  # leaves the process group, where there is one
        return tracked.complete


def _train_from(
    position: Position,
    inputs: Inputs,
    engine: Engine,
    streams: tuple[Stream, dict[str, Stream]],
    micro_batch: int,
    tracked: _Tracked,
    saver: Saver,
    stop: StopRequest,
    watchdog: Watchdog,
) -> int | Rewind:
    """Run the loop from a position on, with its own data loader and its own clock."""
    recipe, world = inputs.recipe, engine.world
    phase = recipe.phase(inputs.phase)
    train_stream, validation = streams
    samples = SampleRange(
        position.course.steps(position.step, phase.steps), micro_batch, engine.accumulation, world.rank
    )
    loader = micro_batch_loader(
        train_stream, samples, workers=recipe.runtime.workers, pin_memory=world.device.type == "cuda"
    )
    feed = Feed(watchdog.watched(loader))

    def last_good() -> str:
        saver.wait()
        newest = inputs.checkpoints.latest() if world.is_main else None
        return f"the last good checkpoint is {newest[0]}" if newest else "there is no checkpoint"

    with closing(loader):
        run = Run(
            name=inputs.phase,
            phase=phase,
            runtime=recipe.runtime,
            evaluation=recipe.evaluation,
            engine=engine,
            micro_batches=feed,
            micro_batch=micro_batch,
            validation=validation,
            proof=train_stream,
            first_step=position.step,
            course=position.course,
            schedule_offset=position.schedule_offset,
            meter=Meter(recipe.model, recipe.training.masking_rate, feed, world.device, world.size),
            tracker=tracked.tracker,
            saver=saver,
            guards=RunGuards(inputs.phase, recipe.guards, engine, tracked.tracker, last_good, position.rewinds),
            watchdog=watchdog,
        )
        return train(run, stop)


def _take_over(inputs: Inputs, engine: Engine, position: Position, *, anew: bool = False) -> None:
    """Bring an engine to a position. A fresh engine holds the random weights already; with `anew` it does not.

    Raises:
        CheckpointError: the checkpoint does not fit the model, or holds values that training cannot go on from.
    """
    state = position.open()
    if state is not None:
        check_finite(state, position.checkpoint)
        # What was normal in the phase before does not tell what is normal in this one.
        engine.scatter(state if position.resumed else replace(state, guard={}))
    elif anew:
        engine.scatter(initial_state(build_model(inputs.recipe.model, inputs.recipe.seed)))


@contextmanager
def _others_may_end(phase: PhaseName, world: World) -> Iterator[None]:
    """If another rank ends, the ranks that wait for it in a collective say so in a line; that rank has said why itself.

    The same holds for a loader's worker.

    Raises:
        TrainingError: gloo or NCCL has lost a rank, torch a worker.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if without_worker := lost_worker(error):
            raise without_worker from None
        lost = isinstance(error, dist.DistError) or "gloo" in said or "NCCL" in said or "by peer" in said
        if world.size == 1 or not lost or isinstance(error, AzNeoBertError):
            raise
        raise TrainingError(
            f"{phase}: rank {world.rank} has lost another rank, which has ended or cannot be reached; start again "
            f"to go on from the last checkpoint ({said.splitlines()[0][:200]})"
        ) from None


class _Tracked:
    """The tracker of a run, on the main rank only, and whether the run is complete."""

    def __init__(self, tracker: Tracker | None):
        self.tracker = tracker
        self.complete = False

    def run_id(self) -> str | None:
        """The MLflow run, if MLflow has answered by now."""
        return self.tracker.run_id if self.tracker else None


@contextmanager
def _tracked(inputs: Inputs, position: Position, settings: dict[str, Any], world: World) -> Iterator[_Tracked]:
    """Finish the MLflow run with its outcome: an error, a stop or completion."""
    tracked = _Tracked(_tracker(inputs, position, settings) if world.is_main else None)
    status = "FAILED"
    try:
        yield tracked
        status = "FINISHED" if tracked.complete else "KILLED"
    finally:
        if tracked.tracker:
            tracked.tracker.finish(status)


def _check_division(recipe: Recipe, phase: PhaseName, processes: int) -> None:
    try:
        check_division(recipe.phase(phase).global_batch, processes, f"{phase}.")
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _build_model(inputs: Inputs, world: World) -> MaskedLM:
    recipe = inputs.recipe
    dtype = getattr(torch, recipe.training.compute_dtype)
    backend = choose_backend(recipe.runtime, recipe.model, world.device, dtype, fp8=recipe.training.fp8)
    if world.is_main:
        print(f"{inputs.phase}: {backend}, {recipe.training.compute_dtype} on {world.device}", flush=True)
    return build_model(recipe.model, recipe.seed, dtype, backend)


def _settings(stream: Stream, engine: Engine, micro_batch: int) -> dict[str, Any]:
    """The params of a run in MLflow that are in no recipe: the rows, and how a batch is divided."""
    return {"rows": plan_facts(stream.plan), "batch": {"micro_batch": micro_batch, "accumulation": engine.accumulation}}


def _tracker(inputs: Inputs, position: Position, settings: dict[str, Any]) -> Tracker:
    recipe, segment = inputs.recipe, position.segments[-1]
    info = RunInfo(
        name=f"{inputs.recipe.name}-{inputs.phase}",
        params={
            "phase": recipe.phase(inputs.phase).model_dump(mode="json"),
            "seed": recipe.seed,
            "model": recipe.model.model_dump(mode="json") | {"parameters": count_parameters(recipe.model)},
            "training": recipe.training.model_dump(mode="json"),
            "runtime": recipe.runtime.model_dump(mode="json"),
            "guards": recipe.guards.model_dump(mode="json"),
            "tokenizer": recipe.tokenizer.model_dump(mode="json"),
            **settings,
        },
        tags={
            "azneobert.phase": inputs.phase,
            "azneobert.recipe": inputs.recipe.name,
            "azneobert.git_commit": segment.git_commit,
        }
        | experiment_tag(),
        description=_description(inputs, segment.git_commit),
        artifacts={LINEAGE: lineage_document(inputs, position)},
        identity=position.identity,
    )
    settle_tracking(inputs, position)
    number = len(position.segments) - 1
    return Tracker(
        inputs.run.tracking, recipe.tracking, info, segment=number, from_step=position.step, system_metrics=True
    )


def _description(inputs: Inputs, commit: str) -> str:
    """The run in a few plain lines, as MLflow shows them above it."""
    phase = inputs.recipe.phase(inputs.phase)
    return (
        f"{inputs.phase} of recipe {inputs.recipe.name}, {count_parameters(inputs.recipe.model):,} parameters.\n\n"
        f"{phase.steps:,} steps of {phase.global_batch:,} rows of {phase.sequence_length:,} tokens.\n\n"
        f"Commit {commit}."
    )


def _say_how_it_ended(inputs: Inputs, world: World, step: int) -> None:
    """Write the outcome for the launcher: by now the checkpoint of this step is completely on disk."""
    if world.is_main:
        state = "complete" if step >= inputs.recipe.phase(inputs.phase).steps else "stopped"
        write_json(inputs.run.outcome_file, {"state": state, "step": step})


def _announce(inputs: Inputs, engine: Engine, micro_batch: int, position: Position) -> None:
    phase = inputs.recipe.phase(inputs.phase)
    world = engine.world
    print(
        f"{inputs.phase}: {count_parameters(inputs.recipe.model):,} parameters; a batch of {phase.global_batch} rows "
        f"of {phase.sequence_length} = {world.size} x {micro_batch} rows x {engine.accumulation} micro-steps; "
        f"from step {position.step} of {phase.steps}",
        flush=True,
    )
