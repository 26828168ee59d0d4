"""Stage: find the documents that stand in more than one collection; the first collection in precedence keeps them."""

from argparse import Namespace

import numpy as np

from azneobert.data.collections import COLLECTIONS
from azneobert.data.documents import find_duplicates
from azneobert.recipe import Recipe
from stage import Paths, run_stage, write_json


def deduplicate(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    counts = {}
    found = find_duplicates(paths.documents(collection) for collection in COLLECTIONS)
    for collection, duplicates in zip(COLLECTIONS, found, strict=True):
        target = paths.duplicates(collection)
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, duplicates)
        counts[collection] = len(duplicates)
    write_json(paths.metrics("deduplicate"), counts | {"all": sum(counts.values())})
    print(f"{sum(counts.values())} documents stand in an earlier collection too and are left out")


if __name__ == "__main__":
    run_stage(deduplicate)
