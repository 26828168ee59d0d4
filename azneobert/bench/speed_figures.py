"""Three pictures of speed, drawn from the tables of docs/results/train.md: no number stands in the code.

Each picture keeps the hash of what it shows, so that a test can find a picture that is older than its table.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from azneobert.bench.result_page import Page, Source, Table, read_page
from azneobert.errors import AzNeoBertError
from azneobert.pictures import Picture, pyplot, save_pictures

_ABLATION = "From the seed project's way to ours"
_PUBLISHED = "What the seed project publishes"
_TWO_GPUS = "Two GPUs"
_STEP_TIME = "Where a micro-step of 48 full rows goes"
_RATE = "tokens/s"
_ROWS_OF = re.compile(r"rows of ([0-9][0-9,]*)")
_OURS, _THEIRS = "tab:blue", "tab:orange"
_DPI = 120


@dataclass(frozen=True)
class Bar:
    """A row of a table."""

    label: str
    value: float


@dataclass(frozen=True)
class Gain:
    """The gain of one change in tokens a second, in percent: here, and as published elsewhere."""

    change: str
    row: str  # the row with the change; the gain is over the row before it
    source: Source
    here: float
    published: float
    said: str  # the published figure as text


@dataclass(frozen=True)
class Ablation:
    """Each variant's tokens/s, in thousands, and the changes of which the seed project has published percentages."""

    source: Source
    rates: list[Bar]
    gains: list[Gain]

    def draw(self) -> Any:
        """Left: the variants over the first one. Right: the single changes beside the published figures."""
        figure, (left, right) = pyplot().subplots(1, 2, figsize=(13.5, 5.6), dpi=_DPI, layout="constrained")
        self._draw_rates(left)
        self._draw_gains(right)
        return figure

    def _draw_rates(self, axes: Any) -> None:
        first = self.rates[0].value
        times = [bar.value / first for bar in self.rates]
        labels = [f"{time:.2f} x,  {bar.value:.1f} k" for time, bar in zip(times, self.rates, strict=True)]
        _horizontal(axes, [bar.label for bar in self.rates], times, labels, [_OURS] * len(times), room=0.42)
        axes.set(title=f"Each variant over the first\n{self.source}", xlabel="tokens/s, times the first row's")

    def _draw_gains(self, axes: Any) -> None:
        places = range(len(self.gains))
        here = [gain.here for gain in self.gains]
        bars = axes.bar([place - 0.2 for place in places], here, width=0.38, color=_OURS)
        axes.bar_label(bars, [f"{percent:+.0f}%" for percent in here], padding=3)
        bars.set_label("here: the row over the one before it")
        published = [gain.published for gain in self.gains]
        bars = axes.bar([place + 0.2 for place in places], published, width=0.38, color=_THEIRS)
        axes.bar_label(bars, [gain.said for gain in self.gains], padding=3)
        bars.set_label("as published: another code on another machine")
        names = [[gain.change, f"here: {gain.row}", str(gain.source)] for gain in self.gains]
        ticks = ["\n".join(_wrapped(line, 26) for line in lines) for lines in names]
        axes.set_xticks(list(places), ticks, fontsize=9)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title="Single changes beside the\nseed project's own percentages", ylabel="tokens/s gained, %")
        axes.margins(y=0.12)
        axes.set_ylim(top=1.3 * max(0, *here, *published))  # room for the legend
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.legend(loc="upper right", frameon=False)


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of each part of a micro-step."""

    title: str
    source: Source
    parts: list[Bar]

    def draw(self) -> Any:
        """A bar for each part, in the table's order, with its share of the sum."""
        figure, axes = pyplot().subplots(figsize=(11.5, 6.6), dpi=_DPI, layout="constrained")
        times = [part.value for part in self.parts]
        total = sum(times)
        labels = [f"{time:.1f} ms,  {time / total:.1%}" for time in times]
        _horizontal(axes, [part.label for part in self.parts], times, labels, [_OURS] * len(times), wrap=62)
        axes.set(title=f"{self.title}: {total:.1f} ms in kernels\n{self.source}", xlabel="ms")
        return figure


@dataclass(frozen=True)
class Rate:
    """A row that says how long its rows of tokens are."""

    label: str
    length: int
    packed: bool
    rate: float  # thousands of tokens a second
    source: Source


