"""`azneobert bench data`: the data half of the project, each claim a row."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from azneobert.bench.measure import in_child, private_bytes
from azneobert.bench.report import Row
from azneobert.bench.synthetic import SPECIAL_IDS, sentences, write_documents, write_hollow_stores
from azneobert.data.documents import SCHEMA, parts, read_texts
from azneobert.data.duplicates import find_duplicates
from azneobert.data.ingest import ingest
from azneobert.data.rows import open_plan, plan_rows, write_plan
from azneobert.data.store import TokenStore
from azneobert.data.stream import SampleRange, Stream, epoch_order, micro_batch_loader
from azneobert.data.tokenizer import read_tokenizer, train_tokenizer
from azneobert.data.tokens import tokenize_collection
from azneobert.recipe import Cleaning, FileSource

_MIB, _GIB = 2**20, 2**30
_CLEANING = Cleaning(min_words=5, max_malformed=0.0, validation_fraction=0.001)
_VOCABULARY = 8192  # gives 1.7 tokens a word on this small corpus, as 64,000 does on a large one
_MIXTURE = ((0, 0.2), (1024, 0.4), (2048, 0.4))


@dataclass(frozen=True)
class Sizes:
    """The amounts to measure on: bytes of text, documents of a plan, and the last sample that training reaches."""

    text: int = 200 * 10**6
    documents: int = 12_000_000
    far_sample: int = 200_000_000


def bench_data(corpus: Path, sizes: Sizes) -> Iterator[Row]:
    """Every row of the table, as it is measured. `corpus` gives the sentences that documents are made of."""
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as scratch:
        folder = Path(scratch)
        yield from _ingest_rows(corpus, folder, sizes)
        yield from _duplicate_rows(folder, sizes)
        yield from _token_rows(corpus, folder, sizes)
        names = list(write_hollow_stores(folder / "stores", sizes.documents))
        yield from _plan_rows(folder, names, sizes)
        yield from _stream_rows(folder, names, sizes)
        yield from _shuffle_rows(sizes)


def _ingest_rows(corpus: Path, folder: Path, sizes: Sizes) -> Iterator[Row]:
    found = sentences(corpus)
    for what, mean, bar in (("documents", 35.0, 20.0), ("single sentences", 1.0, None)):
        file = folder / f"{what.replace(' ', '-')}.jsonl"
        size = write_documents(file, found, sizes.text if bar else sizes.text // 10, mean)
        measured = in_child(_ingest, file, folder / "documents" / what)
        rate = size / measured.seconds / 1e6
        yield Row(
            f"ingest, clean and de-duplicate {what}, one core",
            f"{rate:.1f} MB/s",
            f">= {bar:.0f} MB/s" if bar else "",
            rate >= bar if bar else None,
            f"{size / 1e6:.0f} MB of text in {measured.result:,} JSON lines; peak {measured.peak / _MIB:.0f} MiB",
        )


def _ingest(file: Path, target: Path) -> int:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    report = ingest(FileSource(path=str(file)), _CLEANING, target, target.with_name(f"{target.name}.partial"))
    find_duplicates([target])
    return report.documents


def _duplicate_rows(folder: Path, sizes: Sizes) -> Iterator[Row]:
    rng = np.random.default_rng(1)
    folders = []
    for number, count in enumerate([sizes.documents // 11] * 11):
        folders.append(folder / "hashes" / str(number))
        folders[-1].mkdir(parents=True)
        hashes = rng.integers(0, 2**63, (count, 2), dtype=np.uint64)
        hashes[: count // 10] = hashes[-(count // 10) :]  # a tenth of the documents repeat
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(hashes.tobytes())])
        blank = {f.name: pa.nulls(count, f.type) for f in SCHEMA if f.name != "hash"}
        table = pa.table(blank | {"hash": column}).select(SCHEMA.names)
        pq.write_table(table, folders[-1] / "part-00000.parquet", compression=None)
    measured = in_child(_find_duplicates, folders)
    yield Row(
        f"find duplicates among {sizes.documents / 1e6:.1f} million documents",
        f"{measured.seconds:.1f} s, {measured.peak / _GIB:.2f} GiB",
        "<= 2 GiB",
        measured.peak <= 2 * _GIB,
        f"synthetic hashes, {measured.result:,} duplicates",
    )


def _find_duplicates(folders: list[Path]) -> int:
    return sum(len(found.all) for found in find_duplicates(folders))


def _token_rows(corpus: Path, folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Our tokens stage against the library's own call, in turns, on the same texts and cores."""
    documents = folder / "documents" / "documents"
    tokenizer_file = folder / "tokenizer.json"
    train_tokenizer(iter([sentences(corpus)]), "bpe", _VOCABULARY, lowercase=False).save(str(tokenizer_file))
    np.save(folder / "none.npy", np.empty(0, dtype=np.int64))
    texts = [text for part in parts(documents) for batch, _ in read_texts(part) for text in batch]
    ratios, rates = [], []
    size = sum(len(text.encode()) for text in texts)
    for turn in range(3):
        library = in_child(_encode_in_memory, texts, tokenizer_file).result
        ours = in_child(_tokenize, documents, folder / "none.npy", tokenizer_file, folder / f"tokens-{turn}").result
        ratios.append(library / ours)
        rates.append(size / ours / 1e6)
    ratio = statistics.median(ratios)
    cores = len(os.sched_getaffinity(0))
    yield Row(
        "tokenize, against encode_batch_fast on texts in memory",
        f"{ratio:.0%}",
        ">= 90%",
        ratio >= 0.9,
        f"{statistics.median(rates):.1f} MB/s on {cores} cores, {size / 1e6:.0f} MB, reading, writing and hashing "
        f"included; median of {len(ratios)}, {min(ratios):.0%} to {max(ratios):.0%}",
    )


