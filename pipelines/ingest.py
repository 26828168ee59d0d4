"""Stage: one collection's source files -> cleaned documents."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from azneobert.data.cleaning import CleaningReport, clean
from azneobert.data.collections import COLLECTIONS, read_source
from azneobert.data.documents import write_documents
from azneobert.errors import DataError
from azneobert.recipe import Recipe
from stage import Paths, run_stage, write_json


def ingest(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    source = recipe.data.sources[options.collection]
    report = CleaningReport()
    raw = read_source(Path(source.path), source.text_field, source.id_field)
    cleaned = clean(raw, **recipe.data.cleaning.model_dump(), report=report)
    write_documents(paths.documents(options.collection), cleaned)
    if not report.kept:
        raise DataError(f"{source.path}: none of {report.documents} documents stay ({asdict(report)['dropped']})")
    write_json(paths.metrics(f"ingest/{options.collection}"), asdict(report))
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items() if count) or "none"
    print(
        f"{options.collection}: {report.kept:,} of {report.documents:,} documents kept (dropped: {dropped}), "
        f"{report.words:,} words, {report.validation} held out"
    )


if __name__ == "__main__":
    run_stage(ingest, collection=COLLECTIONS)
