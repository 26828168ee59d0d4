"""Where a run goes on: in its own folder, from the phase before, or from random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pydantic import ValidationError

from azneobert.checkpoint.manifest import Manifest, Segment, Skipped
from azneobert.checkpoint.universal import TrainState, open_checkpoint
from azneobert.course import Course
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import tokenizer_sha256
from azneobert.dotted import differences
from azneobert.errors import AzNeoBertError, CheckpointError
from azneobert.layout import finished_checkpoint
from azneobert.recipe import Model, Phase, Training, recipe_fingerprint
from azneobert.training.guards import Rewind
from azneobert.training.inputs import Inputs


@dataclass(frozen=True)
class Position:
    """The checkpoint to take over, if any, the step to go on from, and what an earlier phase hands on (`carry`).

    `identity` is the run's, as its checkpoints record it, and `segments` its history, whose last segment is about to
    begin or to go on. `resumed` is the manifest of the checkpoint if the checkpoint is of this run.
    """

    checkpoint: Path | None
    moments: bool
    step: int
    course: Course
    schedule_offset: int
    started_from: dict[str, Any] | None
    identity: dict[str, Any]
    segments: tuple[Segment, ...] = ()
    resumed: Manifest | None = None

    @property
    def rewinds(self) -> int:
        """How often the run has been rewound, as its history says."""
        return sum(segment.skipped is not None for segment in self.segments)

    def open(self) -> TrainState | None:
        """The state to take over, read when it is asked for; the checkpoint has been verified."""
        return open_checkpoint(self.checkpoint, moments=self.moments) if self.checkpoint else None


def agree_on_position(
    inputs: Inputs, stream: Stream, accelerator: Accelerator, accept_changed: tuple[str, ...] = ()
) -> Position:
    """Give every rank what the main rank finds: none reads another checkpoint, or waits for one that was refused.

    Raises:
        CheckpointError: see `find_position`.
    """
    found: list[Position | AzNeoBertError | None] = [None]
    if accelerator.is_main_process:
        try:
            found[0] = find_position(inputs, stream, accept_changed, accelerator.num_processes)
        except AzNeoBertError as error:
            found[0] = error
    [position] = broadcast_object_list(found)
    if isinstance(position, AzNeoBertError):
        raise position
    return position


def find_position(
    inputs: Inputs, stream: Stream, accept_changed: tuple[str, ...] = (), world_size: int = 1
) -> Position:
    """Resume this phase, begin it from the phase before, or begin from random weights.

    Raises:
        CheckpointError: a checkpoint here is of another run, or the phase before has none that is whole.
    """
    before = _phase_before(inputs)
    identity = _identity(inputs, stream, before)
    present = Segment(
        from_step=0,
        engine=inputs.recipe.runtime.engine,
        world_size=world_size,
        settings=recipe_fingerprint(identity),
        **inputs.provenance,
    )
    newest = inputs.checkpoints.latest()
    if newest is not None:
        return _resumed(inputs, identity, newest, accept_changed, present)
    if before is not None:
        return _carried_over(inputs, identity, before, present)
    course = Course.through(inputs.recipe.phase(inputs.phase), 0, 0, 0)
    return Position(None, False, 0, course, 0, None, identity, (present,))


def rewound(inputs: Inputs, position: Position, before: Position, rewind: Rewind) -> Position:
    """A position that leaves out the samples which `before` has used from the same step through the step of a spike.

    It begins another segment of the run's history: the steps keep their numbers, and the later data move up.
    """
    # At a second rewind to the same checkpoint, the first window has been left out already.
    same = before.segments[-1].from_step <= position.step
    first = (before if same else position).course.samples(position.step)
    after = before.course.samples(rewind.step)
    segment = replace(
        before.segments[-1],
        from_step=position.step,
        skipped=Skipped(first, after - first, rewind.why),
    )
    history = (each for each in before.segments if each.from_step <= position.step)
    phase = inputs.recipe.phase(inputs.phase)
    return replace(
        position,
        course=Course.through(phase, position.step, after, position.course.tokens(position.step)),
        segments=(*history, segment),
    )


def run_identity(inputs: Inputs, stream: Stream) -> dict[str, Any]:
    """What must be equal in two runs for them to be the same: a checkpoint of another identity is not resumed."""
    return _identity(inputs, stream, _phase_before(inputs))


def changes(recorded: dict[str, Any], present: dict[str, Any], accept_changed: tuple[str, ...]) -> list[str]:
    """How two identities differ, except in the keys that a person accepts."""
    return [d for d in differences(with_defaults(recorded), present) if not _accepted(d, accept_changed)]


def with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """An identity completed with the defaults of settings that did not exist when it was recorded."""
    complete = dict(recorded)
    for key, block in (("model", Model), ("training", Training), ("phase", Phase)):
        try:
            complete[key] = block.model_validate(recorded[key]).model_dump(mode="json")
        except (KeyError, ValidationError):
            continue  # it will be named as it is
    return complete


def _identity(inputs: Inputs, stream: Stream, before: tuple[Path, Manifest] | None) -> dict[str, Any]:
    recipe = inputs.recipe
    return {
        "seed": recipe.seed,
        "model": recipe.model.model_dump(mode="json"),
        "training": recipe.training.model_dump(mode="json"),
        "phase": recipe.phase(inputs.phase).model_dump(mode="json"),
        "tokenizer": tokenizer_sha256(inputs.tokenizer),
        "rows": stream.plan.meta.sha256,
        "tokens": recipe_fingerprint(dict(stream.plan.meta.stores)),
        # A phase 2 from another phase 1 is another run.
        "start": before[1].files["weights.safetensors"]["sha256"] if before else None,
    }


def code_changed(inputs: Inputs, manifest: Manifest) -> bool:
    """Whether a checkpoint was made by other code than today's."""
    return manifest.last_segment.code_sha256 != inputs.provenance["code_sha256"]