def _encode_in_memory(texts: list[str], tokenizer_file: Path) -> float:
    tokenizer = read_tokenizer(tokenizer_file)
    start = time.perf_counter()
    for batch in range(0, len(texts), 1024):
        tokenizer.encode_batch_fast(texts[batch : batch + 1024], add_special_tokens=False)
    return time.perf_counter() - start


def _tokenize(documents: Path, duplicates: Path, tokenizer_file: Path, target: Path) -> float:
    start = time.perf_counter()
    partial = target.with_name(f"{target.name}.partial")
    tokenize_collection(documents, duplicates, tokenizer_file, target, partial, vocab_size=_VOCABULARY)
    return time.perf_counter() - start


def _plan_rows(folder: Path, names: list[str], sizes: Sizes) -> Iterator[Row]:
    for what, length, mixture in (
        ("rows of 1,024", 1024, ((0, 1.0),)),
        ("rows of 4,096", 4096, ((0, 1.0),)),
        ("rows of 4,096, NeoBERT's mixture", 4096, _MIXTURE),
    ):
        measured = in_child(_plan, folder, names, length, mixture)
        rows, tokens, fill = measured.result
        yield Row(
            f"row plan of {sizes.documents / 1e6:.0f} million documents, {what}",
            f"{measured.seconds:.1f} s, {measured.peak / _GIB:.2f} GiB, {fill:.3%} full",
            "<= 60 s, 2 GiB, >= 99.0%",
            measured.seconds <= 60 and measured.peak <= 2 * _GIB and fill >= 0.99,
            f"synthetic lengths, {tokens / 1e9:.1f} billion tokens, {rows:,} rows; writing included",
        )


def _plan(
    folder: Path, names: list[str], length: int, mixture: tuple[tuple[int, float], ...]
) -> tuple[int, int, float]:
    plan = plan_rows(_open_stores(folder, names), length, 1, mixture)
    write_plan(plan, folder / f"rows-{length}-{len(mixture)}")
    return plan.meta.rows, plan.meta.tokens, plan.meta.fill


