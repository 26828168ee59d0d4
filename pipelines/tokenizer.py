"""Stage: train the tokenizer on the training side of all collections, or import one; and measure its fertility."""

from stage import run_stage

import csv
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from azneobert.data.documents import read_duplicates, training_texts
from azneobert.data.fertility import compared, count_with, fertility, unknown_share
from azneobert.data.tokenizer import load_tokenizer, train_tokenizer
from azneobert.files import write_json
from azneobert.layout import Layout, read_report
from azneobert.recipe import Recipe

FERTILITY_CHARACTERS = 2_000_000  # of each collection, enough for the third digit


def tokenizer(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    settings = recipe.tokenizer
    others = compared(settings.compare)  # a missing file is reported before an hour of training, not after it
    characters = {collection: characters_of(layout, collection) for collection in recipe.data.order}
    layout.tokenizer.parent.mkdir(parents=True, exist_ok=True)
    for imported in settings.imported.values():
        load_tokenizer(Path(imported.path), settings.vocab_size)
        shutil.copyfile(imported.path, layout.tokenizer)
    for algorithm, how in settings.trained.items():
        share = min(1.0, how.max_characters / sum(characters.values()))
        texts = (batch for collection in recipe.data.order for batch in texts_of(layout, collection, share))
        trained = train_tokenizer(texts, algorithm, settings.vocab_size, how.lowercase)
        trained.save(str(layout.tokenizer))
    loaded = load_tokenizer(layout.tokenizer, settings.vocab_size)
    counters = {"azneobert": count_with(loaded)} | others
    figures = {}
    for collection, size in characters.items():
        share = min(1.0, FERTILITY_CHARACTERS / max(size, 1))
        figures[collection] = fertility(counters, texts_of(layout, collection, share))
        figures[collection]["unknown"] = unknown_share(loaded, texts_of(layout, collection, share))
    write_json(layout.report("tokenizer"), figures)
    write_plot(layout.plots / "fertility.csv", figures, list(counters))
    words = sum(f["words"] for f in figures.values())
    means = {n: sum(f[n] * f["words"] for f in figures.values()) / words for n in counters}
    write_json(layout.metrics("tokenizer"), {"tokens_per_word": round(means["azneobert"], 4)})
    said = ", ".join(f"{counter} {mean:.3f}" for counter, mean in means.items())
    print(f"{loaded.get_vocab_size():,} tokens in the vocabulary; tokens a word: {said}")


def characters_of(layout: Layout, collection: str) -> int:
    report = read_report(layout.report(f"documents/{collection}"))
    return int(report["characters"])


def texts_of(layout: Layout, collection: str, share: float) -> Iterator[list[str]]:
    return training_texts(layout.documents(collection), read_duplicates(layout.duplicates(collection)), share)


def write_plot(file: Path, figures: dict[str, dict[str, float]], tokenizers: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(["collection", "group", "tokens_per_word"])
        rows.writerows([c, t, figure[t]] for c, figure in figures.items() for t in tokenizers)


if __name__ == "__main__":
    run_stage(tokenizer)
