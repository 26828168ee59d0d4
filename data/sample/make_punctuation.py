"""Make the labelled task `punctuation/` out of the sample corpus: which mark is hidden between two words?

Training examples come from documents that pretraining trains on, those of the other two splits from documents that it
holds out. Run it from the project's root: `python data/sample/make_punctuation.py`; it always writes the same files.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from azneobert.data.cleaning import CleaningReport, clean
from azneobert.data.sources import open_source
from azneobert.data.tokenizer import MASK
from azneobert.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
LABELS = {".": "nöqtə", ",": "vergül", "": "heç nə"}
SEED = 8  # of 1 to 11, one that leaves validation enough full stops and the test most; no score was looked at
BEFORE, AFTER = 8, 4  # words shown on either side of the hidden place
# Examples of each label; there are no more full stops than these in the held-out documents.
EACH = {"train": 400, "validation": 40, "test": 135}
_WORD = re.compile(r"([^\W\d_]{2,})([.,]?)")
_LOWER = str.maketrans("Iİ", "ıi")

Example = tuple[str, str]


def main(folder: Path) -> None:
    """Write the three splits into a folder."""
    folder.mkdir(exist_ok=True)
    for split, examples in make_splits(load_recipe(ROOT / "recipes" / "sample.yaml")).items():
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in examples]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_splits(recipe: Recipe) -> dict[str, list[Example]]:
    """Equally many examples of each label, drawn at random; no document gives examples to two splits."""
    draw = random.Random(SEED)
    found: dict[str, dict[str, list[Example]]] = {split: defaultdict(list) for split in EACH}
    for text, held_out in documents(recipe):
        # A third of the held-out documents is there to choose settings by.
        split = ("validation" if draw.random() < 1 / 3 else "test") if held_out else "train"
        for example in hidden_marks(text):
            found[split][example[1]].append(example)
    return {split: _balanced(found[split], number, draw) for split, number in EACH.items()}


def documents(recipe: Recipe) -> Iterator[tuple[str, bool]]:
    """The texts of the corpus as the ingest stage leaves them, and whether pretraining holds them out."""
    for collection in recipe.data.order:
        source = recipe.data.sources[collection]
        for records in open_source(source.model_copy(update={"path": str(ROOT / str(source.path))})).read():
            kept = clean(records, recipe.data.cleaning, CleaningReport())
            yield from zip(kept.texts, kept.validation, strict=True)


def hidden_marks(text: str) -> Iterator[Example]:
    """Every place between two words of a line, the mark there hidden, and which it was.

    All is in small letters: a capital would tell that a sentence begins.
    """
    for line in text.split("\n"):
        words = line.split()
        for place in range(2, len(words) - 1):
            match = _WORD.fullmatch(words[place])
            after = words[place + 1]
            if match is None or not after[0].isalnum():
                continue
            if match[2] == "." and not after[0].isupper():  # the full stop of an abbreviation or a number
                continue
            before = [*words[max(0, place - BEFORE) : place], match[1]]
            rest = words[place + 1 : place + 1 + AFTER]
            yield f"{small(' '.join(before))}{MASK} {small(' '.join(rest))}", LABELS[match[2]]


def small(text: str) -> str:
    """A text in small letters, as Azerbaijani has them: I is ı, and İ is i."""
    return text.translate(_LOWER).lower()


def _balanced(by_label: dict[str, list[Example]], number: int, draw: random.Random) -> list[Example]:
    chosen = [example for label in LABELS.values() for example in draw.sample(by_label[label], number)]
    draw.shuffle(chosen)
    return chosen


if __name__ == "__main__":
    main(Path(__file__).with_name("punctuation"))
