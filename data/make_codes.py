"""Make the labelled task `codes` out of the recipe `legal`: which code of law does this text come from?

All examples come from legislation that pretraining holds out, by the recipe's own split, so that no model of the recipe
has seen one of their documents. What tells a code without being understood is taken away: the names of codes, all
numbers (only the longest codes have an Article 1,000), quotation marks and the bullets that one converter has left.

Run it from the project's root, with the collection in data/legal: `python data/make_codes.py`; it always writes the
same files. They go where the collection is, which git ignores: its licences do not let the project hold its texts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from azneobert.data.cleaning import CleaningReport, clean, is_validation
from azneobert.data.sources import open_source
from azneobert.recipe import Recipe, load_recipe
from azneobert.task_settings import SPLITS, Split

ROOT = Path(__file__).parents[1]
COLLECTION = "e_qanun"
CHARACTERS = 1200  # of a text at most: about 240 tokens of the recipe's tokenizer
FEWEST = 8  # documents of a code; of one with fewer, a split would hold one or none
TEST, VALIDATION = 0.3, 0.15  # shares of the documents
NAMES = (
    "ailə",
    "cəzaların icrası",
    "cinayət",
    "cinayət prosessual",
    "əmək",
    "gömrük",
    "inzibati prosessual",
    "inzibati xətalar",
    "mənzil",
    "meşə",
    "miqrasiya",
    "mülki",
    "mülki prosessual",
    "rəqabət",
    "seçki",
    "su",
    "şəhərsalma və tikinti",
    "ticarət gəmiçiliyi",
    "torpaq",
    "vergi",
)
_SOURCE = re.compile(r"[^:]+:(?:.*/)?-?(?P<stem>[^/]+)\.\w+#\d+")  # NAME:pdfs/labor_law_code.pdf#12
_NUMBER = re.compile(r"\d(?:[\s.–-]*\d)*")
_MARKS = re.compile(r"[“”«»\"'‘’]|^- ?", re.MULTILINE)
_ANY_I = str.maketrans(dict.fromkeys("iı", "[iıİI]"))  # which re.IGNORECASE does not tell as Azerbaijani does
_BETWEEN = r"[\s-]+"
_NAME = re.compile(
    rf"\b(?:{'|'.join(name.translate(_ANY_I).replace(' ', _BETWEEN) for name in NAMES)}){_BETWEEN}(?=məcəllə)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Example:
    """A text, the code that it comes from, and the split that the hash of its whole document puts it into."""

    text: str
    label: str
    split: Split


def main(folder: Path, recipe: Recipe) -> None:
    """Write the three splits into a folder, and say how many examples of each code they hold."""
    examples, left_out = make_examples(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        records = [{"text": one.text, "label": one.label} for one in examples if one.split == split]
        lines = [f"{json.dumps(record, ensure_ascii=False)}\n" for record in records]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = Counter((one.label, one.split) for one in examples)
    for label in sorted({one.label for one in examples}):
        print(f"{label}: {', '.join(f'{counts[label, split]} {split}' for split in SPLITS)}")
    print(f"{len(examples)} examples; left out with fewer than {FEWEST} documents: {left_out or 'none'}")


def make_examples(recipe: Recipe) -> tuple[list[Example], dict[str, int]]:
    """The examples in the order of the collection; the codes with too few held-out documents, and how many."""
    found = list(held_out_codes(recipe))
    counts = Counter(label for label, _, _ in found)
    few = {label: number for label, number in counts.most_common() if number < FEWEST}
    return [Example(shown(text), label, split_of(digest)) for label, text, digest in found if label not in few], few


def held_out_codes(recipe: Recipe) -> Iterator[tuple[str, str, bytes]]:
    """The code, the cleaned text and the hash of every document of a code that pretraining holds out."""
    # A document's source says which code it is from; the id that the recipe reads does not.
    source = recipe.data.files[COLLECTION].model_copy(update={"id_field": "source"})
    for records in open_source(source).read():
        kept = clean(records, recipe.data.cleaning, CleaningReport())
        for place, text, digest, held_out in zip(kept.ids, kept.texts, kept.hashes, kept.validation, strict=True):
            if held_out and (match := _SOURCE.fullmatch(place)):
                yield match["stem"], text, digest


def split_of(digest: bytes) -> Split:
    """The split of a document: that of pretraining looks at the first half of the hash, this one at the second."""
    rest = digest[8:]
    if is_validation(rest, TEST):
        return "test"
    return "validation" if is_validation(rest, TEST + VALIDATION) else "train"


def shown(text: str) -> str:
    """The beginning of a text, up to the end of a word, without what names its code."""
    text = _NUMBER.sub("0", _MARKS.sub("", _NAME.sub("", text)))
    return text if len(text) <= CHARACTERS else text[: CHARACTERS + 1].rsplit(maxsplit=1)[0]


if __name__ == "__main__":
    main(ROOT / "data" / "legal" / "tasks" / "codes", load_recipe(ROOT / "recipes" / "legal.yaml"))
