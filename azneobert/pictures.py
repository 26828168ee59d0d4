"""Pictures as files: drawn without a screen, and equal files for equal pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from azneobert.files import sha256_of_json

HASH = "Drawn-From"  # the keyword under which a picture keeps the hash of what it shows
MEAN_OF = 20  # points of a running mean, by default


class Picture(Protocol):
    """A dataclass with the content of a picture, and a method that draws it."""

    def draw(self) -> Any:
        """A figure of matplotlib's."""


def pyplot() -> Any:
    """`matplotlib.pyplot` with the backend that needs no screen, imported only to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_picture(figure: Any, file: Path, **text: str) -> None:
    """Write a figure as PNG and close it. `text` is kept in the file, as PNG's chunks of text by their keywords."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    # Without the version that matplotlib writes by default, equal pictures are equal files.
    figure.savefig(file, format="png", metadata={"Software": None, **text})
    pyplot().close(figure)


def save_pictures(pictures: Mapping[str, Picture], folder: Path) -> list[Path]:
    """Draw each into a folder, which is made if need be, under its name and with the hash of what it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        save_picture(picture.draw(), folder / name, **{HASH: hash_of(picture)})
    return [folder / name for name in pictures]


def hash_of(picture: Any) -> str:
    """The sha256 of what a picture shows."""
    return sha256_of_json(asdict(picture))


def running_mean(values: list[float], width: int = MEAN_OF) -> list[float]:
    """At each value, the mean of the last `width` values; of fewer at the beginning."""
    import numpy as np

    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means
