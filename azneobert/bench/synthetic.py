"""Corpora for benchmarks: text of any size out of real sentences, and stores of any count of documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from azneobert.data.letters import letter_counts
from azneobert.data.repair import normalise
from azneobert.data.rows import open_plan, plan_rows, write_plan
from azneobert.data.sources import open_source
from azneobert.data.store import FORMAT_VERSION, ShardWriter, StoreMeta, TokenStore, assemble_store, shard_files
from azneobert.data.stream import Stream
from azneobert.recipe import FileSource

VOCABULARY = 64_000
SPECIAL_IDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
# Of the published corpus: 12.2 billion tokens in 11.9 million documents, most of them short and some very long.
_MEAN_OF_LOG, _SIGMA_OF_LOG = 6.2, 1.2
_DAMAGE = (("ə", "ә"), (" ", "\u00a0"), ("a", "а"), ("i", "i\u00ad"), (". ", ".  \r\n"))


def sentences(corpus: Path) -> list[str]:
    """The clean sentences of every readable file below a folder."""
    texts = (
        text
        for records in open_source(FileSource(path=str(corpus), id_field=None)).read()
        for text in records.texts
        if text is not None
    )
    found = (sentence for text in texts for sentence in re.split(r"(?<=[.!?]) +|\n+", text))
    return [s for s in found if len(s) > 20 and normalise(s) == s and _is_azerbaijani(s)]


def _is_azerbaijani(sentence: str) -> bool:
    letters, latin, schwas, _ = letter_counts([sentence])[:, 0]
    return latin > 0 and latin / letters >= 0.9 and schwas / latin >= 0.02


def write_documents(file: Path, found: list[str], size: int, mean_sentences: float, seed: int = 1) -> int:
    """Write about `size` bytes of documents as JSON lines; returns the bytes of text.

    Documents are sentences in new orders. One in ten has defects of crawled text (Cyrillic look-alikes, odd spaces,
    soft hyphens), and one in twenty repeats an earlier document.
    """
    rng = np.random.default_rng(seed)
    written, number, former = 0, 0, ""
    with file.open("w", encoding="utf-8") as lines:
        while written < size:
            count = max(1, int(rng.lognormal(np.log(mean_sentences) - 0.5, 1.0)))
            text = " ".join(found[i] for i in rng.integers(len(found), size=count))
            if rng.random() < 0.1:
                good, bad = _DAMAGE[number % len(_DAMAGE)]
                text = text.replace(good, bad, 1 + len(text) // 200)
            text = former if former and rng.random() < 0.05 else text
            lines.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
            written, number, former = written + len(text.encode()), number + 1, text
    return written


def document_lengths(documents: int, seed: int = 1) -> np.ndarray:
    """Tokens of each document, log-normal with the mean of the published corpus: int64 (documents,)."""
    rng = np.random.default_rng(seed)
    return np.maximum(8, rng.lognormal(_MEAN_OF_LOG, _SIGMA_OF_LOG, documents)).astype(np.int64)


def write_hollow_stores(folder: Path, documents: int, collections: int = 11) -> Iterator[str]:
    """Token stores of the full count whose tokens are a hole in a file: full size, but no disk space.

    Yields the names. The hashes are not real, so `verify` refuses such a store.
    """
    for number, lengths in enumerate(np.array_split(document_lengths(documents), collections)):
        name = f"collection-{number}"
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "offsets.npy", offsets)
        shape = (int(offsets[-1]),)
        np.lib.format.open_memmap(folder / name / "tokens.npy", mode="w+", dtype=np.int32, shape=shape)
        meta = StoreMeta(FORMAT_VERSION, len(lengths), shape[0], "int32", VOCABULARY, "", "", name, "")
        (folder / name / "meta.json").write_text(json.dumps(asdict(meta)))
        yield name


def write_small_corpus(
    folder: Path,
    vocab_size: int,
    row_length: int,
    documents: int = 2000,
    seed: int = 1,
    lengths: np.ndarray | None = None,
) -> None:
    """A store of random tokens, some more frequent than others, and a row plan of one length: for `open_small_corpus`.

    `lengths` are the lengths of the documents, (documents,); by default those of `document_lengths`.
    """
    rng = np.random.default_rng(seed)
    (folder / "shards").mkdir()
    shard = ShardWriter(folder / "shards", "only")
    for length in document_lengths(documents, seed) if lengths is None else lengths:
        ids = 5 + (rng.random(int(length)) ** 3 * (vocab_size - 5)).astype(np.int32)
        shard.add(ids, np.asarray([len(ids)]))
    shard.close()
    files = [shard_files(folder / "shards", "only")]
    assemble_store(folder / "store", files, vocab_size=vocab_size, tokenizer_sha256="none", source_md5="none")
    write_plan(plan_rows({"store": TokenStore.open(folder / "store")}, row_length, seed), folder / "rows")


def open_small_corpus(folder: Path) -> Stream:
    """The stream over what `write_small_corpus` wrote."""
    stores = {"store": TokenStore.open(folder / "store")}
    return Stream(open_plan(folder / "rows", stores), stores, SPECIAL_IDS, seed=1, masking_rate=0.2)
