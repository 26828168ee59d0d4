"""Pictures that explain, drawn from what the code does with a small corpus: how rows are packed, what a sample is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.data.stream import Stream
from azneobert.pictures import HASH, hash_of, pyplot, save_picture

_LENGTHS = (70, 41, 19, 19, 16, 13, 6, 3, 3, 3)  # of the documents, in tokens
_ROW = 32
_DPI = 120


@dataclass(frozen=True)
class Window:
    """A piece of a document in a row, frame included: `first` is its first position in the row."""

    document: int
    first: int
    length: int


@dataclass(frozen=True)
class Shown:
    """Windows by row; row and masked positions by sample."""

    windows: list[list[Window]]
    rows: list[int]
    masked: list[list[int]]


def draw_explanations(folder: Path) -> Iterator[Path]:
    """Write packing.png and samples.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_small_corpus(Path(scratch), 512, _ROW, lengths=np.asarray(_LENGTHS))
        stream = open_small_corpus(Path(scratch))
        drawn_from = {HASH: hash_of(shown(stream))}
        for name, figure in (("packing.png", _draw_packing(stream)), ("samples.png", _draw_samples(stream))):
            save_picture(figure, folder / name, **drawn_from)
            yield folder / name


def shown(stream: Stream) -> Shown:
    """What the pictures of a stream show, over two epochs."""
    samples = range(2 * len(stream))
    rows = stream.row_numbers(np.asarray(samples, dtype=np.uint64)).tolist()
    return Shown(windows_of(stream), rows, [masked_positions(stream, sample) for sample in samples])


def windows_of(stream: Stream) -> list[list[Window]]:
    """The windows of each row of a stream's plan, each framed by two more tokens."""
    plan = stream.plan
    ends = np.cumsum(_LENGTHS)
    rows = []
    for first, last in zip(plan.row_offsets[:-1], plan.row_offsets[1:], strict=True):
        place, row = 0, []
        for number in range(int(first), int(last)):
            length = int(plan.length[number]) + 2
            row.append(Window(int(np.searchsorted(ends, plan.start[number], side="right")), place, length))
            place += length
        rows.append(row)
    return rows


def masked_positions(stream: Stream, sample: int) -> list[int]:
    """Which positions of its row a sample masks, ascending."""
    return sorted(int(position) for position in stream.batch(sample, 1).masked_indices)


def _draw_packing(stream: Stream) -> Any:
    plt = pyplot()
    rows = windows_of(stream)
    colours = plt.get_cmap("tab20").colors
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5.2), dpi=_DPI, height_ratios=[1, 2])
    place = 0
    for document, length in enumerate(_LENGTHS):
        _block(above, place, 0, length, colours[document], f"{length}")
        place += length + 2
    bare(above, place, 1, f"{len(_LENGTHS)} documents, with their tokens")
    for number, row in enumerate(rows):
        for window in row:
            _block(below, window.first, number, window.length, colours[window.document], f"{window.length - 2}+2")
        left = _ROW - sum(window.length for window in row)
        if left:
            below.barh(number, left, left=_ROW - left, height=0.8, color="white", edgecolor="gray", hatch="////")
    title = f"{len(rows)} rows of {_ROW}: each window has two tokens more, [CLS] and [SEP]; hatched is padding"
    bare(below, _ROW, len(rows), title)
    below.set_yticks(range(len(rows)), [f"row {number}" for number in range(len(rows))])
    return figure


def _draw_samples(stream: Stream) -> Any:
    plt = pyplot()
    count = 2 * len(stream)
    chosen = stream.row_numbers(np.arange(count, dtype=np.uint64))
    figure, axes = plt.subplots(figsize=(9, 0.36 * count + 1.2), dpi=_DPI)
    for sample in range(count):
        for position, masked in enumerate(np.isin(range(_ROW), masked_positions(stream, sample))):
            axes.barh(sample, 0.86, left=position + 0.07, height=0.74, color="tab:orange" if masked else "lightgray")
        axes.text(
            -0.6,
            sample,
            f"sample {sample}: epoch {sample // len(stream)}, row {chosen[sample]}",
            ha="right",
            va="center",
        )
    axes.axhline(len(stream) - 0.5, color="black", linewidth=0.8)
    bare(axes, _ROW, count, f"Each sample is a row and its masked positions (orange), {stream.masks_per_row} of {_ROW}")
    axes.set_yticks([])
    return figure


def _block(axes: Any, left: float, number: float, width: float, colour: Any, text: str) -> None:
    axes.barh(number, width, left=left, height=0.8, color=colour, edgecolor="black", linewidth=0.6)
    if width >= 3:
        axes.text(left + width / 2, number, text, ha="center", va="center", fontsize=8)


def bare(axes: Any, width: float, rows: int, title: str) -> None:
    """Give axes a title and room for `rows` rows of this width, and remove their frame and ticks."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlim(0, width)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
