"""What a check is asked about, and what it finds."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from azneobert.errors import DataError
from azneobert.layout import Layout
from azneobert.recipe import Recipe

Status = Literal["ok", "warning", "problem"]
OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Finding:
    """One line: the state of something, what was found, what to do about it, and the area it belongs to.

    A problem ends training or loses something; a warning makes it slower or less safe.
    """

    status: Status
    found: str
    remedy: str | None = None
    area: str = ""  # set by who runs the check


Findings = Generator[Finding, None, None]  # when closed, a check removes what it has made


def ok(found: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", found)


def warning(found: str, remedy: str) -> Finding:
    """Slower or less safe than it could be."""
    return Finding("warning", found, remedy)


def problem(found: str, remedy: str) -> Finding:
    """In the way of training."""
    return Finding("problem", found, remedy)


@dataclass(frozen=True)
class Subject:
    """What is examined: this machine for a recipe of this project. The recipe is None if it cannot be read."""

    recipe: Recipe | None

    def outputs(self) -> Path:
        """The nearest existing folder in which the recipe's outputs lie or will be made.

        Raises:
            DataError: something else is in its place.
        """
        return nearest_folder(Layout(self.recipe.name).root if self.recipe else OUTPUTS)


def nearest_folder(path: Path) -> Path:
    """A folder, or the nearest existing folder above it.

    Raises:
        DataError: a file, or a link that leads nowhere, is on the way.
    """
    path = path.absolute()
    while not path.is_dir():
        if os.path.lexists(path):
            what = f"a link to {path.readlink()}, which is no folder" if path.is_symlink() else "no folder"
            raise DataError(f"{path}: is {what}; make that folder, or move {path.name} away")
        path = path.parent
    return path


def size_of(count: float) -> str:
    """A number of bytes as a person reads it, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