def _stream_rows(folder: Path, names: list[str], sizes: Sizes) -> Iterator[Row]:
    rate, private, tokens = in_child(_stream, folder, names).result
    yield Row(
        "stream, one worker, rows of 1,024 with masks",
        f"{rate / 1e6:.1f} M tokens/s",
        ">= 10 M tokens/s",
        rate >= 10e6,
        "micro-batches of 48 rows, as the training process receives them; "
        f"{tokens / 1e9:.1f} billion tokens, which are holes in files: each page is new to memory and needs no disk",
    )
    yield Row(
        f"private memory of that worker at {tokens / 1e9:.1f} billion tokens",
        f"{private / _MIB:.0f} MiB",
        "<= 300 MiB",
        private <= 300 * _MIB,
        "pages shared with no other process and no file (those of mapped files are the kernel's to take back)",
    )
    near, far = in_child(_first_batches, folder, names, sizes.far_sample).result
    yield Row(
        f"first batch at sample {sizes.far_sample:,}, over that at sample 0",
        f"{far / near:.2f}",
        "1, within noise",
        0.8 <= far / near <= 1.25,
        f"{1e3 * near:.1f} ms and {1e3 * far:.1f} ms: open the plan, build the stream, 48 rows; medians of 15 in turns",
    )


def _open_stores(folder: Path, names: list[str]) -> dict[str, TokenStore]:
    return {name: TokenStore.open(folder / "stores" / name) for name in names}


def _open_stream(folder: Path, names: list[str]) -> Stream:
    stores = _open_stores(folder, names)
    plan = open_plan(folder / "rows-1024-1", stores)
    return Stream(plan, stores, SPECIAL_IDS, seed=1, masking_rate=0.2)


def _stream(folder: Path, names: list[str]) -> tuple[float, int, int]:
    stream = _open_stream(folder, names)
    samples = SampleRange(range(0, 48 * 10**9, 48), 48, 1, 0)
    loader = micro_batch_loader(stream, samples, workers=1, pin_memory=False)
    for _ in range(50):
        next(loader)
    start = time.perf_counter()
    batches = sum(1 for _ in itertools.islice(loader, 400))
    seconds = time.perf_counter() - start
    private = private_bytes(int(multiprocessing.active_children()[0].pid or 0))
    loader.close()
    return batches * 48 * 1024 / seconds, private, stream.plan.meta.tokens


def _first_batches(folder: Path, names: list[str], far: int) -> tuple[float, float]:
    durations: dict[int, list[float]] = {0: [], far: []}
    for turn, sample in itertools.product(range(16), durations):
        start = time.perf_counter()
        _open_stream(folder, names).batch(sample + turn * 48, 48)
        if turn:  # the first turn warms the page cache
            durations[sample].append(time.perf_counter() - start)
    return statistics.median(durations[0]), statistics.median(durations[far])


def _shuffle_rows(sizes: Sizes) -> Iterator[Row]:
    measured = in_child(_shuffle, sizes.documents)
    missing, correlation, neighbours = measured.result
    yield Row(
        f"shuffle of {sizes.documents / 1e6:.0f} million rows: rows that are missing or doubled, all looked at",
        f"{missing}",
        "0",
        missing == 0,
        f"{measured.seconds:.0f} s",
    )
    yield Row(
        "correlation of a row's places in two epochs",
        f"{correlation:+.5f}",
        f"within {4 / sizes.documents**0.5:.5f}",
        abs(correlation) <= 4 / sizes.documents**0.5,
        f"four standard errors; {neighbours} of all neighbours stay neighbours (1.0 expected by chance at any size)",
    )


def _shuffle(rows: int) -> tuple[int, float, int]:
    orders = [epoch_order(np.arange(rows, dtype=np.uint64), rows, seed=1, pool=0, epoch=epoch) for epoch in (0, 1)]
    missing = sum(rows - len(np.unique(order)) for order in orders)
    places = np.empty((2, rows), dtype=np.int64)
    for place, order in zip(places, orders, strict=True):
        place[order] = np.arange(rows)
    neighbours = int((places[1][orders[0][1:]] - places[1][orders[0][:-1]] == 1).sum())
    return missing, float(np.corrcoef(places[0], places[1]).item(0, 1)), neighbours
