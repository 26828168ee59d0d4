"""A comparison for a person: as a table on a terminal and in Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from azneobert.files import write_json, write_whole
from azneobert.finetuning.comparison import Comparison, Standing, as_json
from azneobert.finetuning.figures import draw_comparison

RESULTS, TABLE, CSV, PICTURE = "results.json", "results.md", "results.csv", "scores.png"
FILES = (RESULTS, TABLE, CSV, PICTURE)
NOISE = "≈"
_OF_A_ROW = ("tokens_a_word", "tokens_per_second", "parameters")


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a figure or a name, a remark beside it, and whether it is the best."""

    text: str
    remark: str = ""
    best: bool = False


def cells(comparison: Comparison) -> tuple[list[Cell], list[list[Cell]]]:
    """The header and the rows: a model, its scores in percent, their mean, and what it costs."""
    averages = {row.name: comparison.average(row) for row in comparison.rows}
    averaged = any(average is not None for average in averages.values())
    header = [
        Cell("model"),
        *(Cell(task, score) for task, score in comparison.scores.items()),
        *([Cell("average", f"of {len(comparison.scores)} tasks")] if averaged else []),
        Cell("tokens", "a word"),
        Cell("tokens", "a second"),
        Cell("parameters", "million"),
    ]
    rows = []
    for row in comparison.rows:
        average, speed = averages[row.name], row.tokens_per_second
        rows.append(
            [
                Cell(row.name),
                *(_score(row.standings.get(task)) for task in comparison.scores),
                *([Cell(_percent(average))] if average is not None else []),
                Cell(f"{row.tokens_a_word:.2f}"),
                Cell("-" if speed is None else f"{speed:,.0f}"),
                Cell(f"{row.parameters / 1e6:,.1f}"),
            ]
        )
    return header, rows


def legend(comparison: Comparison) -> list[str]:
    """Lines that say what the marks in the table mean, how it was measured, and what is missing in it."""
    seeds = f"{len(comparison.seeds)} seeds" if len(comparison.seeds) > 1 else "one seed, whose chance is not in them"
    return [
        f"Scores in percent on the test split, 95% intervals over {seeds} and test examples. The best mean is bold.",
        f"{NOISE}: inside the noise: the 95% interval of the paired difference to the best holds 0.",
        f"Tokens a second: forward passes over the test splits after the training, on {comparison.device}.",
        *(f"Left out: {task}: {why}" for task, why in comparison.left_out.items()),
    ]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write results.json, results.md, results.csv and scores.png."""
    write_json(folder / RESULTS, as_json(comparison))
    write_whole(folder / TABLE, _markdown(comparison).encode())
    write_whole(folder / CSV, _csv(comparison).encode())
    standings = {row.name: row.standings for row in comparison.rows}
    draw_comparison(comparison.scores, standings, folder / PICTURE)


def _score(standing: Standing | None) -> Cell:
    if standing is None:
        return Cell("-")
    mean = _percent(standing.mean) + (f" {NOISE}" if standing.mark == "noise" else "")
    return Cell(mean, f"{_percent(standing.low)} to {_percent(standing.high)}", best=standing.mark == "best")


def _percent(score: float) -> str:
    return f"{100 * score:.1f}"


def _markdown(comparison: Comparison) -> str:
    header, rows = cells(comparison)
    lines = [
        f"# {comparison.suite}",
        "",
        _line([f"{cell.text} {cell.remark}".strip() for cell in header]),
        _line(["---", *["---:"] * (len(header) - 1)]),
        *(_line([_in_markdown(cell) for cell in row]) for row in rows),
        "",
        *(f"- {line}" for line in legend(comparison)),
    ]
    return "\n".join(lines) + "\n"


def _line(texts: list[str]) -> str:
    escaped = [text.replace("|", "\\|") for text in texts]
    return f"| {' | '.join(escaped)} |"


def _in_markdown(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.remark})" if cell.remark else text


def _csv(comparison: Comparison) -> str:
    """A line for each model and task."""
    columns = ("model", "task", "score", "mean", "low", "high", "mark", "lead", "lead_low", "lead_high", *_OF_A_ROW)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in as_json(comparison)["models"]:
        for task, found in row["tasks"].items():
            lead = (found["lead_of_the_best"] or {}).values()
            figures = (found["mean"], found["low"], found["high"], found["mark"], *(lead or ("", "", "")))
            writer.writerow([row["name"], task, comparison.scores[task], *figures, *(row[key] for key in _OF_A_ROW)])
    return stream.getvalue()
