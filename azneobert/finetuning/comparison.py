"""Which of several encoders is better on a task, and whether the difference is more than chance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azneobert.finetuning.figures import Weights
from azneobert.finetuning.intervals import bootstrap, paired
from azneobert.finetuning.scores import main_score
from azneobert.finetuning.task import Task
from azneobert.finetuning.trials import Contender, Trial


@dataclass(frozen=True)
class Lead:
    """By how much the best model's mean score exceeds another's, with its 95% interval."""

    difference: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0: other seeds and test examples might have turned the order round."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Standing:
    """A model's main score on a task: the mean over seeds, its 95% interval, and the best one's lead over it.

    The best model has no lead over itself.
    """

    mean: float
    low: float
    high: float
    by_seed: dict[int, float]
    lead: Lead | None

    @property
    def mark(self) -> str:
        """`best`; `noise` if the distance to the best may be chance; otherwise `behind`."""
        if self.lead is None:
            return "best"
        return "noise" if self.lead.is_noise else "behind"


@dataclass(frozen=True)
class Row:
    """A model in the table: its standing on each task that it was trained on, and what it costs.

    `tokens_per_second` is None if no test of the model ran on this device.
    """

    name: str
    sha256: str
    weights: Weights
    parameters: int
    tokens_a_word: float
    tokens_per_second: float | None
    standings: dict[str, Standing]


@dataclass(frozen=True)
class Comparison:
    """Models side by side. `scores` names each task's main score; `left_out` says why a task is missing."""

    suite: str
    seeds: tuple[int, ...]
    device: str
    scores: dict[str, str]
    examples: dict[str, int]  # of the test split
    data_sha256: dict[str, str]
    left_out: dict[str, str]
    rows: list[Row]

    def average(self, row: Row) -> float | None:
        """The mean of a model's main scores over the tasks. None for fewer than two tasks, or if a score is missing."""
        complete = all(len(each.standings) == len(self.scores) for each in self.rows)
        if len(self.scores) < 2 or not complete:
            return None
        return statistics.fmean(standing.mean for standing in row.standings.values())


def standings(task: Task, found: Mapping[str, Sequence[Trial]]) -> dict[str, Standing]:
    """The standing of each model on a task, from its trials. If means are equal, the first model is the best."""
    main, gold = main_score(task), [one.label for one in task.splits["test"]]
    labels = {name: [trial.labels for trial in of_model] for name, of_model in found.items()}
    means = {name: statistics.fmean(trial.scores[main] for trial in of_model) for name, of_model in found.items()}
    best = max(means, key=means.__getitem__)
    return {
        name: Standing(
            means[name],
            *bootstrap(task, gold, labels[name], main),
            by_seed={trial.seed: trial.scores[main] for trial in of_model},
            lead=None if name == best else Lead(*paired(task, gold, labels[best], labels[name], main)),
        )
        for name, of_model in found.items()
    }


def row_of(
    contender: Contender, found: Sequence[Trial], of_tasks: dict[str, Standing], tokens_a_word: float, device: str
) -> Row:
    """A model's row, from all its trials and its standings. Its speed is from the tests that ran on `device`."""
    here = [trial.speed for trial in found if trial.speed.device == device]
    seconds = sum(speed.seconds for speed in here)
    return Row(
        name=contender.name,
        sha256=contender.sha256,
        weights=contender.weights,
        parameters=found[0].parameters,
        tokens_a_word=tokens_a_word,
        tokens_per_second=sum(speed.tokens for speed in here) / seconds if here else None,
        standings=of_tasks,
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it as JSON can hold it."""
    return {
        "suite": comparison.suite,
        "seeds": list(comparison.seeds),
        "device": comparison.device,
        "tasks": {
            name: {
                "score": score,
                "test_examples": comparison.examples[name],
                "data_sha256": comparison.data_sha256[name],
            }
            for name, score in comparison.scores.items()
        },
        "left_out": comparison.left_out,
        "models": [
            {
                "name": row.name,
                "sha256": row.sha256,
                "weights": row.weights,
                "parameters": row.parameters,
                "tokens_a_word": row.tokens_a_word,
                "tokens_per_second": row.tokens_per_second and round(row.tokens_per_second),
                "average": _rounded(comparison.average(row)),
                "tasks": {name: _standing_as_json(standing) for name, standing in row.standings.items()},
            }
            for row in comparison.rows
        ],
    }


def _standing_as_json(standing: Standing) -> dict[str, Any]:
    lead = standing.lead
    return {
        "mean": _rounded(standing.mean),
        "low": _rounded(standing.low),
        "high": _rounded(standing.high),
        "mark": standing.mark,
        "by_seed": {str(seed): _rounded(score) for seed, score in standing.by_seed.items()},
        "lead_of_the_best": lead and {key: _rounded(getattr(lead, key)) for key in ("difference", "low", "high")},
    }


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)