def _phase_before(inputs: Inputs) -> tuple[Path, Manifest] | None:
    return finished_checkpoint(inputs.start) if inputs.start else None


def _resumed(
    inputs: Inputs,
    identity: dict[str, Any],
    newest: tuple[Path, Manifest],
    accept_changed: tuple[str, ...],
    present: Segment,
) -> Position:
    folder, manifest = newest
    changed = changes(manifest.identity, identity, accept_changed)
    if changed:
        raise CheckpointError(
            f"{folder}: is of another run: {'; '.join(changed)}; train in an empty folder, "
            f"or insist with --accept-changed {changed[0].split(':')[0]}"
        )
    return Position(
        checkpoint=folder,
        moments=True,
        step=manifest.step,
        course=Course.through(
            inputs.recipe.phase(inputs.phase), manifest.step, manifest.stream["sample_index"], manifest.tokens
        ),
        schedule_offset=manifest.schedule["offset"],
        started_from=manifest.lineage["started_from"],
        identity=identity,
        segments=_history(manifest, present),
        resumed=manifest,
    )


def _history(manifest: Manifest, present: Segment) -> tuple[Segment, ...]:
    """The segments up to now, with a new one if anything but the step has changed since the checkpoint was written."""
    if present.continues(manifest.last_segment):
        return manifest.segments
    return (*manifest.segments, replace(present, from_step=manifest.step))


def _carried_over(
    inputs: Inputs, identity: dict[str, Any], before: tuple[Path, Manifest], present: Segment
) -> Position:
    folder, manifest = before
    carry = inputs.recipe.phase(inputs.phase).carry
    assert carry is not None  # the recipe has `start_from` and `carry` together
    changed = differences(with_defaults(manifest.identity)["model"], identity["model"])
    if changed or manifest.identity["tokenizer"] != identity["tokenizer"]:
        raise CheckpointError(
            f"{folder}: is of another model: {'; '.join(changed) or 'another tokenizer'}; use another checkpoint"
        )
    if carry.moments and not manifest.moments:
        raise CheckpointError(
            f"{folder}: holds no moments; use another checkpoint, or {inputs.phase}.carry.moments: false"
        )
    return Position(
        checkpoint=folder,
        moments=carry.moments,
        step=0,
        course=Course.through(inputs.recipe.phase(inputs.phase), 0, manifest.samples if carry.position else 0, 0),
        schedule_offset=manifest.schedule["offset"] + manifest.step if carry.schedule else 0,
        started_from={
            "phase": manifest.phase,
            "step": manifest.step,
            "weights": manifest.files["weights.safetensors"]["sha256"],
            "carry": carry.model_dump(),
        },
        identity=identity,
        segments=(present,),
    )


def _accepted(difference: str, accept_changed: tuple[str, ...]) -> bool:
    key = difference.split(":")[0]
    return any(key == accepted or key.startswith(f"{accepted}.") for accepted in accept_changed)
