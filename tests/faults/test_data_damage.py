"""Data damaged on disk, before a run and under it: one line that names the file, and nothing saved of such steps."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy import ENDLESS, Overrides, Toy, outcome, run_ranks, start_ranks, train_rank

from azneobert.errors import DataError
from azneobert.training.inputs import open_streams, verify_data

SEED = 19


@pytest.fixture
def toy(make_toy: Callable[[Overrides | None], Toy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A toy run with a corpus of its own."""
    monkeypatch.setenv("AZNEOBERT_CACHE", str(tmp_path / "cache"))
    made = make_toy(None)
    return made.with_(corpus=Path(shutil.copytree(made.corpus, tmp_path / "corpus")))


def read_by_phase1(toy: Toy) -> list[Path]:
    """Every file that phase 1 reads."""
    return sorted(
        [toy.corpus / "tokenizer.json", *(toy.corpus / "tokens").rglob("*.*"), *(toy.corpus / "rows/32").rglob("*.*")]
    )


def flip(file: Path, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        [byte] = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))


def test_no_flip_in_any_file_that_training_reads_goes_by_in_silence(toy: Toy) -> None:
    """What a run does before its first save: it opens the data, and reads all of them in the background."""
    dice, silent = random.Random(SEED), []
    inputs = toy.inputs()
    files = read_by_phase1(toy)
    assert len(files) > 60
    for number in range(400):
        file = files[number % len(files)]
        bit = dice.randrange(8 * file.stat().st_size)
        whole = file.read_bytes()
        flip(file, bit)
        said = ""
        try:
            open_streams(inputs)
            verify_data(inputs).require()
        except DataError as error:
            said = str(error)
        same = file.suffix == ".json" and file.read_bytes().split() == whole.split()
        header = file.suffix == ".npy" and bit < 128 * 8  # its padding; what counts in it is checked when it is opened
        if (not said and not same and not (header and file.name not in ("tokens.npy", "offsets.npy"))) or "\n" in said:
            silent.append((file, bit, said))
        file.write_bytes(whole)
    assert silent == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_flip_under_a_run_stops_it_at_its_first_save_with_nothing_saved(toy: Toy, processes: int) -> None:
    store = toy.corpus / "tokens" / "wikipedia" / "train" / "tokens.npy"
    flip(store, 8 * 300 + 1)  # a token of the vocabulary, and another one: no check of a batch can know
    with pytest.raises(DataError, match="a byte has changed") as caught:
        run_ranks(train_rank, toy.inputs(), processes=processes, folder=toy.folder)
    assert str(store) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert toy.checkpoints().steps() == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["tokens/wikipedia/train/tokens.npy", "rows/32/train/length.npy"])
def test_a_file_that_is_cut_under_a_run_is_one_line_and_no_sigbus(toy: Toy, name: str, workers: int) -> None:
    endless = toy.with_({**ENDLESS, "runtime": {**ENDLESS["runtime"], "workers": workers}})
    [(child, connection)] = start_ranks(train_rank, endless.inputs(), folder=toy.folder)
    endless.wait_for_points(child, 3)
    os.truncate(toy.corpus / name, 128)
    error = outcome(child, connection)
    assert isinstance(error, DataError), error
    assert str(toy.corpus / name) in str(error)
    assert "it has become shorter" in str(error)
    assert "\n" not in str(error)


def test_tokens_beyond_the_vocabulary_under_a_run_are_one_line(toy: Toy) -> None:
    endless = toy.with_(ENDLESS)
    [(child, connection)] = start_ranks(train_rank, endless.inputs(), folder=toy.folder)
    endless.wait_for_points(child, 3)
    file = toy.corpus / "tokens/wikipedia/train/tokens.npy"
    tokens = np.load(file, mmap_mode="r+")
    tokens[:] = 70_000
    tokens.flush()
    error = outcome(child, connection)
    assert isinstance(error, DataError), error
    assert f"{file}: token 70000 at " in str(error)


def test_reading_everything_again_is_spared_a_run_that_is_requeued(toy: Toy, tmp_path: Path) -> None:
    big = tmp_path / "big.npy"
    np.save(big, np.zeros(40 << 20, np.int8))
    from azneobert.data.integrity import Expected, _check_once_a_day
    from azneobert.files import sha256_file

    expected = Expected((big,), sha256_file(big), lambda: sha256_file(big), "make it anew")
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        _check_once_a_day(expected)
        seconds.append(time.monotonic() - began)
    assert seconds[1] < seconds[0] / 3
