"""The record of a phase: its points by the clock, and the history that its newest checkpoint states."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from azneobert.checkpoint.manifest import Manifest, Segment, read_manifest
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.errors import AzNeoBertError, CheckpointError
from azneobert.layout import CHECKPOINT, Layout
from azneobert.recipe import PHASES, PhaseName
from azneobert.tracking.points import POINTS, read_points, segment_starts


@dataclass(frozen=True)
class TrainingPoint:
    """What the trainer logged after a step. `tokens` counts the phase so far, `rate` is tokens/s of all ranks.

    seconds: since 1970. memory: the most that the process has held so far, in GiB. `loss` is None if it was not finite,
    since the trainer does not record it then; values that older points lack are None too.
    """

    step: int
    seconds: float
    tokens: float
    rate: float
    memory: float | None
    loss: float | None


@dataclass(frozen=True)
class HeldOutPoint:
    """The loss over all held-out rows at a step, recorded when the evaluation had ended. seconds: since 1970."""

    step: int
    seconds: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class PhaseRecord:
    """The record of a phase so far, oldest first. `starts` are the steps at which a segment began, by the points.

    `saved` is the step of the checkpoint that states the segments; 0 if there is no checkpoint yet.
    """

    phase: PhaseName
    folder: Path
    training: tuple[TrainingPoint, ...]
    held_out: tuple[HeldOutPoint, ...]
    segments: tuple[Segment, ...]
    starts: tuple[int, ...]
    saved: int

    @property
    def points(self) -> list[TrainingPoint | HeldOutPoint]:
        """Both kinds of points by time. At one step the training point comes first, as in the loop."""
        both: list[TrainingPoint | HeldOutPoint] = [*self.training, *self.held_out]
        return sorted(both, key=lambda point: (point.seconds, point.step, isinstance(point, HeldOutPoint)))

    @property
    def changes(self) -> list[tuple[int, str]]:
        """After which step something changed, and what: from the checkpoint, and from points that are newer."""
        stated = [(after.from_step, _what_changed(before, after)) for before, after in pairwise(self.segments)]
        known = {step for step, _ in stated}
        # If a run goes back to before a segment's start, the new start shows in the points alone.
        others = [
            (step, "stop" if step < self.saved else "not in a checkpoint yet")
            for step in self.starts
            if step not in known
        ]
        return sorted(stated + others)


def read_phases(layout: Layout) -> list[PhaseRecord]:
    """The records of the phases that have trained: finished ones from their outputs, others from the run in progress.

    Raises:
        AzNeoBertError: none has, or a finished one lacks its points or its manifest.
    """
    found = [record for phase in PHASES if (record := _read_phase(layout, phase))]
    if not found:
        raise AzNeoBertError(f"{layout.root}: no phase has recorded a step there; run `dvc repro`")
    return found


def _read_phase(layout: Layout, phase: PhaseName) -> PhaseRecord | None:
    finished, running = layout.finished(phase), layout.running(phase)
    if (finished / POINTS).is_file() or (finished / CHECKPOINT).is_dir():
        record = _record(phase, finished, read_manifest(finished / CHECKPOINT))
        if record is None:
            raise AzNeoBertError(
                f"{finished / POINTS}: holds no step of the run; run `dvc checkout {finished / POINTS}`, "
                f"or `dvc repro {phase}`"
            )
        return record
    return _record(phase, running.tracking, _newest_manifest(running.checkpoints))


def _newest_manifest(checkpoints: Path) -> Manifest | None:
    """The manifest of the newest checkpoint that has a whole one. No other file is read."""
    for folder in reversed(CheckpointFolder(checkpoints, 1).steps()):
        try:
            return read_manifest(folder)
        except CheckpointError:
            continue
    return None


def _record(phase: PhaseName, folder: Path, manifest: Manifest | None) -> PhaseRecord | None:
    """None where no step has been recorded."""
    points = _by_the_clock(read_points(folder))
    training = [
        TrainingPoint(
            point["step"],
            point["seconds"],
            point["values"]["train/tokens"],
            point["values"]["train/tokens_per_second"],
            point["values"].get("train/memory_gib"),
            point["values"].get("train/loss"),
        )
        for point in points
        if {"train/tokens", "train/tokens_per_second"} <= point["values"].keys()
    ]
    if not training:
        return None
    held_out = [
        HeldOutPoint(point["step"], point["seconds"], tokens_at(point["step"], training), point["values"]["eval/loss"])
        for point in points
        if "eval/loss" in point["values"]
    ]
    return PhaseRecord(
        phase=phase,
        folder=folder,
        training=tuple(training),
        held_out=tuple(held_out),
        segments=manifest.segments if manifest else (),
        starts=tuple(sorted(set(segment_starts(points).values()))),
        saved=manifest.step if manifest else 0,
    )


def _by_the_clock(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with `seconds`, which never decrease: a run may continue on a machine whose clock is behind."""
    ordered, now = [], 0.0
    for point in points:
        now = max(now, point["time_ms"] / 1000)
        ordered.append(point | {"seconds": now})
    return ordered


def tokens_at(step: int, training: list[TrainingPoint] | tuple[TrainingPoint, ...]) -> float:
    """The tokens trained on after a step, by linear interpolation between the points; step 0 has zero tokens."""
    known = [(0, 0.0)] + [(point.step, point.tokens) for point in training]
    after = next((place for place, (known_step, _) in enumerate(known) if known_step >= step), len(known) - 1)
    (first, tokens), (last, more) = known[max(0, after - 1)], known[max(1, after)]
    return tokens + (more - tokens) * (step - first) / (last - first) if last > first else more


def _what_changed(before: Segment, after: Segment) -> str:
    """In the words of a legend."""
    if after.skipped is not None:
        return "rewound"
    changes = []
    if after.engine != before.engine:
        changes.append(f"{before.engine} to {after.engine}")
    if after.world_size != before.world_size:
        changes.append(f"{before.world_size or 'unknown'} to {after.world_size or 'unknown'} processes")
    code = before.code_sha256 != after.code_sha256
    others = {
        "code": code,
        "commit": not code and (before.git_commit, before.git_dirty) != (after.git_commit, after.git_dirty),
        "versions": before.versions != after.versions,
        "image": before.image != after.image,
        "settings": before.settings != after.settings,
    }
    return ", ".join([*changes, *(f"other {what}" for what, changed in others.items() if changed)]) or "stop"
