"""Four pictures of a training, from its records alone: loss, tokens/s, where the time went, held-out loss at the ends.

Each picture keeps the hash of what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from azneobert.errors import DataError
from azneobert.history.clock import Account, Seam, account, intervals, seams
from azneobert.history.record import PhaseRecord, read_phases
from azneobert.layout import HELD_OUT_FIGURE, Layout, read_report
from azneobert.pictures import Picture, pyplot, running_mean, save_pictures
from azneobert.recipe import PHASES, PhaseName

_DPI = 120
_LEAST_MEAN = 5  # points of a running mean
_DOTTED = 300  # points of a curve, at most, that each have a dot
_COLOURS: Mapping[PhaseName, str] = {"phase1": "tab:blue", "phase2": "tab:orange"}
# Seven colours and three styles: 21 kinds of seam before two look alike.
_SEAM_COLOURS = ("tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan", "tab:green")
_SEAM_STYLES = ("--", ":", "-.")
_TIMES = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
_SHORT = {"seconds": "s", "minutes": "min", "hours": "h", "days": "d"}
_COUNTS = {"": 1, "thousand ": 1e3, "million ": 1e6, "billion ": 1e9}


@dataclass(frozen=True)
class Mark:
    """A seam on an axis."""

    place: float
    what: str


@dataclass(frozen=True)
class Curve:
    """A phase's losses, of training (as logged) and held out, against the tokens trained on since the first phase."""

    phase: PhaseName
    training: list[tuple[float, float]]
    held_out: list[tuple[float, float]]
    end: float


