"""Stage: one collection's source -> cleaned documents."""

from stage import run_stage

from argparse import Namespace
from dataclasses import asdict

from azneobert.data.ingest import ingest
from azneobert.files import write_json
from azneobert.layout import Layout
from azneobert.provenance import code_sha256
from azneobert.recipe import Recipe


def ingest_collection(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    collection = options.collection
    report = ingest(
        recipe.data.sources[collection],
        recipe.data.cleaning,
        layout.documents(collection),
        layout.partial(f"documents/{collection}"),
        code=code_sha256("pipelines/ingest.py"),
    )
    write_json(layout.metrics(f"ingest/{collection}"), asdict(report))
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items() if count) or "none"
    print(
        f"{collection}: {report.kept:,} of {report.documents:,} documents kept (dropped: {dropped}), "
        f"{report.words:,} words, {report.validation:,} held out"
    )
    if report.first_malformed:
        print(f"the first malformed record: {report.first_malformed}")


if __name__ == "__main__":
    run_stage(ingest_collection, collection=lambda recipe: recipe.data.order)
