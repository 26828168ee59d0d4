"""The table that a benchmark prints and writes: what was measured, where, by which command, at which commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from rich.table import Column, Table


@dataclass(frozen=True)
class Row:
    """One measurement: its name, the figure with its unit, the bar for the figure, and whether the bar is met."""

    what: str
    figure: str
    bar: str = ""
    met: bool | None = None
    note: str = ""


def as_table(title: str, rows: list[Row]) -> Table:
    """The rows for a terminal."""
    table = Table("what", Column("figure", justify="right"), "bar", "met", title=title)
    for row in rows:
        table.add_row(row.what, row.figure, row.bar, _word(row.met))
    return table


def as_markdown(title: str, rows: list[Row]) -> str:
    """The rows for a file of docs/results, with what anyone needs to run them again."""
    lines = [
        f"# {title}",
        "",
        f"- date {date.today().isoformat()}, commit `{_commit()}`",
        f"- {_machine()}",
        f"- `azneobert {' '.join(sys.argv[1:])}`",
        "",
        "| what | figure | bar | met | note |",
        "|---|---|---|---|---|",
        *map(_line, rows),
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells = [cell.replace("|", r"\|") for cell in (row.what, row.figure, row.bar, _word(row.met), row.note)]
    return f"| {' | '.join(cells)} |"


def _word(met: bool | None) -> str:
    return "" if met is None else "yes" if met else "no"


def _commit() -> str:
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    software = f"Python {platform.python_version()}, torch {torch.__version__}"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join([*gpus, f"{cores} cores of {model}", f"{memory:.0f} GiB of memory", software])
