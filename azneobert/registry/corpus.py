"""The data of a version: its collections, where they come from, and how many documents and tokens they hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from azneobert.layout import Layout, read_report

Counts = dict[str, dict[str, int]]  # of each collection: `documents` and `tokens`

_READERS = ("json", "csv", "text", "parquet")  # file readers of `datasets`, which are not data sets of the hub


def count_collections(layout: Layout, collections: Iterable[str]) -> Counts:
    """The documents and tokens of each collection after cleaning and without duplicates, held-out ones included.

    Raises:
        DataError: the report of a collection's tokens is missing or damaged.
    """
    reports = {name: read_report(layout.report(f"tokens/{name}")) for name in collections}
    return {
        name: {what: sum(side[what] for side in report.values()) for what in ("documents", "tokens")}
        for name, report in reports.items()
    }


def corpus_table(facts: dict[str, Any]) -> str:
    """A table of the collections in Markdown; documents and tokens where they are known."""
    counts: Counts = facts.get("collections", {})  # a version of an earlier commit has none
    titles = ("collection", "from", *(("documents", "tokens") if counts else ()))
    rows = [(name, _origin(source), *(_counted(counts, name) if counts else ())) for name, source in sources_of(facts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ("---",) * len(titles), *rows))


def sources_of(facts: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names of the collections and their sources, in the order of the recipe."""
    data = facts["recipe"]["data"]
    sources = {**data["files"], **data["hub"]}
    return [(name, sources[name]) for name in data["order"]]


def dataset_of(name: str, source: dict[str, Any]) -> str:
    """A data set of the hub by its own name, another collection by the recipe's."""
    dataset = source.get("dataset", name)
    return str(name if dataset in _READERS else dataset)


def _counted(counts: Counts, name: str) -> tuple[str, str]:
    """Both counts of a collection. They are unknown if the recipe has dropped the collection since the training."""
    found = counts.get(name)
    return (f"{found['documents']:,}", f"{found['tokens']:,}") if found else ("", "")


def _origin(source: dict[str, Any]) -> str:
    """Where a collection comes from, if that is public: an address with a password or a key in it is not."""
    dataset = source.get("dataset")
    if dataset is None:
        return "local files"
    if dataset not in _READERS:
        parts = [
            f"[{dataset}](https://huggingface.co/datasets/{dataset})",
            source.get("config"),
            source.get("revision"),
        ]
        return ", ".join(part for part in parts if part)
    files = source.get("data_files")
    first = files if isinstance(files, str) else next(iter(files or ()), "")
    return first if first.startswith("https://") and not set("@?") & set(first) else "files"
