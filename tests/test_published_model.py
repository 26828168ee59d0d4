"""models/legal is what it says: whole, small, readable by transformers alone, and a model of legal Azerbaijani."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from azneobert.filling import fill_masks

FOLDER = Path(__file__).parents[1] / "models" / "legal"


def test_the_folder_is_whole_and_small() -> None:
    sums = dict(reversed(line.split("  ")) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    files = {file.name for file in FOLDER.iterdir()} - {"SHA256SUMS"}
    assert sums.keys() == files
    for name, expected in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == expected, name
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12e6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Vergi ödəyicisi bəyannaməni [MASK] orqanına təqdim edir.", "vergi"),
        ("Məhkəmənin qərarından [MASK] verilə bilər.", "şikayət"),
    ],
)
def test_it_knows_the_phrases_of_the_law(text: str, word: str) -> None:
    [candidates] = fill_masks(FOLDER, text, 3)
    assert candidates[0][0] == word
    assert candidates[0][1] > 0.5
