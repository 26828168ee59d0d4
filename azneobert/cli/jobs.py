"""`azneobert jobs`: how the phases stand, here and in SLURM's queue."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from azneobert.cli.console import console
from azneobert.launching.jobs import Standing, standings
from azneobert.printable import printable

_COLUMNS = ("recipe", "phase", "job", "state", "nodes", "step", "tokens/s", "loss", "left", "checkpoint")


def jobs(
    follow: Annotated[bool, typer.Option("--follow", help="Go on until no phase waits or runs.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="With --follow: between two looks.")] = 10.0,
) -> None:
    """Phase, job, state, node, step, tokens/s, loss, time left, checkpoint, and why a job waits."""
    found = standings()
    if not found:
        console.print("no phase runs here, and none was handed to SLURM; `slurm/submit phase1` does that")
        return
    if follow and console.is_terminal:
        with Live(Text(_shown(found)), console=console, auto_refresh=False) as live:
            while any(each.active for each in found):
                time.sleep(seconds)
                found = standings()
                live.update(Text(_shown(found)), refresh=True)
        return
    print(_shown(found), flush=True)
    while follow and any(each.active for each in found):
        time.sleep(seconds)
        found = standings()
        print(_shown(found), flush=True)


def _shown(found: list[Standing]) -> str:
    """The phases as lines in columns. No line is cut or wrapped, even on a narrow terminal."""
    rows = [_COLUMNS, *(_row(each) for each in found)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{each.recipe} {each.phase}, job {each.job}: {each.reason}" for each in found if each.reason]
    return "\n".join(map(printable, lines))


def _row(each: Standing) -> tuple[str, ...]:
    step = "" if each.step is None else f"{each.step:,}"
    return (
        each.recipe,
        each.phase,
        each.job or "-",
        each.state,
        each.nodes,
        f"{step} of {each.steps:,}" if step and each.steps else step,
        "" if each.tokens_per_second is None else f"{each.tokens_per_second:,.0f}",
        "" if each.loss is None else f"{each.loss:.4f}",
        each.left if each.active else "",
        each.checkpoint,
    )
