"""The splits of a labelled data set on the Hugging Face hub, read with the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from azneobert.data.hub import explained
from azneobert.finetuning.quoting import listed
from azneobert.finetuning.splits import by_split
from azneobert.finetuning.tables import Row
from azneobert.task_settings import Split, TaskOfHub

_ROWS = 1024
_KEYS = "`dataset`, `config` or `revision`"


def hub_splits(settings: TaskOfHub) -> tuple[dict[Split, tuple[str, Iterator[Row]]], tuple[str, ...] | None]:
    """The place and the rows of each split, and the names of the labels where the data set has them (as `ClassLabel`).

    Raises:
        DataError: the hub does not answer, has no such data set, or it has no split for training.
    """
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    with explained(settings.dataset, _KEYS):
        tables = load_dataset(settings.dataset, settings.config, revision=settings.revision or None)
    named = [(str(name), table) for name, table in tables.items()]
    found = by_split(named, settings.splits, settings.dataset, listed(tables), "a split of that name")
    places = {split: f"{settings.dataset} {table.split}" for split, table in found.items()}
    names = _label_names(found["train"].features, settings.label_name)
    return {split: (place, _rows(place, found[split])) for split, place in places.items()}, names


def _rows(place: str, table: Any) -> Iterator[Row]:
    number = 0
    with explained(place, _KEYS):
        # In Arrow format, values that are not text, such as pictures, are not decoded.
        for batch in table.with_format("arrow").iter(_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{place}:{number}", row


def _label_names(features: Any, path: str) -> tuple[str, ...] | None:
    from datasets import ClassLabel, LargeList, List

    found = features
    for key in [path] if path in features else path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, List | LargeList):
        found = found.feature
    return tuple(found.names) if isinstance(found, ClassLabel) else None
