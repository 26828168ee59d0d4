"""One phase of pretraining from its inputs: what is resumed, what is refused, what starts anew."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.universal import Manifest, TrainState, differences, read_checkpoint
from azneobert.data.rows import RowPlan, open_plan, plan_facts
from azneobert.data.store import TokenStore
from azneobert.data.stream import SampleRange, Stream, micro_batch_loader
from azneobert.data.tokenizer import load_tokenizer, special_ids, tokenizer_sha256
from azneobert.errors import CheckpointError, DataError, RecipeError
from azneobert.model.attention import choose_attention
from azneobert.model.encoder import build_model, count_parameters
from azneobert.recipe import PhaseName, Recipe, divide_batch, recipe_fingerprint
from azneobert.tracking import RunInfo, Tracker
from azneobert.training.engine import Engine, make_accelerator, make_engine, world_of
from azneobert.training.loop import Run, train
from azneobert.training.meter import Meter
from azneobert.training.stopping import StopRequest


@dataclass(frozen=True)
class Inputs:
    """Where a phase finds what it needs and leaves what it makes.

    `folder` is for checkpoints, `tracking` for the points on their way to MLflow; `start` is the folder of the phase
    that this one starts from. `lineage` goes into every checkpoint as it is.
    """

    recipe_name: str
    recipe: Recipe
    phase: PhaseName
    tokens: Path
    rows: Path
    tokenizer: Path
    folder: Path
    tracking: Path
    start: Path | None
    lineage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Position:
    """Where training goes on: a state to take over, the step, and what carries over from an earlier phase."""

    state: TrainState | None
    step: int
    first_sample: int
    schedule_offset: int
    started_from: dict[str, Any] | None


def prepare_folder(inputs: Inputs, accept_changed: tuple[str, ...] = ()) -> bool:
    """Make a run's folder ready: set aside what another run left there, refuse what cannot be trained.

    Returns whether the run is complete already, by this very code.

    Raises:
        AzNeoBertError: an input is missing, damaged, or does not fit the others.
    """
    phase = inputs.recipe.phase(inputs.phase)
    with run_lock(inputs.folder):
        stop_file(inputs.folder).unlink(missing_ok=True)
        identity = run_identity(inputs, open_streams(inputs)[0])
        newest = _checkpoints(inputs).latest()
        if newest is None:
            return False
        _, manifest = newest
        changed = [d for d in differences(manifest.identity, identity) if not _accepted(d, accept_changed)]
        complete = manifest.step >= phase.steps
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
    accelerator = make_accelerator()
    world = world_of(accelerator)
    micro_batch, accumulation = _divide(recipe, inputs.phase, world.size)
    with run_lock(inputs.folder) if world.is_main else nullcontext():
        accelerator.wait_for_everyone()
        train_stream, validation = open_streams(inputs)
        identity = run_identity(inputs, train_stream)
        checkpoints = _checkpoints(inputs)
        position = find_position(inputs, checkpoints, identity, accept_changed)
        if position.step >= phase.steps:
            return True
        engine = _build_engine(inputs, accelerator)
        if position.state is not None:
            engine.scatter(position.state)
        position = _without_state(position)
        tracker = _tracker(inputs, position, plan_facts(train_stream.plan)) if world.is_main else None
        samples = SampleRange(
            first_sample=position.first_sample,
            first_step=position.step,
            steps=phase.steps,
            global_batch=phase.global_batch,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=world.rank,
        )

        def save(step: int) -> None:
            state = engine.gather()
            if state is not None:
                manifest = _manifest(inputs, identity, position, step, tracker.run_id if tracker else None)
                checkpoints.publish(state, manifest, inputs.tokenizer)
            accelerator.wait_for_everyone()

        batches = micro_batch_loader(
            train_stream, samples, workers=recipe.runtime.workers, pin_memory=world.device.type == "cuda"
        )
        run = Run(
            name=inputs.phase,
            phase=phase,
            runtime=recipe.runtime,
            evaluation=recipe.evaluation,
            engine=engine,
            micro_batches=batches,
            micro_batch=micro_batch,
            accumulation=accumulation,
            validation=validation,
            first_step=position.step,
            schedule_offset=position.schedule_offset,
            meter=Meter(recipe.model, phase.sequence_length, recipe.training.masking_rate, world.device, world.size),
            tracker=tracker,
            save=save,
        )
        if world.is_main:
            _announce(inputs, engine, micro_batch, accumulation, position)
        status = "FAILED"
        try:
            with StopRequest(stop_file(inputs.folder)) as stop, closing(batches):
                complete = train(run, stop)
            status = "FINISHED" if complete else "KILLED"
        finally:
            if tracker:
                tracker.finish(status)
        return complete


def open_streams(inputs: Inputs) -> tuple[Stream, dict[str, Stream]]:
    """The training stream of a phase, and the fixed validation stream of each collection that has held-out rows.

    Raises:
        DataError: stores, plan and tokenizer do not fit each other.
    """
    recipe = inputs.recipe
    tokenizer = load_tokenizer(inputs.tokenizer, recipe.model.vocab_size)
    sha256 = tokenizer_sha256(inputs.tokenizer)
    ids = special_ids(tokenizer)
    rate = recipe.training.masking_rate

    def stores(side: str) -> dict[str, TokenStore]:
        opened = {name: TokenStore.open(inputs.tokens / name / side) for name in recipe.data.sources}
        for store in opened.values():
            if store.meta.tokenizer_sha256 != sha256:
                raise DataError(
                    f"{store.path}: made with another tokenizer than {inputs.tokenizer}; `dvc repro tokens`"
                )
        return opened

    training = stores("train")
    plan = open_plan(inputs.rows / "train", training)
    _check_plan(inputs, plan)
    stream = Stream(plan, training, ids, seed=recipe.seed, masking_rate=rate)
    validation = {}
    for name, store in stores("validation").items():
        if len(store):
            held_out = open_plan(inputs.rows / "validation" / name, {name: store})
            validation[name] = Stream(held_out, {name: store}, ids, seed=recipe.seed, masking_rate=rate, shuffle=False)
    return stream, validation


def run_identity(inputs: Inputs, stream: Stream) -> dict[str, Any]:
    """What two runs must share to be one: a checkpoint of another identity is not resumed."""
    recipe = inputs.recipe
    return {
        "seed": recipe.seed,
        "model": recipe.model.model_dump(mode="json"),
        "training": recipe.training.model_dump(mode="json"),
        "phase": recipe.phase(inputs.phase).model_dump(mode="json"),
        "tokenizer": tokenizer_sha256(inputs.tokenizer),
        "rows": stream.plan.meta.sha256,
        "tokens": recipe_fingerprint(dict(stream.plan.meta.stores)),
        "start": _start_weights(inputs),
    }


def find_position(
    inputs: Inputs, checkpoints: CheckpointFolder, identity: dict[str, Any], accept_changed: tuple[str, ...] = ()
) -> Position:
    """Resume this phase, begin it from the phase before, or begin from random weights.

    Raises:
        CheckpointError: a checkpoint here is of another run, or the phase before has none that is whole.
    """
    newest = checkpoints.latest()
    if newest is not None:
        folder, manifest = newest
        changed = [d for d in differences(manifest.identity, identity) if not _accepted(d, accept_changed)]
        if changed:
            raise CheckpointError(
                f"{folder} is of another run: {'; '.join(changed)}. Train in an empty folder, "
                f"or insist with --accept-changed {changed[0].split(':')[0]}"
            )
        state, manifest = read_checkpoint(folder)
        return Position(
            state,
            manifest.step,
            # Where the next sample is, were every step of this phase as large as it is now.
            manifest.stream["sample_index"] - manifest.step * inputs.recipe.phase(inputs.phase).global_batch,
            manifest.schedule["offset"],
            manifest.lineage["started_from"],
        )
    phase = inputs.recipe.phase(inputs.phase)
    if inputs.start is None or phase.carry is None:
        return Position(None, 0, 0, 0, None)
    before = CheckpointFolder(inputs.start / "checkpoints", 1).latest()
    if before is None:
        raise CheckpointError(f"{inputs.start}: no whole checkpoint there; run `dvc repro {phase.start_from}`")
    folder, _ = before
    state, manifest = read_checkpoint(folder, moments=phase.carry.moments)
    changed = differences(manifest.identity["model"], identity["model"])
    if changed or manifest.identity["tokenizer"] != identity["tokenizer"]:
        raise CheckpointError(f"{folder} is of another model: {'; '.join(changed) or 'another tokenizer'}")
    return Position(
        state,
        0,
        manifest.samples if phase.carry.position else 0,
        manifest.schedule["offset"] + manifest.step if phase.carry.schedule else 0,
        {"phase": manifest.phase, "step": manifest.step, "weights": manifest.files["weights.safetensors"]["sha256"]},
    )


def _start_weights(inputs: Inputs) -> str | None:
    """The hash of the weights that this phase starts from: of another phase 1, phase 2 is another run."""
    newest = CheckpointFolder(inputs.start / "checkpoints", 1).latest() if inputs.start else None
    return newest[1].files["weights.safetensors"]["sha256"] if newest else None


def _accepted(difference: str, accept_changed: tuple[str, ...]) -> bool:
    key = difference.split(":")[0]
    return any(key == accepted or key.startswith(f"{accepted}.") for accepted in accept_changed)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One training at a time in a folder; a second one waits, so that a run that lost its launcher is not doubled."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is training here; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stop_file(folder: Path) -> Path:
    """The file whose appearance asks the run in `folder` to save a checkpoint and stop."""
    return folder.with_name(f"{folder.name}.stop")


def _checkpoints(inputs: Inputs) -> CheckpointFolder:
    return CheckpointFolder(inputs.folder / "checkpoints", inputs.recipe.runtime.keep_checkpoints)


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


def _check_plan(inputs: Inputs, plan: RowPlan) -> None:
    phase = inputs.recipe.phase(inputs.phase)
    planned = (plan.meta.sequence_length, tuple((pool.min_tokens, pool.share) for pool in plan.meta.pools))
    if planned != (phase.sequence_length, phase.pools):
        raise DataError(
            f"{inputs.rows}: rows of {planned[0]} tokens in the mixture {planned[1]}, the recipe asks for "
            f"{phase.sequence_length} in {phase.pools}; run `dvc repro rows`"
        )


def _build_engine(inputs: Inputs, accelerator: Accelerator) -> Engine:
    recipe = inputs.recipe
    dtype = getattr(torch, recipe.training.compute_dtype)
    name, attention = choose_attention(recipe.runtime.attention, accelerator.device, dtype)
    model = build_model(recipe.model, recipe.seed, dtype, attention)
    if accelerator.is_main_process:
        print(f"{inputs.phase}: attention {name}, {recipe.training.compute_dtype} on {accelerator.device}", flush=True)
    return make_engine(model, recipe.training, recipe.runtime, accelerator)


def _tracker(inputs: Inputs, position: Position, rows: dict[str, float]) -> Tracker:
    recipe = inputs.recipe
    tags = {f"azneobert.{key}": json.dumps(v) if isinstance(v, dict) else str(v) for key, v in inputs.lineage.items()}
    tags |= {"azneobert.phase": inputs.phase, "azneobert.recipe": inputs.recipe_name}
    if position.started_from:
        tags["azneobert.started_from"] = json.dumps(position.started_from)
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
        tags=tags,
    )
    return Tracker(inputs.tracking, recipe.tracking, info)


def _manifest(inputs: Inputs, identity: dict[str, Any], position: Position, step: int, run_id: str | None) -> Manifest:
    recipe = inputs.recipe
    phase = recipe.phase(inputs.phase)
    return Manifest(
        phase=inputs.phase,
        step=step,
        samples=position.first_sample + step * phase.global_batch,
        tokens=step * phase.global_batch * phase.sequence_length,
        recipe_name=inputs.recipe_name,
        recipe=recipe.model_dump(mode="json"),
        identity=identity,
        lineage={**inputs.lineage, "mlflow_run_id": run_id, "started_from": position.started_from},
        schedule={
            "offset": position.schedule_offset,
            "warmup_steps": phase.warmup_steps,
            "steps": phase.steps,
            "peak_learning_rate": phase.peak_learning_rate,
        },
        stream={
            "seed": recipe.seed,
            "first_sample": position.first_sample,
            "sample_index": position.first_sample + step * phase.global_batch,
        },
    )


def _without_state(position: Position) -> Position:
    """The engine has its own copy by now; at full size the state is 3.6 GB of host memory."""
    return Position(None, position.step, position.first_sample, position.schedule_offset, position.started_from)


def _announce(inputs: Inputs, engine: Engine, micro_batch: int, accumulation: int, position: Position) -> None:
    phase = inputs.recipe.phase(inputs.phase)
    world = engine.world
    print(
        f"{inputs.phase}: {count_parameters(inputs.recipe.model):,} parameters; a batch of {phase.global_batch} rows "
        f"of {phase.sequence_length} = {world.size} x {micro_batch} rows x {accumulation} micro-steps; "
        f"from step {position.step} of {phase.steps}",
        flush=True,
    )
