"""Stage: find the documents that stand more than once, in a collection or in several, and report what is left of each.

The first copy stays, in the recipe's order of the collections.
"""

from stage import run_stage

from argparse import Namespace
from typing import Any

import numpy as np

from azneobert.data.duplicates import DuplicateIds, Duplicates, find_duplicate_ids, find_duplicates, remaining
from azneobert.files import write_json
from azneobert.layout import Layout, read_report
from azneobert.recipe import Recipe


def deduplicate(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    order = recipe.data.order
    found = find_duplicates(layout.documents(collection) for collection in order)
    lost = 0
    for collection, duplicates in zip(order, found, strict=True):
        target = layout.duplicates(collection)
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, duplicates.all)
        lost += len(duplicates.all)
        ids = find_duplicate_ids(layout.documents(collection))
        write_json(layout.report(f"documents/{collection}"), report(layout, collection, duplicates, ids))
        if ids.count:
            such = ", ".join(f"{identity!r:.80}" for identity in ids.examples)
            print(
                f"warning: {collection}: {ids.count:,} documents bear the id of an earlier one, such as {such}; ids "
                "are only names, so none is left out for that: name another `id_field` if they should differ"
            )
    print(f"{lost:,} documents stand elsewhere too and are left out")


def report(layout: Layout, collection: str, duplicates: Duplicates, ids: DuplicateIds) -> dict[str, Any]:
    """What became of a collection's documents, from its source to its tokens."""
    ingested = read_report(layout.report(f"ingest/{collection}"))
    dropped = ingested["dropped"] | {"duplicate": len(duplicates.within), "elsewhere": len(duplicates.across)}
    kept = remaining(layout.documents(collection), duplicates)
    return {
        "documents": ingested["documents"],
        "kept": kept.pop("documents"),
        "dropped": dropped,
        **kept,
        "duplicate_ids": ids.count,
        "duplicate_id_examples": ids.examples,
    }


if __name__ == "__main__":
    run_stage(deduplicate)
