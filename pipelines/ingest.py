"""Stage: one collection's source -> cleaned documents."""

from stage import run_stage

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict

from azneobert.data.cleaning import CleaningReport
from azneobert.data.ingest import ingest
from azneobert.files import write_json
from azneobert.layout import Layout
from azneobert.printable import printable
from azneobert.provenance import code_sha256
from azneobert.recipe import Cleaning, Recipe


def ingest_collection(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    collection = options.collection
    report = ingest(
        recipe.data.sources[collection],
        recipe.data.cleaning,
        layout.documents(collection),
        layout.partial(f"documents/{collection}"),
        code=code_sha256("pipelines/ingest.py"),
    )
    write_json(layout.report(f"ingest/{collection}"), asdict(report))
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items() if count) or "none"
    print(
        f"{collection}: {report.kept:,} of {report.documents:,} documents kept (dropped: {dropped}), "
        f"{report.words:,} words, {report.validation:,} held out"
    )
    for line in remarks(report, recipe.data.cleaning):
        print(printable(line))


def remarks(report: CleaningReport, settings: Cleaning) -> Iterator[str]:
    """Remarks that a person may want to read, one line each."""
    if report.first_malformed:
        yield f"the first malformed record: {report.first_malformed}"
    if report.html:
        yield f"HTML in {report.html:,} documents ({report.html / report.documents:.1%}; html: {settings.html})"
    of_all = sum(row["documents"] for row in report.scripts.values())
    by_size = sorted(report.scripts.items(), key=lambda entry: -entry[1]["documents"])
    if len(by_size) > 1 or any(row["mixed"] for row in report.scripts.values()):
        parts = (f"{name} {row['documents'] / of_all:.1%} ({row['mixed']:,} mixed)" for name, row in by_size)
        yield f"scripts of {of_all:,} documents: {', '.join(parts)}"
    if report.lines["repeated"]:
        about = "about " if settings.repeated_lines == "report" else ""
        share = report.lines["repeated"] / report.lines["seen"]
        yield (
            f"lines in more than {settings.line_copies:,} documents: {about}{report.lines['repeated']:,} copies beyond "
            f"those ({share:.1%} of all lines; repeated_lines: {settings.repeated_lines})"
        )
    expected = f"{by_size[0][0]} script" if by_size else ""  # of which nobody needs to see examples
    for kind in sorted(report.examples.keys() - {expected}):
        yield from (f"{kind}: {example}" for example in report.examples[kind])


if __name__ == "__main__":
    run_stage(ingest_collection, collection=lambda recipe: recipe.data.order)
