"""Read labelled tasks from local files and from the hub, and check them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from azneobert.errors import DataError
from azneobert.finetuning.examples import label_of, unlabelled
from azneobert.finetuning.hub_splits import hub_splits
from azneobert.finetuning.labels import Labelled, labels_of, numbered, read_as_bio
from azneobert.finetuning.quoting import listed
from azneobert.finetuning.splits import repeated, split_files, with_held_out
from azneobert.finetuning.tables import Row, rows
from azneobert.finetuning.task import Example, Task
from azneobert.task_settings import AnyTask, TaskFiles, TaskSettings


def read_task(name: str, settings: AnyTask) -> Task:
    """Read and check all splits of a task. Missing splits are made from training examples.

    Raises:
        DataError: a split is missing, empty or damaged, or a row is not an example. The message, of one line, says
            which, what was found there, and what is expected.
    """
    known = settings.labels
    if isinstance(settings, TaskFiles):
        files = split_files(settings)
        found = {split: (str(file), rows(file, settings)) for split, file in files.items()}
    else:
        found, names = hub_splits(settings)
        known = known or names
    read = {split: list(_labelled(place, table, settings, known)) for split, (place, table) in found.items()}
    labels, notes = list[str](), list[str]()
    if settings.kind == "tokens":
        read, notes = read_as_bio(read)
    if settings.kind in ("classification", "pairs", "tokens"):
        labels = labels_of(read, known)
    splits = {split: numbered(examples, labels) for split, examples in read.items()}
    if settings.kind == "regression":
        check_pairs([example for examples in splits.values() for example in examples], settings)
    splits, held_out = with_held_out(splits, settings.held_out, name)
    notes += [*held_out, *_without_training(labels, splits["train"]), *repeated(splits)]
    return Task(name, settings.kind, labels, splits, notes)


def _labelled(
    place: str, table: Iterable[Row], settings: TaskSettings, labels: tuple[str, ...] | None
) -> Iterator[Labelled]:
    example = None
    for where, record in table:
        example = unlabelled(where, record, settings)
        yield example, label_of(record, example, settings, labels)
    if example is None:
        raise DataError(f"{place}: is empty; expected an example or more")


def check_pairs(examples: Sequence[Example], settings: TaskSettings) -> None:
    """Check that either all examples have a second text or none has: without it a score means something else.

    Raises:
        DataError: only some have one.
    """
    without = [example for example in examples if example.pair is None]
    if 0 < len(without) < len(examples):
        raise DataError(
            f"{without[0].where}: no field {settings.pair_field!r}, which {len(examples) - len(without):,} of "
            f"{len(examples):,} examples have; expected it in all or in none"
        )


def _without_training(labels: list[str], train: list[Example]) -> list[str]:
    used = {number for one in train for number in (one.label if isinstance(one.label, tuple) else (one.label,))}
    lacking = [label for number, label in enumerate(labels) if number not in used]
    return [f"no training example has {listed(lacking)}, of {len(labels)} labels"] if lacking else []
