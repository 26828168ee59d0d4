"""The picture of a checkpoint is of its files, and its pieces are those that a rank of ZeRO-2 takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from azneobert.bench.checkpoint_figure import (
    PICTURE,
    WORLD,
    ShownCheckpoint,
    _draw,
    draw_checkpoint,
    read_shown,
    write_tiny_checkpoint,
)
from azneobert.checkpoint.flat import FlatGroup, cut
from azneobert.checkpoint.universal import KINDS, TrainState, read_checkpoint
from azneobert.pictures import HASH, hash_of, pyplot

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def state(checkpoint: Path) -> TrainState:
    return read_checkpoint(checkpoint)[0]  # verified: every hash is right


@pytest.fixture(scope="module")
def shown(checkpoint: Path) -> ShownCheckpoint:
    return read_shown(checkpoint)


def test_every_file_of_the_folder_is_shown_with_its_size(checkpoint: Path, shown: ShownCheckpoint) -> None:
    assert {file.name: file.size for file in shown.files} == {
        file.name: file.stat().st_size for file in checkpoint.iterdir()
    }


def test_the_pieces_are_what_each_rank_holds_and_every_number_is_in_one_of_them(
    state: TrainState, shown: ShownCheckpoint
) -> None:
    for kind in KINDS:
        tensors = getattr(state, kind)
        taken = {name: torch.zeros(tensor.numel()) for name, tensor in tensors.items()}
        for group in shown.groups:
            partitions = [cut(FlatGroup(group.shapes, WORLD), tensors, rank) for rank in range(WORLD)]
            assert {len(partition) for partition in partitions} == {group.partition}
            for piece in group.pieces:
                held = partitions[piece.rank][piece.offset : piece.offset + piece.size]
                part = slice(piece.start, piece.start + piece.size)
                assert held.tolist() == tensors[piece.name].flatten()[part].tolist()
                assert held.all()  # and not the padding, which is zero
                taken[piece.name][part] += 1
        assert all((times == 1).all() for times in taken.values())


def test_one_parameter_lies_on_both_ranks_and_each_group_ends_in_padding(shown: ShownCheckpoint) -> None:
    ranks = {(piece.name, piece.rank) for group in shown.groups for piece in group.pieces}
    names = [name for name, _ in ranks]
    assert {name for name in names if names.count(name) == 2} == {"encoder.blocks.0.gate_up.weight"}
    for group in shown.groups:
        assert sum(piece.size for piece in group.pieces) < WORLD * group.partition


def test_no_text_leaves_the_picture(shown: ShownCheckpoint) -> None:
    figure = _draw(shown)
    figure.tight_layout()
    renderer = figure.canvas.get_renderer()
    texts = [text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels())]
    assert texts
    for text in texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0, text.get_text()
        assert box.x1 <= figure.bbox.width, text.get_text()
    pyplot().close(figure)


def test_the_committed_picture_shows_what_the_code_does_today(shown: ShownCheckpoint, tmp_path: Path) -> None:
    drawn = draw_checkpoint(tmp_path / "drawn")
    assert drawn.name == PICTURE
    for file in (drawn, FIGURES / PICTURE):
        with Image.open(file) as picture:
            assert picture.text[HASH] == hash_of(shown), f"{file}: use `azneobert bench figures`"
