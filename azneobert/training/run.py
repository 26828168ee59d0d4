"""One phase of pretraining from its inputs: what is resumed, what is refused, what starts anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext

import torch
from accelerate import Accelerator

from azneobert.data.rows import plan_facts
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.interface import Engine, World, world_of
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.errors import RecipeError
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model, count_parameters
from azneobert.recipe import PhaseName, Recipe, divide_batch
from azneobert.tracking.record import RunInfo
from azneobert.tracking.tracker import Tracker
from azneobert.training.inputs import Inputs, open_streams, run_lock, stop_file
from azneobert.training.loop import Run, train
from azneobert.training.meter import Feed, Meter
from azneobert.training.position import Position, agree_on_position, changes, run_identity
from azneobert.training.saving import Saver
from azneobert.training.stopping import StopRequest


def prepare_folder(inputs: Inputs, accept_changed: tuple[str, ...] = ()) -> bool:
    """Make a run's folder ready: set aside what another run left there, refuse what cannot be trained.

    Returns whether the run is complete already, by this very code.

    Raises:
        AzNeoBertError: an input is missing, damaged, or does not fit the others.
    """
    with run_lock(inputs.folder):
        stop_file(inputs.folder).unlink(missing_ok=True)
        identity = run_identity(inputs, open_streams(inputs)[0])
        newest = inputs.checkpoints.latest()
        if newest is None:
            return False
        _, manifest = newest
        changed = changes(manifest.identity, identity, accept_changed)
        complete = manifest.step >= inputs.recipe.phase(inputs.phase).steps
        if not changed and complete and manifest.lineage.get("code_sha256") != inputs.lineage.get("code_sha256"):
            changed = ["it is complete, and the code has changed since"]
        if changed:
            _set_aside(inputs, changed)
        return complete and not changed


def pretrain(inputs: Inputs, accept_changed: tuple[str, ...] = ()) -> bool:
    """Train a phase in its folder, from the newest whole checkpoint there if there is one.

    Returns whether the phase is complete; False means that it was asked to stop and can be started again.

    Raises:
        AzNeoBertError: an input is missing, damaged, or does not fit the others or the checkpoint.
    """
    recipe = inputs.recipe
    phase = recipe.phase(inputs.phase)
    accelerator = make_accelerator(recipe.runtime.engine)
    world = world_of(accelerator)
    micro_batch, accumulation = _divide(recipe, inputs.phase, world.size)
    with run_lock(inputs.folder) if world.is_main else nullcontext():
        accelerator.wait_for_everyone()
        train_stream, validation = open_streams(inputs)
        position = agree_on_position(inputs, train_stream, accelerator, accept_changed)
        if position.step >= phase.steps:
            return True
        engine = _build_engine(inputs, accelerator, micro_batch, accumulation)
        state = position.open()
        if state is not None:
            engine.scatter(state)
        samples = SampleRange(
            first_sample=position.first_sample,
            first_step=position.step,
            steps=phase.steps,
            global_batch=phase.global_batch,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=world.rank,
        )
        loader = micro_batch_loader(
            train_stream, samples, workers=recipe.runtime.workers, pin_memory=world.device.type == "cuda"
        )
        feed = Feed(loader)
        if world.is_main:
            _announce(inputs, engine, micro_batch, position)
        with (
            closing(loader),
            _tracked(inputs, position, plan_facts(train_stream.plan), world) as tracked,
            StopRequest(stop_file(inputs.folder)) as stop,
            Saver(inputs, engine, position, tracked.run_id) as saver,
        ):
            run = Run(
                name=inputs.phase,
                phase=phase,
                runtime=recipe.runtime,
                evaluation=recipe.evaluation,
                engine=engine,
                micro_batches=feed,
                micro_batch=micro_batch,
                validation=validation,
                first_step=position.step,
                schedule_offset=position.schedule_offset,
                meter=Meter(recipe.model, recipe.training.masking_rate, feed, world.device, world.size),
                tracker=tracked.tracker,
                saver=saver,
            )
            tracked.complete = train(run, stop)
        accelerator.end_training()  # leaves the process group, where there is one
        return tracked.complete


class _Tracked:
    """A run as MLflow sees it: on the main rank a tracker, and whether it came to its end."""

    def __init__(self, tracker: Tracker | None):
        self.tracker = tracker
        self.run_id = tracker.run_id if tracker else None
        self.complete = False


@contextmanager
def _tracked(inputs: Inputs, position: Position, rows: dict[str, float], world: World) -> Iterator[_Tracked]:
    """Finish the MLflow run with what became of it: an error, a stop or the end."""
    tracked = _Tracked(_tracker(inputs, position, rows) if world.is_main else None)
    status = "FAILED"
    try:
        yield tracked
        status = "FINISHED" if tracked.complete else "KILLED"
    finally:
        if tracked.tracker:
            tracked.tracker.finish(status)


def _set_aside(inputs: Inputs, changed: list[str]) -> None:
    """Move a run out of the way of another one; nothing in it is lost."""
    folders = (inputs.folder, inputs.tracking)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    while any(folder.with_name(f"{folder.name}.aside-{stamp}").exists() for folder in folders):
        time.sleep(0.1)
        stamp = time.strftime("%Y%m%d-%H%M%S")
    for folder in folders:
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}.aside-{stamp}"))
    print(
        f"{inputs.folder} holds another run ({'; '.join(changed[:3])}): kept in {inputs.folder.name}.aside-{stamp}, "
        "starting anew",
        flush=True,
    )


def _divide(recipe: Recipe, phase: PhaseName, processes: int) -> tuple[int, int]:
    try:
        return divide_batch(recipe.phase(phase).global_batch, processes, recipe.runtime.max_micro_batch, f"{phase}.")
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _build_engine(inputs: Inputs, accelerator: Accelerator, micro_batch: int, accumulation: int) -> Engine:
    recipe = inputs.recipe
    dtype = getattr(torch, recipe.training.compute_dtype)
    backend = choose_backend(recipe.runtime, recipe.model, accelerator.device, dtype)
    model = build_model(recipe.model, recipe.seed, dtype, backend)
    if accelerator.is_main_process:
        print(f"{inputs.phase}: {backend}, {recipe.training.compute_dtype} on {accelerator.device}", flush=True)
    return make_engine(model, recipe.training, recipe.runtime, accelerator, micro_batch, accumulation)


def _tracker(inputs: Inputs, position: Position, rows: dict[str, float]) -> Tracker:
    recipe = inputs.recipe
    commit = str(inputs.lineage.get("git_commit") or "unknown")
    info = RunInfo(
        name=f"{inputs.recipe_name}-{inputs.phase}",
        params={
            "phase": recipe.phase(inputs.phase).model_dump(mode="json"),
            "seed": recipe.seed,
            "model": recipe.model.model_dump(mode="json") | {"parameters": count_parameters(recipe.model)},
            "training": recipe.training.model_dump(mode="json"),
            "runtime": recipe.runtime.model_dump(mode="json"),
            "tokenizer": recipe.tokenizer.model_dump(mode="json"),
            "rows": rows,
        },
        tags={"azneobert.phase": inputs.phase, "azneobert.recipe": inputs.recipe_name, "azneobert.git_commit": commit},
        description=_description(inputs, commit),
        artifacts={"lineage.json": {**inputs.lineage, "started_from": position.started_from}},
        identity=position.identity,
    )
    return Tracker(inputs.tracking, recipe.tracking, info, system_metrics=True)


def _description(inputs: Inputs, commit: str) -> str:
    """The run in a few plain lines, as MLflow shows them above it."""
    phase = inputs.recipe.phase(inputs.phase)
    return (
        f"{inputs.phase} of recipe {inputs.recipe_name}, {count_parameters(inputs.recipe.model):,} parameters.\n\n"
        f"{phase.steps:,} steps of {phase.global_batch:,} rows of {phase.sequence_length:,} tokens.\n\n"
        f"Commit {commit}."
    )


def _announce(inputs: Inputs, engine: Engine, micro_batch: int, position: Position) -> None:
    phase = inputs.recipe.phase(inputs.phase)
    world = engine.world
    print(
        f"{inputs.phase}: {count_parameters(inputs.recipe.model):,} parameters; a batch of {phase.global_batch} rows "
        f"of {phase.sequence_length} = {world.size} x {micro_batch} rows x {engine.accumulation} micro-steps; "
        f"from step {position.step} of {phase.steps}",
        flush=True,
    )
