"""Stage: train the tokenizer on the training side of all collections, or import one; and measure its fertility."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from azneobert.data.collections import COLLECTIONS
from azneobert.data.documents import read_texts
from azneobert.data.tokenizer import fertility, load_tokenizer, train_tokenizer
from azneobert.recipe import Recipe
from stage import Paths, run_stage, write_json


def tokenizer(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    settings = recipe.tokenizer
    paths.tokenizer.parent.mkdir(parents=True, exist_ok=True)
    if settings.path is not None:
        load_tokenizer(Path(settings.path), settings.vocab_size)
        paths.tokenizer.write_bytes(Path(settings.path).read_bytes())
    else:
        texts = (batch for collection in COLLECTIONS for batch in texts_of(paths, collection))
        trained = train_tokenizer(texts, settings.algorithm, settings.vocab_size, settings.lowercase)
        trained.save(str(paths.tokenizer))
    loaded = load_tokenizer(paths.tokenizer, settings.vocab_size)
    figures = {collection: fertility(loaded, texts_of(paths, collection)) for collection in COLLECTIONS}
    write_json(paths.metrics("tokenizer"), figures)
    tokens, words = (sum(f[key] for f in figures.values()) for key in ("tokens", "words"))
    print(f"{loaded.get_vocab_size():,} tokens in the vocabulary; {tokens / words:.3f} tokens a word")


def texts_of(paths: Paths, collection: str) -> Iterator[list[str]]:
    return read_texts(paths.documents(collection), paths.duplicates(collection), validation=False)


if __name__ == "__main__":
    run_stage(tokenizer)
