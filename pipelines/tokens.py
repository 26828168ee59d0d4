"""Stage: one collection's documents -> token stores, one for training and one held out."""

from argparse import Namespace

from azneobert.data.tokens import tokenize_collection
from azneobert.recipe import Recipe
from stage import Paths, run_stage, write_json


def tokens(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    collection = options.collection
    metas = tokenize_collection(
        paths.documents(collection),
        paths.duplicates(collection),
        paths.tokenizer,
        paths.tokens / collection,
        paths.partial(f"tokens/{collection}"),
        vocab_size=recipe.model.vocab_size,
    )
    counts = {side: {"documents": meta.documents, "tokens": meta.tokens} for side, meta in metas.items()}
    write_json(paths.metrics(f"tokens/{collection}"), counts)
    print(f"{collection}: {metas['train'].tokens:,} tokens to train on, {metas['validation'].tokens:,} held out")


if __name__ == "__main__":
    run_stage(tokens, collection=lambda recipe: recipe.data.order)