@dataclass(frozen=True)
class Rates:
    """Tokens/s over sequence lengths, full and packed rows, and runs."""

    rates: list[Rate]

    def draw(self) -> Any:
        """A bar for each row, those of one length and filling together, a colour for each run."""
        figure, axes = pyplot().subplots(figsize=(11, 5.6), dpi=_DPI, layout="constrained")
        colours = {source: f"C{number}" for number, source in enumerate(dict.fromkeys(r.source for r in self.rates))}
        places: list[float] = []
        for group, (_, rates) in enumerate(groupby(self.rates, _kind)):
            places += [len(places) + number + 0.7 * group for number, _ in enumerate(rates)]
        _horizontal(
            axes,
            [rate.label for rate in self.rates],
            [rate.rate for rate in self.rates],
            [f"{rate.rate:.1f} k" for rate in self.rates],
            [colours[rate.source] for rate in self.rates],
            places,
            wrap=52,
        )
        for source, colour in colours.items():
            axes.barh([0], [0], color=colour, label=str(source))
        axes.set(title="Tokens a second by sequence length and packing", xlabel="thousand tokens/s of one GPU")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return figure


def pictures_of(page: Page) -> Mapping[str, Picture]:
    """What each picture shows, by the name of its file.

    Raises:
        AzNeoBertError: a table, a column or a number is not there.
    """
    return {
        "speed_ablation.png": ablation(page),
        "step_time.png": step_time(page),
        "tokens_per_second.png": rates(page),
    }


def draw_speed(results: Path, folder: Path) -> list[Path]:
    """Draw the pictures of a page of results into a folder, which is made if need be.

    Raises:
        AzNeoBertError: the page cannot be read, or a table, a column or a number is not there.
    """
    return save_pictures(pictures_of(read_page(results)), folder)


def ablation(page: Page) -> Ablation:
    """The variants from the seed project's way to ours, and the seed project's percentages beside ours."""
    table = page.table(_ABLATION)
    published = page.table(_PUBLISHED)
    here = _gains_over_the_row_before(page, (table, _RATE), (page.table(_TWO_GPUS), "tokens/s of each GPU"))
    gains = []
    for change, row, percent, said in zip(
        published.labels,
        published.texts("the same here"),
        published.numbers("faster", "%"),
        published.texts("faster"),
        strict=True,
    ):
        if row not in here:
            raise AzNeoBertError(
                f"{published.place}, row {change!r}: no row {row!r} stands after another under '## {_ABLATION}' "
                f"or '## {_TWO_GPUS}'; expected the name of one that does"
            )
        gains.append(Gain(change, row, *here[row], percent, said))
    return Ablation(page.source(table), _bars(table, _RATE, "k"), gains)


def step_time(page: Page) -> StepTime:
    """Where the time of a micro-step goes."""
    table = page.table(_STEP_TIME)
    return StepTime(table.heading, page.source(table), _bars(table, "ms"))


def rates(page: Page) -> Rates:
    """Every row of every table of tokens/s that names its rows' length, by length and packing.

    Raises:
        AzNeoBertError: there is none.
    """
    found = [
        Rate(bar.label, int(length[1].replace(",", "")), "packed" in bar.label, bar.value, page.source(table))
        for table in page.tables
        if _RATE in table.columns
        for bar in _bars(table, _RATE, "k")
        if (length := _ROWS_OF.search(bar.label))
    ]
    if not found:
        raise AzNeoBertError(f"{page.file}: no table has {_RATE} of a row such as 'full rows of 1,024'; expected one")
    return Rates(sorted(found, key=_kind))


def _kind(rate: Rate) -> tuple[int, bool]:
    return rate.length, rate.packed


def _gains_over_the_row_before(page: Page, *columns: tuple[Table, str]) -> dict[str, tuple[Source, float]]:
    """The gain of each row over the row before it, in percent, by the row's name."""
    return {
        after.label: (page.source(table), 100 * (after.value / before.value - 1))
        for table, column in columns
        for before, after in pairwise(_bars(table, column, "k"))
    }


def _bars(table: Table, column: str, unit: str = "") -> list[Bar]:
    return [Bar(label, value) for label, value in zip(table.labels, table.numbers(column, unit), strict=True)]


def _horizontal(
    axes: Any,
    names: list[str],
    values: list[float],
    labels: list[str],
    colours: list[str],
    places: list[float] | None = None,
    *,
    wrap: int = 34,
    room: float = 0.25,
) -> None:
    """Bars from the top down, each with its name at its left and its label at its right end.

    wrap: characters of a name on one line; room: for the labels, as a share of the longest bar.
    """
    places = places or [float(number) for number in range(len(names))]
    bars = axes.barh(places, values, color=colours)
    axes.bar_label(bars, labels, padding=4)
    axes.set_yticks(places, [_wrapped(name, wrap) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, (1 + room) * max(values))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _wrapped(text: str, width: int) -> str:
    """Wrap a text into as few lines as the width allows, with lengths as even as possible."""
    wrapped = [
        textwrap.wrap(text, least, break_long_words=False, break_on_hyphens=False) for least in range(1, width + 1)
    ]
    return "\n".join(next(lines for lines in wrapped if len(lines) == len(wrapped[-1])))
