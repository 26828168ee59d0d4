"""The pictures that explain are of what the code does: the committed ones are those that it draws today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from azneobert.bench.explanations import _LENGTHS, _ROW, draw_explanations, masked_positions, shown, windows_of
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.data.stream import Stream
from azneobert.pictures import HASH, hash_of

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    write_small_corpus(tmp_path, 512, _ROW, lengths=np.asarray(_LENGTHS))
    return open_small_corpus(tmp_path)


def test_each_document_is_drawn_whole_and_no_row_is_longer_than_it_is(stream: Stream) -> None:
    rows = windows_of(stream)
    windows = [window for row in rows for window in row]
    drawn = [sum(w.length - 2 for w in windows if w.document == number) for number in range(len(_LENGTHS))]
    assert drawn == list(_LENGTHS)
    for row in rows:
        assert sum(window.length for window in row) <= _ROW
        assert [window.first for window in row] == [sum(w.length for w in row[:number]) for number in range(len(row))]


def test_two_epochs_mask_other_positions_of_the_same_rows(stream: Stream) -> None:
    rows = stream.row_numbers(np.arange(2 * len(stream), dtype=np.uint64)).tolist()
    assert sorted(rows[: len(stream)]) == sorted(rows[len(stream) :]) == list(range(len(stream)))
    masks = [(row, tuple(masked_positions(stream, sample))) for sample, row in enumerate(rows)]
    assert len(set(masks)) == len(masks)


def test_the_committed_pictures_show_what_the_code_does_today(stream: Stream, tmp_path: Path) -> None:
    today = hash_of(shown(stream))
    drawn = [file.name for file in draw_explanations(tmp_path / "drawn")]
    assert drawn == ["packing.png", "samples.png"]
    for file in (folder / name for folder in (tmp_path / "drawn", FIGURES) for name in drawn):
        with Image.open(file) as picture:
            assert picture.text[HASH] == today, f"{file}: use `azneobert bench figures`"
