"""Stage: one collection's documents -> token stores, one for training and one held out."""

from stage import run_stage

from argparse import Namespace

from azneobert.data.tokens import tokenize_collection
from azneobert.files import write_json
from azneobert.layout import Layout
from azneobert.recipe import Recipe


def tokens(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    collection = options.collection
    metas = tokenize_collection(
        layout.documents(collection),
        layout.duplicates(collection),
        layout.tokenizer,
        layout.tokens / collection,
        layout.partial(f"tokens/{collection}"),
        vocab_size=recipe.model.vocab_size,
    )
    counts = {side: {"documents": meta.documents, "tokens": meta.tokens} for side, meta in metas.items()}
    write_json(layout.report(f"tokens/{collection}"), counts)
    print(f"{collection}: {metas['train'].tokens:,} tokens to train on, {metas['validation'].tokens:,} held out")


if __name__ == "__main__":
    run_stage(tokens, collection=lambda recipe: recipe.data.order)
