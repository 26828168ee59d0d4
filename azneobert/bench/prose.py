"""Real text for benchmarks that train. The project's own data half prepares it once, in a folder that they share."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from azneobert.data.rows import open_plan, plan_rows, write_plan
from azneobert.data.store import TokenStore
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import load_tokenizer, special_ids
from azneobert.errors import DataError
from azneobert.files import read_json, sha256_file, sha256_of_json, write_json
from azneobert.recipe import Cleaning, FileSource

SIDES = ("train", "validation")
_FACTS = "prose.json"  # written last, so its presence means that the folder is whole
_CHUNK = 1 << 22
_SEED = 1  # of the row plans, and of the masks of what is held out


@dataclass(frozen=True)
class Wanted:
    """Which text, and how it is cut up: documents of `sources` by name, split by hash as `cleaning` says."""

    sources: dict[str, FileSource]
    cleaning: Cleaning
    vocab_size: int
    sequence_length: int


@dataclass(frozen=True)
class Facts:
    """What the prepared text is. `identity` is a hash of tokens and rows of both sides.

    `unigram` is the held-out text's cross-entropy, in nats a token, under the token frequencies of the training text: a
    model that has learnt only these frequencies reaches it.
    """

    identity: str
    documents: dict[str, int]
    tokens: dict[str, int]
    rows: dict[str, int]
    unigram: float


class Prose:
    """Prepared text, opened."""

    def __init__(self, folder: Path):
        self.facts = Facts(**read_json(folder / _FACTS)["facts"])
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        self._special_ids = special_ids(tokenizer)
        self._stores = {side: open_stores(folder / "tokens", side) for side in SIDES}
        self._plans = {side: open_plan(folder / "rows" / side, self._stores[side]) for side in SIDES}

    def stream(self, seed: int, masking_rate: float) -> Stream:
        """The training text in the order, and with the masks, of a seed."""
        return self._stream("train", seed, masking_rate)

    def held_out(self, masking_rate: float) -> Stream:
        """The held-out text, the same rows and masks each time."""
        return self._stream("validation", _SEED, masking_rate)

    def _stream(self, side: str, seed: int, masking_rate: float) -> Stream:
        return Stream(
            self._plans[side],
            self._stores[side],
            self._special_ids,
            seed=seed,
            masking_rate=masking_rate,
            shuffle=side == "train",
        )


def sources_of(corpus: list[Path]) -> dict[str, FileSource]:
    """Files or folders of text as collections, named after them, or numbered where two have one name."""
    given = {place.name.split(".")[0] or str(number): place for number, place in enumerate(corpus)}
    if len(given) < len(corpus):
        given = {f"corpus-{number}": place for number, place in enumerate(corpus, start=1)}
    return {name: FileSource(path=str(place), id_field=None) for name, place in given.items()}


def prepare(wanted: Wanted, folder: Path) -> Prose:
    """The text in a folder, made there unless it is there already.

    Raises:
        DataError: a source cannot be read, no document stays or none is held out, or the text is too small for the
            vocabulary.
    """
    asked = _asked(wanted)
    try:
        there = read_json(folder / _FACTS)["asked"] == asked
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        there = False
    if not there:
        (folder / _FACTS).unlink(missing_ok=True)
        for name in ("tokens", "rows"):
            shutil.rmtree(folder / name, ignore_errors=True)
        _make(wanted, folder)
        write_json(folder / _FACTS, {"asked": asked, "facts": asdict(_facts(folder))})
    return Prose(folder)


def open_stores(tokens: Path, side: str) -> dict[str, TokenStore]:
    """The stores of one side by collection, those that hold a document."""
    opened = {place.name: TokenStore.open(place / side) for place in sorted(tokens.iterdir())}
    return {name: store for name, store in opened.items() if len(store)}


def _asked(wanted: Wanted) -> dict[str, Any]:
    """What the prepared text depends on, as JSON has it."""
    from azneobert.data.local_files import source_files

    files = [file for source in wanted.sources.values() for file in source_files(Path(source.path))]
    asked = {
        "sources": {name: source.model_dump(mode="json") for name, source in wanted.sources.items()},
        "files": [sha256_file(file) for file in files],
        "cleaning": wanted.cleaning.model_dump(mode="json"),
        "vocab_size": wanted.vocab_size,
        "sequence_length": wanted.sequence_length,
    }
    found: dict[str, Any] = json.loads(json.dumps(asked))
    return found


def _make(wanted: Wanted, folder: Path) -> None:
    # Imported here: they need Parquet, which a machine that only gets a prepared folder may lack.
    from azneobert.data.documents import training_texts
    from azneobert.data.duplicates import find_duplicates
    from azneobert.data.ingest import ingest
    from azneobert.data.tokenizer import train_tokenizer
    from azneobert.data.tokens import tokenize_collection

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as scratch:
        documents = {name: Path(scratch, "documents", name) for name in wanted.sources}
        for name, source in wanted.sources.items():
            ingest(source, wanted.cleaning, documents[name], Path(scratch, "partial", name))
        struck = dict(zip(documents, find_duplicates(documents.values()), strict=True))
        texts = (batch for name in documents for batch in training_texts(documents[name], struck[name].all))
        trained = train_tokenizer(texts, "bpe", wanted.vocab_size, lowercase=False)
        trained.save(str(folder / "tokenizer.json"))
        for name in documents:
            np.save(Path(scratch, f"{name}.npy"), struck[name].all)
            tokenize_collection(
                documents[name],
                Path(scratch, f"{name}.npy"),
                folder / "tokenizer.json",
                folder / "tokens" / name,
                Path(scratch, "partial", name),
                vocab_size=wanted.vocab_size,
            )
    for side, lacking, better in zip(SIDES, ("to train on", "held out"), ("smaller", "larger"), strict=True):
        stores = open_stores(folder / "tokens", side)
        if not stores:
            fraction = wanted.cleaning.validation_fraction
            raise DataError(f"{', '.join(wanted.sources)}: no document {lacking}; use a {better} share than {fraction}")
        write_plan(plan_rows(stores, wanted.sequence_length, _SEED), folder / "rows" / side)


def _facts(folder: Path) -> Facts:
    stores = {side: open_stores(folder / "tokens", side) for side in SIDES}
    plans = {side: open_plan(folder / "rows" / side, stores[side]) for side in SIDES}
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    made = [sha256_file(folder / "tokenizer.json"), *(plan.meta.sha256 for plan in plans.values())]
    made += [store.meta.tokens_sha256 for side in SIDES for store in stores[side].values()]
    counts = {side: token_counts(stores[side], tokenizer.get_vocab_size()) for side in SIDES}
    return Facts(
        identity=sha256_of_json(made)[:16],
        documents={side: sum(map(len, stores[side].values())) for side in SIDES},
        tokens={side: int(counts[side].sum()) for side in SIDES},
        rows={side: len(plans[side]) for side in SIDES},
        unigram=unigram_entropy(counts["train"], counts["validation"]),
    )


def unigram_entropy(trained: np.ndarray, held_out: np.ndarray) -> float:
    """The cross-entropy of counts (V,) under `unigram_shares` of other counts; nats a token."""
    return float(-(held_out * np.log(unigram_shares(trained))).sum() / held_out.sum())


def unigram_shares(counts: np.ndarray) -> np.ndarray:
    """The probability of each token (V,) by its count, to which one is added."""
    shares: np.ndarray = (counts + 1) / (counts.sum() + len(counts))
    return shares


def token_counts(stores: dict[str, TokenStore], vocab_size: int) -> np.ndarray:
    """How often each token stands in these stores: int64 (V,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for store in stores.values():
        for start in range(0, len(store.tokens), _CHUNK):  # bincount converts its whole input to int64
            counts += np.bincount(store.tokens[start : start + _CHUNK], minlength=vocab_size)
    return counts
