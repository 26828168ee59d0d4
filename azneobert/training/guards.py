"""What a run does about a number that has gone wrong: says so, stops, or goes back to its last checkpoint.

The verdicts come from the device (engine/guard.py). A rank makes an alarm of a bad verdict, which reaches all ranks at
the same step, when they agree on stopping anyway.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

from azneobert.engine.guard import Judgement, Judgements
from azneobert.engine.interface import Engine
from azneobert.errors import TrainingError
from azneobert.recipe import Guards
from azneobert.tracking.tracker import Tracker

_LINES = 20  # of spikes and skipped updates that are printed; all of them are in MLflow


@dataclass(frozen=True)
class Rewind:
    """The run is to go back to its last checkpoint, and leave out the samples from there through this step."""

    step: int
    why: str


class RunGuards:
    """The guards of one run, on each of its ranks; the main one says what they find.

    last_good: names the last checkpoint, for the error that stops the run.
    """

    def __init__(
        self,
        name: str,
        settings: Guards,
        engine: Engine,
        tracker: Tracker | None,
        last_good: Callable[[], str],
        rewinds: int = 0,
    ):
        self._name = name
        self._settings = settings
        self._engine = engine
        self._tracker = tracker
        self._last_good = last_good
        self._rewinds = rewinds
        self._judgements = Judgements()
        self._skipped = 0
        self._said = 0
        self._differing: Judgement | None = None
        self._worn_out: Judgement | None = None
        self._spike: Judgement | None = None

    def repeats(self, step: int) -> bool:
        """Whether a micro-batch of this step is to be computed twice."""
        return self._settings.repeat_every > 0 and step % self._settings.repeat_every == 0

    def note(self, step: int) -> None:
        """Note that a step was made, whose verdict is on its way."""
        self._judgements.add(step, self._engine.guard.judgement)

    def alarm(self, say: Callable[[str], None], *, wait: bool = False) -> bool:
        """Take in the verdicts that have arrived, with `wait` all; returns whether the ranks must `resolve` something.

        `say` shows a line to a person.
        """
        for judgement in self._judgements.arrived(wait=wait):
            self._take(judgement, say)
        return any((self._differing, self._worn_out, self._spike))

    def resolve(self, gathered: Callable[[Any], list[Any]]) -> Rewind:
        """Decide what to do about an alarm, the same on every rank. `gathered` tells all ranks what each has to say.

        Raises:
            TrainingError: the run cannot go on; it says from which checkpoint it can be started again.
        """
        silent: list[str] = []
        self.alarm(silent.append, wait=True)
        mine = (
            self._differing
            and f"rank {self._engine.world.rank} on {socket.gethostname()}: {_computed(self._differing)}"
        )
        if wrong := [said for said in gathered(mine) if said]:
            raise TrainingError(
                f"{self._name}: {'; '.join(wrong)}, so that device computes wrong now and then; "
                f"take the machine out, then start again; {self._last_good()}"
            )
        if self._worn_out:
            raise TrainingError(
                f"{self._name}: step {self._worn_out.step}: {self._worn_out.in_a_row} updates in a row were not finite "
                f"({_figures(self._worn_out)}) and were not made; {self._last_good()}; look at "
                f"{self._name}.peak_learning_rate and at the data from there on"
            )
        assert self._spike is not None  # or nobody would have sounded an alarm
        if self._rewinds >= self._settings.rewinds:
            raise TrainingError(
                f"{self._name}: step {self._spike.step}: a spike ({_figures(self._spike)}), after {self._rewinds} that "
                f"the run was rewound for, which is all that guards.rewinds allows; {self._last_good()}"
            )
        return Rewind(self._spike.step, f"spike at step {self._spike.step}: {_figures(self._spike)}")

    def check_fit(self, step: int, loss: float, grad_norm: float = 0.0) -> None:
        """Refuse a model that has broken down, before it is saved over one that has not.

        Both figures are of the current model, on rows that are always the same. Weights of 1e30 are finite, and if a
        norm turns them into zeros, the loss is finite too, but the gradients are not.

        Raises:
            TrainingError: one of them is not finite, or the loss is ten times that of a model that guesses.
        """
        guessing = log(self._engine.model.config.vocab_size)
        if not (loss <= 10 * guessing and isfinite(grad_norm)):
            raise TrainingError(
                f"{self._name}: step {step}: loss {loss:.4g} and gradient norm {grad_norm:.4g} on rows that are always "
                f"the same, where a model that guesses has a loss of {guessing:.1f}: not saved; {self._last_good()}; "
                f"look at {self._name}.peak_learning_rate"
            )

    def _take(self, found: Judgement, say: Callable[[str], None]) -> None:
        values = {}
        settings = self._settings
        spike = found.score > settings.spike_score
        if found.withheld:
            self._skipped += 1
            values["guards/skipped_updates"] = float(self._skipped)
        if spike:
            values["guards/spike_score"] = found.score
        if self._tracker and values:
            self._tracker.log(found.step, values)
        if values and self._said < _LINES:
            self._said += 1
            what = "a spike" if spike else "not finite"
            does = {"rewind": "the run is rewound"}.get(settings.on_spike, "flagged") if spike else ""
            say(f"step {found.step}: {what}: {_figures(found)}; {'the update is skipped' if found.withheld else does}")
        if found.differing:
            self._differing = self._differing or found
        if found.in_a_row >= settings.stop_after:
            self._worn_out = self._worn_out or found
        if spike and settings.on_spike == "rewind":
            self._spike = self._spike or found


def _figures(found: Judgement) -> str:
    scores = [f" (score {score:.1f})" if score else "" for score in (found.loss_score, found.norm_score)]
    return f"loss {found.loss:.4g}{scores[0]}, gradient norm {found.grad_norm:.4g}{scores[1]}"


def _computed(found: Judgement) -> str:
    return (
        f"step {found.step}: the same micro-batch, computed twice, differs in {found.differing:,} values of loss and "
        "gradients"
    )
