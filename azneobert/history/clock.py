"""Where the wall-clock time of a phase went, as far as its points say; and its seams.

The clock of a phase runs from its first point to its last. Between two points it is divided like this:

- *training* is what the trainer's meter counted: the tokens of the steps between the points, divided by the tokens/s
  that the trainer logged for these steps (at the later point, or at the next training point; after the last training
  point, by its rate). The meter stands still while the trainer evaluates or saves. Training is never more than the time
  between the points.
- *evaluation and saving* is the rest, if the run went on.
- *stopped* is the rest, if the run did not go on: the end of one process, the time until the next process, its start,
  and the steps since its checkpoint, which it repeats without a second point. The run did not go on where its history
  or its points begin another segment. A stop after which nothing has changed leaves no such trace. It shows as less
  memory of the process than before, since the trainer logs the maximum so far, or as a rest that is more than
  `UNEXPLAINED_SECONDS` above the usual one. Before a held-out point, the usual rest is the median of all rests before
  held-out points, and counts as evaluation; before a training point it is zero. A stop that leaves no trace at all
  counts as evaluation and saving.

The three sum to the clock. The clock leaves out the time before the first point and after the last: the start of the
first process, and the last save.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from azneobert.history.record import HeldOutPoint, PhaseRecord, TrainingPoint, tokens_at
from azneobert.recipe import PhaseName

UNEXPLAINED_SECONDS = 30.0  # the longest save, or excess over the usual evaluation; more is a stop


@dataclass(frozen=True)
class Interval:
    """From one point to the next, in seconds since 1970; its three parts, in seconds, sum to its length."""

    from_step: int
    to_step: int
    start: float
    end: float
    training: float
    evaluation_and_saving: float
    stopped: float


@dataclass(frozen=True)
class Account:
    """Seconds of a phase by the clock, and where they went."""

    phase: PhaseName
    clock: float
    training: float
    evaluation_and_saving: float
    stopped: float


@dataclass(frozen=True)
class Seam:
    """Where a run stopped and went on, or went back: after which step and how many tokens, and what changed.

    tokens: of the phase. seconds: the time of the first point after the seam, since 1970. stopped: seconds of the stop.
    """

    phase: PhaseName
    step: int
    tokens: float
    seconds: float
    stopped: float
    what: str


def intervals(record: PhaseRecord) -> list[Interval]:
    """What lies between the points of a phase, in order."""
    points = record.points
    trained = [_trained(before, after, record) for before, after in pairwise(points)]
    rests = [
        after.seconds - before.seconds - part for (before, after), part in zip(pairwise(points), trained, strict=True)
    ]
    evaluations = [rest for rest, after in zip(rests, points[1:], strict=True) if isinstance(after, HeldOutPoint)]
    usual = statistics.median(evaluations) if evaluations else 0.0
    changed = [step for step, _ in record.changes]
    found, memory = [], 0.0
    for (before, after), part, rest in zip(pairwise(points), trained, rests, strict=True):
        memory = (before.memory or memory) if isinstance(before, TrainingPoint) else memory
        other_process = isinstance(after, TrainingPoint) and after.memory is not None and after.memory < memory
        ordinary = min(usual, rest) if isinstance(after, HeldOutPoint) else 0.0
        ended = other_process or any(before.step <= step < after.step for step in changed)
        stopped = rest - ordinary if ended or rest - ordinary > UNEXPLAINED_SECONDS else 0.0
        found.append(Interval(before.step, after.step, before.seconds, after.seconds, part, rest - stopped, stopped))
    return found


def account(record: PhaseRecord) -> Account:
    """The clock of a phase, divided."""
    parts = intervals(record)
    points = record.points
    return Account(
        record.phase,
        clock=points[-1].seconds - points[0].seconds,
        training=sum(part.training for part in parts),
        evaluation_and_saving=sum(part.evaluation_and_saving for part in parts),
        stopped=sum(part.stopped for part in parts),
    )


def seams(record: PhaseRecord) -> list[Seam]:
    """The seams of a phase by step: places where something changed, and stops after which nothing had changed."""
    parts = intervals(record)
    changes = record.changes
    found = []
    for step, what in changes:
        part = next((part for part in parts if part.from_step <= step < part.to_step), None)
        end, stopped = (part.end, part.stopped) if part else (record.points[-1].seconds, 0.0)
        found.append(Seam(record.phase, step, tokens_at(step, record.training), end, stopped, what))
    for part in parts:
        if part.stopped and not any(part.from_step <= step < part.to_step for step, _ in changes):
            tokens = tokens_at(part.from_step, record.training)
            found.append(Seam(record.phase, part.from_step, tokens, part.end, part.stopped, "stop"))
    return sorted(found, key=lambda seam: (seam.step, seam.seconds))


def _trained(before: TrainingPoint | HeldOutPoint, after: TrainingPoint | HeldOutPoint, record: PhaseRecord) -> float:
    """Seconds of the steps between two points, by the trainer's meter."""
    place = bisect_left(record.training, after.step, key=lambda point: point.step)
    rate = record.training[min(place, len(record.training) - 1)].rate
    return min(after.seconds - before.seconds, max(0.0, after.tokens - before.tokens) / rate)