@dataclass(frozen=True)
class Losses:
    """Phases one after the other. A seam stands at the tokens of the step before it."""

    curves: list[Curve]
    seams: list[Mark]

    def draw(self) -> Any:
        """One axis of tokens. The loss axis is logarithmic if the high losses at the start would flatten the rest."""
        figure, axes = pyplot().subplots(figsize=(11, 5.5), dpi=_DPI, layout="constrained")
        unit, size = _unit(max(curve.end for curve in self.curves), _COUNTS)
        for curve in self.curves:
            places, losses = [tokens / size for tokens, _ in curve.training], [loss for _, loss in curve.training]
            colour = _COLOURS[curve.phase]
            axes.plot(places, losses, color=colour, alpha=0.25, linewidth=0.8, label=f"{curve.phase}, training")
            width = max(_LEAST_MEAN, len(losses) // 100)  # with few points, a wide mean lags far behind
            label = f"{curve.phase}, training (mean of {width} points)"
            axes.plot(places, running_mean(losses, width), color=colour, label=label)
            held_out = [(tokens / size, loss) for tokens, loss in curve.held_out]
            if held_out:
                label = f"{curve.phase}, held out"
                axes.plot(*zip(*held_out, strict=True), "o-", color="black", mfc=colour, ms=4, lw=0.8, label=label)
        for curve, following in pairwise(self.curves):
            axes.axvline(
                curve.end / size, color="black", lw=1.2, label=f"end of {curve.phase}, {following.phase} begins"
            )
        _draw_seams(axes, self.seams, size)
        self._scale(axes)
        axes.set(xlabel=f"{unit}tokens trained on", ylabel="masked cross-entropy (nats)", title="Loss")
        _finish(figure, axes)
        return figure

    def _scale(self, axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

        losses = [loss for curve in self.curves for _, loss in curve.training + curve.held_out]
        if min(losses) > 0 and max(losses) > 2 * min(losses):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(MaxNLocator(10))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(ScalarFormatter())


@dataclass(frozen=True)
class Stretch:
    """Points between which the run went on: (seconds since the first point of all, tokens/s)."""

    phase: PhaseName
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Rates:
    """Logged tokens/s of all ranks over time; the gaps in which nothing ran; and the seams.

    Times are seconds since the first point of all. A seam stands at the first point after it.
    """

    stretches: list[Stretch]
    gaps: list[tuple[float, float]]
    seams: list[Mark]

    def draw(self) -> Any:
        """One axis of time, on which a gap is as wide as it was long."""
        figure, axes = pyplot().subplots(figsize=(11, 5), dpi=_DPI, layout="constrained")
        ends = [seconds for stretch in self.stretches for seconds, _ in stretch.points]
        unit, size = _unit(max(ends) - min(ends), _TIMES)
        highest = max(rate for stretch in self.stretches for _, rate in stretch.points)
        count, tokens = _unit(highest, _COUNTS)
        said: set[str] = set()
        for stretch in self.stretches:
            label: str = "" if stretch.phase in said else stretch.phase
            said.add(stretch.phase)
            places, rates = zip(*[(seconds / size, rate / tokens) for seconds, rate in stretch.points], strict=True)
            style = ".-" if len(ends) <= _DOTTED else "-"
            axes.plot(places, rates, style, color=_COLOURS[stretch.phase], ms=3, lw=1, label=label)
        for number, (start, end) in enumerate(self.gaps):
            label = "" if number else f"no step: {_duration(sum(end - start for start, end in self.gaps))} in all"
            axes.axvspan(start / size, end / size, color="0.88", lw=0, label=label)
        _draw_seams(axes, self.seams, size)
        axes.set(xlabel=f"{unit} since the first point", ylabel=f"{count}tokens/s, all ranks", title="Tokens a second")
        axes.set_ylim(0, 1.1 * highest / tokens)
        _finish(figure, axes)
        return figure


@dataclass(frozen=True)
class Times:
    """Where the time of each phase went: azneobert/history/clock.py says how that is computed."""

    accounts: list[Account]

    def draw(self) -> Any:
        """Three bars a phase, from the top down, with their seconds and their share of the phase's clock."""
        height = 1.4 + 1.5 * len(self.accounts)
        figure, axes = pyplot().subplots(figsize=(10, height), dpi=_DPI, layout="constrained")
        unit, size = _unit(max(each.clock for each in self.accounts), _TIMES)
        names, places, widths, labels, colours = [], [], [], [], []
        for number, each in enumerate(self.accounts):
            parts = {
                "training": each.training,
                "evaluation and saving": each.evaluation_and_saving,
                "stopped, starting, steps made anew": each.stopped,
            }
            for place, (name, seconds) in enumerate(parts.items()):
                names.append(f"{each.phase}: {name}")
                places.append(4 * number + place)
                widths.append(seconds / size)
                labels.append(f"{_duration(seconds)},  {seconds / each.clock:.1%}" if each.clock else "0")
                colours.append(_COLOURS[each.phase])
        axes.bar_label(axes.barh(places, widths, color=colours), labels, padding=4)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * max(widths) or 1)
        clocks = ", ".join(f"{each.phase} {_duration(each.clock)}" for each in self.accounts)
        axes.set(xlabel=unit, title=f"Where the time went, from the first point to the last\n{clocks}")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        return figure


@dataclass(frozen=True)
class HeldOut:
    """Held-out losses at the end of each phase, in nats: by collection, and by a token's place in its document.

    same_rows: whether the phases were evaluated on the same rows, with the same masks.
    """

    collections: dict[PhaseName, dict[str, float]]
    lengths: dict[PhaseName, dict[str, float]]
    same_rows: bool

    def draw(self) -> Any:
        """Bars side by side, a colour for each phase."""
        most = max(len(losses) for losses in self.collections.values())
        size = (max(10, 6 + 0.8 * most), 5)
        figure, both = pyplot().subplots(
            1, 2, figsize=size, dpi=_DPI, layout="constrained", sharey=True, width_ratios=[max(4, most), 5]
        )
        for axes, figures, title in (
            (both[0], self.collections, "by collection"),
            (both[1], self.lengths, "by position in the document"),
        ):
            _side_by_side(axes, figures)
            axes.set(title=title)
        both[0].set(ylabel="masked cross-entropy (nats)")
        others = "" if self.same_rows else "; each phase on held-out rows of its own length"
        figure.suptitle(f"Held-out loss at the end of each phase{others}")
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        return figure


@dataclass(frozen=True)
class Drawn:
    """The pictures' files, the records that they show, and a line for each thing that was missing."""

    files: list[Path]
    phases: list[PhaseRecord]
    missing: list[str]


def draw_history(layout: Layout, folder: Path) -> Drawn:
    """Draw what the phases of a recipe have recorded. Without any evaluation report, held_out.png is left out.

    Raises:
        AzNeoBertError: nothing is recorded, or a record is damaged.
    """
    phases = read_phases(layout)
    pictures: dict[str, Picture] = {"loss.png": losses(phases), "rate.png": rates(phases), "time.png": times(phases)}
    reports, missing = _reports(layout)
    if reports:
        pictures["held_out.png"] = held_out(reports)
    return Drawn(save_pictures(pictures, folder), phases, missing)


def losses(phases: list[PhaseRecord]) -> Losses:
    """The loss of each phase and its seams, one phase behind the other."""
    curves, marks, before = [], [], 0.0
    for record in phases:
        training = [(before + point.tokens, point.loss) for point in record.training if point.loss is not None]
        evaluated = [(before + point.tokens, point.loss) for point in record.held_out]
        marks += [Mark(before + seam.tokens, seam.what) for seam in seams(record)]
        before += record.training[-1].tokens
        curves.append(Curve(record.phase, training, evaluated, before))
    return Losses(curves, marks)


def rates(phases: list[PhaseRecord]) -> Rates:
    """Tokens/s by the clock; a curve ends where a run stopped."""
    first = min(record.points[0].seconds for record in phases)
    stretches, gaps, marks = [], [], []
    for record in phases:
        stops = [part for part in intervals(record) if part.stopped]
        bounds = [part.end for part in stops]
        gaps += [(part.start - first, part.start + part.stopped - first) for part in stops]
        marks += [Mark(seam.seconds - first, seam.what) for seam in seams(record)]
        for start, end in pairwise([float("-inf"), *bounds, float("inf")]):
            points = [(p.seconds - first, p.rate) for p in record.training if start <= p.seconds < end]
            if points:
                stretches.append(Stretch(record.phase, points))
    for record, following in pairwise(phases):
        end, start = record.points[-1].seconds, following.points[0].seconds
        if start > end:
            gaps.append((end - first, start - first))
    return Rates(stretches, sorted(gaps), marks)


def times(phases: list[PhaseRecord]) -> Times:
    """Where the time of each phase went."""
    return Times([account(record) for record in phases])


def held_out(reports: Mapping[PhaseName, Mapping[str, Any]]) -> HeldOut:
    """What the evaluations' reports say of each collection and length."""
    rows = {report.get(HELD_OUT_FIGURE) for report in reports.values()}
    return HeldOut(
        collections={phase: _under("eval/loss/", report) for phase, report in reports.items()},
        lengths={phase: _under("eval/loss_by_length/", report) for phase, report in reports.items()},
        same_rows=len(rows) == 1,
    )


def all_seams(phases: list[PhaseRecord]) -> list[Seam]:
    """The seams of every phase, in order."""
    return [seam for record in phases for seam in seams(record)]


def _reports(layout: Layout) -> tuple[dict[PhaseName, dict[str, Any]], list[str]]:
    reports, missing = {}, []
    for phase in PHASES:
        try:
            reports[phase] = read_report(layout.report(f"evaluate/{phase}"))
        except DataError as error:
            missing.append(str(error))
    return reports, missing


def _under(prefix: str, report: Mapping[str, Any]) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in report.items() if key.startswith(prefix)}


