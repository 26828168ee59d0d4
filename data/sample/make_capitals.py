"""Make the labelled task `capitals/` out of the sample corpus: which of these words begin with a capital letter?

Training examples come from documents that pretraining trains on, those of the other two splits from documents that it
holds out. Run it from the project's root: `python data/sample/make_capitals.py`; it always writes the same files.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from make_punctuation import ROOT, documents, small

from azneobert.recipe import Recipe, load_recipe

TAGS = {True: "böyük", False: "kiçik"}
SEED = 1
WORDS = 20  # of an example at most: a piece of a line, which may begin and end within a sentence
EACH = {"train": 500, "validation": 50, "test": 130}  # examples
_FEWEST = 6
_WORD = re.compile(r"[^\W\d_]+(?:[-’'][^\W\d_]+)*")

Example = tuple[list[str], list[str]]


def main(folder: Path) -> None:
    """Write the three splits into a folder."""
    folder.mkdir(exist_ok=True)
    for split, examples in make_splits(load_recipe(ROOT / "recipes" / "sample.yaml")).items():
        records = [{"tokens": " ".join(words), "tags": " ".join(tags)} for words, tags in examples]
        lines = [f"{json.dumps(record, ensure_ascii=False)}\n" for record in records]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def make_splits(recipe: Recipe) -> dict[str, list[Example]]:
    """Examples that are drawn at random; no document gives examples to two splits."""
    draw = random.Random(SEED)
    found: dict[str, list[Example]] = {split: [] for split in EACH}
    for text, held_out in documents(recipe):
        # A third of the held-out documents is there to choose settings by.
        split = ("validation" if draw.random() < 1 / 3 else "test") if held_out else "train"
        found[split] += pieces(text)
    return {split: draw.sample(found[split], number) for split, number in EACH.items()}


def pieces(text: str) -> Iterator[Example]:
    """The words of each line in pieces, all in small letters and without marks, and which of them had a capital."""
    for line in text.split("\n"):
        words = _WORD.findall(line)
        for start in range(0, len(words), WORDS):
            piece = words[start : start + WORDS]
            if len(piece) >= _FEWEST:
                yield [small(word) for word in piece], [TAGS[word[0].isupper()] for word in piece]


if __name__ == "__main__":
    main(Path(__file__).with_name("capitals"))
