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
    """What the trainer logged after a step. `tokens` are those of the phase so far, `rate` is tokens/s of all ranks.

    seconds: since 1970. memory: the most that the process has held so far, in GiB. A loss that is not finite is None,
    since the trainer records none; so is what an older point lacks.
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
    """What stands of a phase's record, oldest first. `starts` are the steps at which points say that a segment began.

    `saved` is the step of the checkpoint that states the segments, 0 where there is none yet.
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
        """Both kinds by the clock; at one step, as the loop goes, that of training comes first."""
        both: list[TrainingPoint | HeldOutPoint] = [*self.training, *self.held_out]
        return sorted(both, key=lambda point: (point.seconds, point.step, isinstance(point, HeldOutPoint)))

    @property
    def changes(self) -> list[tuple[int, str]]:
        """After which step something changed, and what: by the checkpoint, and by points that it does not know yet."""
        stated = [(after.from_step, _what_changed(before, after)) for before, after in pairwise(self.segments)]
        known = {step for step, _ in stated}
        # A run that goes back behind a segment's start begins one in its points alone.
        others = [
            (step, "stop" if step < self.saved else "not in a checkpoint yet")
            for step in self.starts
            if step not in known
        ]
        return sorted(stated + others)


def read_phases(layout: Layout) -> list[PhaseRecord]:
    """The phases that have trained: what a finished one left for the stages after it, or what one in progress has.

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
    """Of the newest checkpoint whose manifest is whole; its other files are not read."""
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
    """The points with `seconds`, which never go back: a run may go on on a machine whose clock is behind."""
    ordered, now = [], 0.0
    for point in points:
        now = max(now, point["time_ms"] / 1000)
        ordered.append(point | {"seconds": now})
    return ordered


def tokens_at(step: int, training: list[TrainingPoint] | tuple[TrainingPoint, ...]) -> float:
    """The tokens trained on after a step: on the line through the points beside it; step 0 with none is one too."""
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
