import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from stores import write_store

from azneobert.data.rows import plan_rows
from azneobert.data.sources import open_source
from azneobert.data.store import TokenStore
from azneobert.data.stream import Stream
from azneobert.data.tokenizer import SPECIAL_TOKENS
from azneobert.recipe import FileSource


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository's root."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TokenStore]:
    """A store of documents of these sizes whose tokens are 5, 6, 7, ...: each token says where it came from."""

    def make(sizes: Iterable[int]) -> TokenStore:
        ends = np.cumsum(list(sizes))
        vocab_size = int(ends[-1]) + len(SPECIAL_TOKENS)
        documents = np.split(np.arange(len(SPECIAL_TOKENS), vocab_size), ends[:-1])
        path = tmp_path_factory.mktemp("store") / "tokens"
        write_store(path, documents, vocab_size=vocab_size)
        return TokenStore.open(path)

    return make


@pytest.fixture(scope="session")
def make_stream(make_store: Callable[..., TokenStore]) -> Callable[..., Stream]:
    """A stream over one store with documents of these sizes."""

    def make(sizes: Iterable[int], *, sequence_length: int = 32, seed: int = 7, shuffle: bool = True) -> Stream:
        stores = {"only": make_store(sizes)}
        special_ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
        plan = plan_rows(stores, sequence_length, seed)
        return Stream(plan, stores, special_ids, seed=seed, masking_rate=0.2, shuffle=shuffle)

    return make


@pytest.fixture(scope="session")
def sample_texts(project: Path) -> list[str]:
    """Azerbaijani prose of the embedded corpus."""
    folders = [project / "data/sample" / name for name in ("wikipedia", "folklor", "news")]
    sources = [open_source(FileSource(path=str(folder))) for folder in folders]
    return [text for source in sources for records in source.read() for text in records.texts if text]


@pytest.fixture
def write_lines() -> Callable[[Path, Sequence[object]], Path]:
    """Write a .jsonl file. A string is written as it is, anything else as JSON."""

    def write(path: Path, lines: Sequence[object]) -> Path:
        shown = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
        path.write_text("".join(f"{line}\n" for line in shown), encoding="utf-8")
        return path

    return write
