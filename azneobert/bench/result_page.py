"""A page of docs/results, read back: the table of each section, and the card and the commit it was measured with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from azneobert.errors import AzNeoBertError

_COMMIT = re.compile(r"commit `([0-9a-f]{7,40})`")
_CARD = re.compile(r"NVIDIA [A-Z]+[0-9]+")
_NUMBER = re.compile(r"~?([+-]?[0-9][0-9,]*(?:\.[0-9]+)?) ?([^0-9]*)")
_CELLS = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Source:
    """What the figures of a table were measured with."""

    card: str
    commit: str

    def __str__(self) -> str:
        return f"{self.card}, commit {self.commit}"


@dataclass(frozen=True)
class Table:
    """The first table of a section. Cells are without the marks of bold and of code."""

    place: str  # page and heading, for errors
    heading: str
    conditions: str  # what stands between the heading and the table
    columns: list[str]
    rows: list[list[str]]

    @property
    def labels(self) -> list[str]:
        """The first cell of each row: its label."""
        return [row[0] for row in self.rows]

    def texts(self, column: str) -> list[str]:
        """The cells of a column.

        Raises:
            AzNeoBertError: there is no such column.
        """
        if column not in self.columns:
            found = ", ".join(name for name in self.columns if name)
            raise AzNeoBertError(f"{self.place}: no column {column!r}; expected one beside {found}")
        place = self.columns.index(column)
        return [row[place] for row in self.rows]

    def numbers(self, column: str, unit: str = "") -> list[float]:
        """The cells of a column as numbers. Each cell has to name the unit.

        Raises:
            AzNeoBertError: there is no such column, or a cell is something else.
        """
        return [
            self._number(label, column, cell, unit) for label, cell in zip(self.labels, self.texts(column), strict=True)
        ]

    def _number(self, label: str, column: str, cell: str, unit: str) -> float:
        found = _NUMBER.fullmatch(cell)
        if found is None or found[2] != unit:
            example = f"12.3 {unit}".strip()
            raise AzNeoBertError(
                f"{self.place}, row {label!r}: {column} is {cell!r}; expected a number such as {example}"
            )
        return float(found[1].replace(",", ""))


@dataclass(frozen=True)
class Page:
    """A page of results."""

    file: Path
    introduction: str  # what stands before the first section
    tables: list[Table]  # in the page's order; sections without one are left out

    def table(self, heading: str) -> Table:
        """The table of a section.

        Raises:
            AzNeoBertError: there is no such section, or no table in it.
        """
        for table in self.tables:
            if table.heading == heading:
                return table
        raise AzNeoBertError(f"{self.file}: no table under '## {heading}'; expected a section of that name with one")

    def source(self, table: Table) -> Source:
        """The card and the commit that a table's section names first. The card may come from the page's introduction.

        Raises:
            AzNeoBertError: one of them is not named.
        """
        commit = _COMMIT.search(table.conditions)
        if commit is None:
            raise AzNeoBertError(f"{table.place}: names no commit before its table; expected such as commit `3f9b8eb`")
        card = _CARD.search(table.conditions) or _CARD.search(self.introduction)
        if card is None:
            raise AzNeoBertError(f"{table.place}: names no card before its table; expected such as NVIDIA H200")
        return Source(card[0], commit[1])


def read_page(file: Path) -> Page:
    """Read a page of results: its sections of the second level, and the first table of each.

    Raises:
        AzNeoBertError: it cannot be read, or a table's row has more cells than its header, or fewer.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise AzNeoBertError(f"{file}: {why}; use --results with a page such as docs/results/train.md") from None
    introduction, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return Page(file, introduction, [table for section in sections if (table := _table(file, section)) is not None])


def _table(file: Path, section: str) -> Table | None:
    heading, *lines = section.splitlines()
    heading = heading.strip()
    first = next((number for number, line in enumerate(lines) if line.startswith("|")), None)
    if first is None:
        return None
    end = next((number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines))
    place = f"{file}, '## {heading}'"
    header, *rest = [_cells(line) for line in lines[first:end]]
    rows = rest[1:]  # without the line of dashes
    for row in rows:
        if len(row) != len(header):
            raise AzNeoBertError(
                f"{place}, row {row[0]!r}: {len(row)} cells; expected {len(header)}, as its header has"
            )
    return Table(place, heading, "\n".join(lines[:first]), header, rows)


def _cells(line: str) -> list[str]:
    cells = _CELLS.split(line.strip().removeprefix("|").removesuffix("|"))
    return [cell.replace("`", "").replace("**", "").strip() for cell in cells]
