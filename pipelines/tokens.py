"""Stage: one collection's documents -> token stores, one for training and one held out."""

from argparse import Namespace
from collections.abc import Iterator

from azneobert.data.collections import COLLECTIONS
from azneobert.data.documents import read_texts
from azneobert.data.store import write_store
from azneobert.data.tokenizer import load_tokenizer, tokenizer_sha256
from azneobert.recipe import Recipe
from stage import Paths, file_md5, run_stage, write_json


def tokens(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    collection = options.collection
    tokenizer = load_tokenizer(paths.tokenizer, recipe.model.vocab_size)
    tokenizer.encode_special_tokens = True  # "[MASK]" written in a document is text
    counts = {}

    def encoded(validation: bool) -> Iterator[list[int]]:
        for texts in read_texts(paths.documents(collection), paths.duplicates(collection), validation=validation):
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                yield encoding.ids

    for side in ("train", "validation"):
        meta = write_store(
            paths.tokens / collection / side,
            encoded(side == "validation"),
            vocab_size=recipe.model.vocab_size,
            tokenizer_sha256=tokenizer_sha256(paths.tokenizer),
            source_md5=file_md5(paths.documents(collection)),
        )
        counts[side] = {"documents": meta.documents, "tokens": meta.tokens}
    write_json(paths.metrics(f"tokens/{collection}"), counts)
    print(
        f"{collection}: {counts['train']['tokens']:,} tokens to train on, {counts['validation']['tokens']:,} held out"
    )


if __name__ == "__main__":
    run_stage(tokens, collection=COLLECTIONS)
