"""The pictures of a fine-tuning: how it learned, and which labels it confuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from azneobert.finetuning.scores import classes, main_score
from azneobert.finetuning.task import Label, Task

Weights = Literal["pretrained", "random"]

_COLOURS: dict[Weights, str] = {"pretrained": "tab:blue", "random": "tab:orange"}
_MOST_LABELS = 30  # with which a confusion matrix can still be read
_LONGEST_NAME = 24  # characters
_LONGEST_MODEL = 40
_PANELS = 4  # side by side
# Of a model on a task: how its dot is filled, and what that means.
_MARKS = {
    "best": ("tab:blue", "tab:blue", "the best"),
    "noise": ("tab:blue", "white", "inside the noise"),
    "behind": ("tab:gray", "tab:gray", "behind it"),
}


@dataclass(frozen=True)
class Curve:
    """The course of a seed's training: for each epoch the mean training loss and the main score on validation."""

    weights: Weights
    seed: int
    losses: list[float]
    scores: list[float]


class Dot(Protocol):
    """A score with its interval, and its mark: `best`, `noise` or `behind`."""

    @property
    def mean(self) -> float:
        """The dot."""

    @property
    def low(self) -> float:
        """The left end of its line."""

    @property
    def high(self) -> float:
        """The right end."""

    @property
    def mark(self) -> str:
        """How it is filled."""


def draw_learning_curve(task: Task, curves: Sequence[Curve], file: Path) -> None:
    """Draw the validation score and the training loss against the epoch, a line for each seed, as PNG.

    A large dot marks the best epoch, whose weights are kept. Equal curves give equal files.
    """
    plt = _pyplot()
    from matplotlib.ticker import MaxNLocator

    figure, (of_scores, of_losses) = plt.subplots(1, 2, figsize=(11, 4.5), dpi=120)
    for curve in curves:
        style = {"color": _COLOURS[curve.weights], "alpha": 0.7, "linewidth": 1.2}
        epochs = range(1, len(curve.scores) + 1)
        best = int(np.argmax(curve.scores))
        of_scores.plot(epochs, curve.scores, ".-", **style)
        of_scores.plot(epochs[best], curve.scores[best], "o", **style)
        of_losses.plot(epochs, curve.losses, ".-", **style)
    of_scores.set(ylabel=f"{main_score(task)} on validation")
    of_losses.set(ylabel="training loss")
    for axes in (of_scores, of_losses):
        axes.set(xlabel="epoch", xlim=(0.5, max(len(curve.scores) for curve in curves) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    for weights in dict.fromkeys(curve.weights for curve in curves):
        seeds = sum(curve.weights == weights for curve in curves)
        of_scores.plot([], [], color=_COLOURS[weights], label=f"{weights} weights, {seeds} seed{'s' * (seeds > 1)}")
    of_scores.legend()
    figure.suptitle(task.name)
    _save(figure, file)


def draw_confusion(task: Task, gold: Sequence[Label], predicted: Sequence[Label], file: Path) -> None:
    """Draw the confusion matrix as PNG: the percentage of each label's examples, or words, that got each label.

    With more than 30 labels, only the 30 in most mistakes are drawn; percentages are still of all the label's examples.
    An unseen word counts for its label and is in no cell. Not for regression, which has no labels. Equal predictions
    give equal files.
    """
    from sklearn.metrics import confusion_matrix

    plt = _pyplot()
    truth, guesses = classes(gold), classes(predicted)
    names = _names(task, truth, guesses)
    counts = confusion_matrix(truth, guesses, labels=range(len(names)))
    totals = np.bincount(truth, minlength=len(names))  # with unseen words, which are predicted as no label
    percent = 100 * counts / totals[:, None].clip(min=1)
    shown = _most_confused(counts)
    size = len(shown)
    width = max(5.0, 1.5 + 0.42 * size)
    figure, axes = plt.subplots(figsize=(width + 1.2, width), dpi=120)
    image = axes.imshow(percent[np.ix_(shown, shown)], cmap="Blues", vmin=0, vmax=100)
    for row, label in enumerate(shown):
        for column, guess in enumerate(shown):
            _write_percent(axes, row, column, percent[label, guess], 10 if size <= 10 else 7)
    ticks = [names[label] for label in shown]
    axes.set_xticks(range(size), ticks, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), [f"{name} ({totals[label]:,})" for name, label in zip(ticks, shown, strict=True)])
    axes.set(xlabel="predicted", ylabel="gold (how many)")
    of_all = "" if size == len(names) else f": {size} of {len(names)} labels, those most confused"
    axes.set_title(f"{task.name}{of_all}")
    figure.colorbar(image, ax=axes, label="% of the gold label", fraction=0.046, pad=0.04)
    _save(figure, file)


def draw_comparison(scores: Mapping[str, str], models: Mapping[str, Mapping[str, Dot]], file: Path) -> None:
    """Draw the score of each model on each task as PNG: a panel for each task, the score's name on its axis."""
    plt = _pyplot()
    columns = min(_PANELS, len(scores))
    lines = ceil(len(scores) / columns)
    size = (3.2 + 2.6 * columns, 0.6 + lines * (1.1 + 0.32 * len(models)))
    figure, grid = plt.subplots(lines, columns, figsize=size, dpi=120, sharey=True, squeeze=False, layout="constrained")
    places = dict(zip(models, reversed(range(len(models))), strict=True))  # the first one at the top
    panels = list(grid.flat)
    for axes, (task, score) in zip(panels, scores.items(), strict=False):
        for name, place in places.items():
            if (dot := models[name].get(task)) is not None:
                edge, fill, _ = _MARKS[dot.mark]
                axes.plot([100 * dot.low, 100 * dot.high], [place, place], color=edge, linewidth=1.5)
                axes.plot(100 * dot.mean, place, "o", markeredgecolor=edge, markerfacecolor=fill)
        axes.set(title=task, xlabel=f"{score}, %", ylim=(-0.6, len(models) - 0.4))
        axes.set_yticks(list(places.values()), [_end_of(name, _LONGEST_MODEL) for name in places])
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.1)
    for axes in panels[len(scores) :]:
        axes.set_axis_off()
    for edge, fill, meaning in _MARKS.values():
        panels[0].plot([], [], "o", markeredgecolor=edge, markerfacecolor=fill, label=meaning)
    figure.legend(loc="outside lower center", ncols=len(_MARKS), frameon=False)
    _save(figure, file)


def _end_of(name: str, length: int) -> str:
    """The end of a long name, since paths differ there."""
    return name if len(name) <= length else "…" + name[1 - length :]


def _names(task: Task, truth: list[int], guesses: list[int]) -> list[str]:
    if task.kind == "choice":
        return [f"answer {number + 1}" for number in range(max(truth + guesses) + 1)]
    return [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in task.labels]


def _most_confused(counts: NDArray[np.int64]) -> list[int]:
    """The labels in most mistakes, in the order of the labels, so that the matrix keeps its diagonal."""
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return sorted(np.argsort(-wrong, kind="stable")[:_MOST_LABELS].tolist())


def _write_percent(axes: Any, row: int, column: int, percent: float, size: int) -> None:
    if percent >= 0.5:  # below half a percent, an empty cell reads better than a 0
        colour = "white" if percent > 50 else "black"
        axes.text(column, row, f"{percent:.0f}", ha="center", va="center", color=colour, fontsize=size)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    if figure.get_layout_engine() is None:
        figure.tight_layout()
    # Without the version that matplotlib writes by default, equal pictures are equal files.
    figure.savefig(file, format="png", metadata={"Software": None})
    pyplot.close(figure)
