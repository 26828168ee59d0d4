"""The splits of a task: the file of each, the splits that are made, and examples that stand in two splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from azneobert.data.local_files import file_format
from azneobert.errors import DataError
from azneobert.files import sha256_of_json
from azneobert.finetuning.quoting import listed
from azneobert.finetuning.tables import formats, readable
from azneobert.finetuning.task import Example
from azneobert.task_settings import SPLITS, Split, Splits, TaskFiles

_USUAL: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}

Found = TypeVar("Found")


def split_files(settings: TaskFiles) -> dict[Split, Path]:
    """The file of each split of a task. In a folder, names decide; a single file is for training.

    Raises:
        DataError: nothing is there, there is no file for training or for a split that the settings name, or there are
            two for one split.
    """
    path = Path(settings.path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected a folder with a file a split, or one file")
    if not path.is_dir():
        if named := settings.splits.model_dump(exclude_none=True):
            raise DataError(f"{path}: is one file, but `splits` names {listed(named)}; use the folder as `path`")
        return {"train": path}
    visible = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    files = [(file.name.partition(".")[0], file) for file in visible if file_format(file, formats(settings.kind))]
    expected = f"its file as {readable(settings.kind)}"
    return by_split(files, settings.splits, str(path), listed(file.name for file in visible), expected)


def by_split(
    named: Sequence[tuple[str, Found]], splits: Splits, place: str, found: str, expected: str
) -> dict[Split, Found]:
    """The item of each split, chosen by name, in the order of the splits; `found` and `expected` are for messages.

    Raises:
        DataError: there is nothing for training, or for a name that `splits` has, or two things for one split.
    """
    asked = splits.model_dump(exclude_none=True)
    belongs: dict[Split, Found] = {}
    for split in SPLITS:
        # A name that the settings give to one split does not count as the usual name of another.
        usual = [name for name in _USUAL[split] if name not in asked.values()]
        names = [asked[split]] if split in asked else usual
        fitting = [(name, one) for name, one in named if name in names]
        if len(fitting) > 1:
            both = listed(str(one) if isinstance(one, Path) else name for name, one in fitting)
            raise DataError(f"{place}: {both} are all for {split}; remove or rename all but one")
        if not fitting and (split == "train" or split in asked):
            called = f" called {asked[split]}" if split in asked else ""
            raise DataError(
                f"{place}: no {split} split{called}, found {found}; expected {expected}, or another name in "
                f"`splits.{split}`"
            )
        if fitting:
            belongs[split] = fitting[0][1]
    if len(set(asked.values())) < len(asked):
        raise DataError(f"{place}: `splits` has {listed(asked.values())}; expected another name for each split")
    return belongs


def with_held_out(
    splits: dict[Split, list[Example]], share: float, name: str
) -> tuple[dict[Split, list[Example]], list[str]]:
    """All three splits. A missing split takes a share of the training examples, by the hash of their content.

    So the split does not depend on the order, and examples of equal content stay together. Returns a note for each.

    Raises:
        DataError: there are too few examples for one of them.
    """
    missing: list[Split] = [split for split in ("test", "validation") if split not in splits]
    made: dict[Split, list[Example]] = {split: [] for split in ("train", *missing)}
    for example in splits["train"]:
        number = int(_place(example) / share)
        made[missing[number] if number < len(missing) else "train"].append(example)
    for split, examples in made.items():
        if not examples:
            raise DataError(
                f"{name}: of {len(splits['train']):,} training examples none is left for {split}, with `held_out` "
                f"{share:g} for {' and '.join(missing)}; use more examples, another `held_out`, or a file for {split}"
            )
    notes = [
        f"no {split} split: {len(made[split]):,} of {len(splits['train']):,} training examples are held out for it"
        for split in missing
    ]
    complete = splits | made
    return {split: complete[split] for split in SPLITS}, notes


def _place(example: Example) -> float:
    """A number in [0, 1) that the content of an example decides."""
    return int(sha256_of_json(example.said)[:13], 16) / 16**13


def repeated(splits: dict[Split, list[Example]]) -> list[str]:
    """Notes on examples that training has twice, and on those that another split has too."""
    train: dict[str, set[object]] = {}
    notes, again, otherwise = [], 0, 0
    for example in splits["train"]:
        before = train.setdefault(sha256_of_json(example.said), set())
        again += bool(before)
        otherwise += bool(before - {example.label})
        before.add(example.label)
    if again:
        another = f", {otherwise:,} of them with another label" if otherwise else ""
        notes.append(f"{again:,} of {len(splits['train']):,} training examples say the same as one before{another}")
    for split in SPLITS[1:]:
        examples = splits[split]
        seen = [(example, train.get(sha256_of_json(example.said), set())) for example in examples]
        same = [example for example, labels in seen if example.label in labels]
        other = [example for example, labels in seen if labels and example.label not in labels]
        if same:
            notes.append(
                f"{len(same):,} of {len(examples):,} {split} examples stand in training too, the first in "
                f"{same[0].where}; their score says less"
            )
        if other:
            notes.append(
                f"{len(other):,} of {len(examples):,} {split} examples stand in training with another label, the first "
                f"in {other[0].where}"
            )
    return notes