def _side_by_side(axes: Any, figures: Mapping[PhaseName, Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for each in figures.values() for name in each))
    width = 0.8 / len(figures)
    for number, (phase, each) in enumerate(figures.items()):
        places = [names.index(name) + (number - (len(figures) - 1) / 2) * width for name in each]
        bars = axes.bar(places, list(each.values()), width=width, color=_COLOURS[phase], label=f"end of {phase}")
        axes.bar_label(bars, [f"{loss:.2f}" for loss in each.values()], padding=2, fontsize=7, rotation=90)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, max(2, len(names) - 1) + 0.6)
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_seams(axes: Any, marks: list[Mark], size: float) -> None:
    """Draw a thin line for each seam. The legend names each change once, with its count."""
    for number, what in enumerate(dict.fromkeys(mark.what for mark in marks)):
        places = [mark.place / size for mark in marks if mark.what == what]
        colour, style = _SEAM_COLOURS[number % len(_SEAM_COLOURS)], _SEAM_STYLES[number % len(_SEAM_STYLES)]
        for place in places:
            axes.axvline(place, color=colour, linestyle=style, linewidth=0.9)
        times_said = f", {len(places)} times" if len(places) > 1 else ""
        axes.plot([], [], color=colour, linestyle=style, linewidth=0.9, label=f"seam: {what}{times_said}")


def _finish(figure: Any, axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _unit(largest: float, units: Mapping[str, float]) -> tuple[str, float]:
    """The largest unit that fits twice or more into `largest`, or else the first unit."""
    fitting = [(name, size) for name, size in units.items() if largest >= 2 * size]
    return fitting[-1] if fitting else next(iter(units.items()))


def _duration(seconds: float) -> str:
    unit, size = _unit(seconds, _TIMES)
    return f"{seconds / size:,.1f} {_SHORT[unit]}"
