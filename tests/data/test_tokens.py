"""Documents -> token stores, by one process or by many, and after any interruption."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from azneobert.data import tokens
from azneobert.data.documents import Documents, write_part
from azneobert.data.store import TokenStore
from azneobert.data.tokenizer import tokenizer_sha256, train_tokenizer
from azneobert.data.tokens import tokenize_collection

VOCAB_SIZE = 300
SIZES = (70, 1, 40, 0, 25, 60)  # documents of each part
STRUCK = [0, 3, 69, 70, 111, 150]


@dataclass(frozen=True)
class Collection:
    """A folder with the documents of a collection, its duplicates and a tokenizer."""

    folder: Path

    @property
    def documents(self) -> Path:
        return self.folder / "documents"

    @property
    def duplicates(self) -> Path:
        return self.folder / "duplicates.npy"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def partial(self) -> Path:
        return self.folder / "partial"

    def write(self, texts: list[str], sizes: tuple[int, ...] = SIZES) -> None:
        self.documents.mkdir(parents=True, exist_ok=True)
        first = 0
        for number, size in enumerate(sizes):
            part = texts[first : first + size]
            held_out = [is_held_out(first + index) for index in range(size)]
            names = [str(first + index) for index in range(size)]
            write_part(self.documents, number, Documents(names, part, [bytes(16)] * size, held_out, [1] * size))
            first += size

    def strike(self, indices: list[int]) -> None:
        np.save(self.duplicates, np.asarray(indices, dtype=np.int64))

    def tokenize(self, target: str) -> dict[str, bytes]:
        """The files of both stores."""
        place = self.folder / target
        tokenize_collection(self.documents, self.duplicates, self.tokenizer, place, self.partial, vocab_size=VOCAB_SIZE)
        return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}

    def read(self, target: str) -> dict[str, list[list[int]]]:
        """The documents of both stores."""
        stores = {side: TokenStore.open(self.folder / target / side) for side in tokens.SIDES}
        for store in stores.values():
            store.verify()
        return {side: [store[i].tolist() for i in range(len(store))] for side, store in stores.items()}


def is_held_out(number: int) -> bool:
    return number % 7 == 2


def some_texts(count: int, seed: int = 1, longest: int = 30) -> list[str]:
    """Texts of made-up words; every eleventh is empty, and some hold what looks like a special token."""
    rng = np.random.default_rng(seed)
    syllables = np.asarray(["ba", "kı", "şə", "hər", "gö", "zəl", "çay", "\n", " [MASK] ", "[SEP]", "🌍", "ё"])
    return ["" if n % 11 == 5 else " ".join(rng.choice(syllables, rng.integers(1, longest))) for n in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter([some_texts(300)]), "bpe", VOCAB_SIZE, lowercase=False)


@pytest.fixture
def collection(tokenizer: Tokenizer, tmp_path: Path) -> Collection:
    made = Collection(tmp_path / "collection")
    made.write(some_texts(sum(SIZES)))
    made.strike(STRUCK)
    tokenizer.save(str(made.tokenizer))
    return made


def expected(collection: Collection, texts: list[str], struck: list[int]) -> dict[str, list[list[int]]]:
    """A plain loop over `encode`."""
    tokenizer = Tokenizer.from_file(str(collection.tokenizer))
    tokenizer.encode_special_tokens = True
    found: dict[str, list[list[int]]] = {"train": [], "validation": []}
    for number, text in enumerate(texts):
        if number not in struck:
            side = "validation" if is_held_out(number) else "train"
            found[side].append(tokenizer.encode(text, add_special_tokens=False).ids)
    return found


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch):
    """Tokenizes until so many parts are done, then breaks off."""

    def run(collection: Collection, after: int) -> list[Path]:
        real, done = tokens._tokenize_part, []

        def breaking_off(tokenizer, job):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(job)
            return real(tokenizer, job)

        with monkeypatch.context() as patch:
            patch.setattr(tokens, "_tokenize_part", breaking_off)
            with pytest.raises(KeyboardInterrupt):
                collection.tokenize("stores")
        assert not (collection.folder / "stores").exists()
        return sorted(collection.partial.rglob("*.tokens"))

    return run


def mark(shard: Path) -> None:
    """Make a whole shard one that can be told from what tokenizing gives."""
    np.full(shard.stat().st_size // 4, 7, dtype=np.int32).tofile(shard)


def test_stores_hold_what_a_plain_loop_over_encode_gives(collection: Collection) -> None:
    collection.tokenize("stores")
    wanted = expected(collection, some_texts(sum(SIZES)), STRUCK)
    assert collection.read("stores") == wanted
    assert [] in wanted["train"]
    assert min(map(len, wanted.values())) > 20


def test_a_store_says_what_it_was_made_from(collection: Collection) -> None:
    metas = tokenize_collection(
        collection.documents,
        collection.duplicates,
        collection.tokenizer,
        collection.folder / "stores",
        collection.partial,
        vocab_size=VOCAB_SIZE,
    )
    for side, meta in metas.items():
        assert TokenStore.open(collection.folder / "stores" / side).meta == meta
        assert meta.tokenizer_sha256 == tokenizer_sha256(collection.tokenizer)
        assert meta.vocab_size == VOCAB_SIZE
    assert metas["train"].documents + metas["validation"].documents == sum(SIZES) - len(STRUCK)


def test_nothing_is_left_of_the_parts_in_the_end(collection: Collection) -> None:
    collection.tokenize("stores")
    assert list(collection.partial.rglob("*")) == []


@pytest.mark.parametrize("text", ["[MASK]", "bakı [MASK] şəhər", "[CLS][SEP] [PAD]", "[UNK]"])
def test_a_special_token_written_in_a_document_is_text(collection: Collection, text: str) -> None:
    collection.write([text], (1, 0, 0, 0, 0, 0))
    collection.strike([])
    collection.tokenize("stores")
    [ids] = collection.read("stores")["train"]
    assert min(ids) >= 5
    assert Tokenizer.from_file(str(collection.tokenizer)).decode(ids) == text


def test_a_collection_all_of_whose_documents_are_duplicates_gives_empty_stores(collection: Collection) -> None:
    collection.strike(list(range(sum(SIZES))))
    collection.tokenize("stores")
    assert collection.read("stores") == {"train": [], "validation": []}


def test_several_processes_give_the_bytes_of_one(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    one = collection.tokenize("one")
    monkeypatch.setattr(tokens, "_SMALL", 0)
    assert collection.tokenize("many") == one


def test_an_interrupted_run_goes_on_with_the_parts_it_has(collection: Collection, interrupt) -> None:
    whole = collection.tokenize("whole")
    shards = interrupt(collection, 4)
    assert len(shards) == 8
    assert collection.tokenize("again") == whole
    mark(interrupt(collection, 4)[0])
    assert collection.tokenize("marked") != whole, "a shard was made again"


@pytest.mark.parametrize("suffix", ["train.tokens", "train.lengths", "validation.tokens", "validation.lengths"])
def test_a_part_that_lacks_one_of_its_files_is_made_again(collection: Collection, interrupt, suffix: str) -> None:
    whole = collection.tokenize("whole")
    shards = interrupt(collection, 4)
    mark(shards[0])
    (shards[0].parent / f"part-00000.{suffix}").unlink()
    assert collection.tokenize("again") == whole


def change_tokenizer(collection: Collection) -> None:
    train_tokenizer(iter([some_texts(300, seed=2)]), "bpe", VOCAB_SIZE, lowercase=True).save(str(collection.tokenizer))


def change_documents(collection: Collection) -> None:
    texts = some_texts(sum(SIZES))
    collection.write([*texts[:-1], "bakı"])  # in the last part


@pytest.mark.parametrize(
    "change", [change_tokenizer, change_documents, lambda collection: collection.strike([*STRUCK, 190])]
)
def test_shards_of_another_tokenizer_of_other_documents_or_duplicates_are_not_used(
    collection: Collection, interrupt, change
) -> None:
    for shard in interrupt(collection, 4):
        mark(shard)
    change(collection)
    changed = collection.tokenize("changed")
    assert list(collection.partial.rglob("*")) == []
    assert collection.tokenize("again") == changed


# Killed in the middle

_CHILD = """
import sys
from pathlib import Path
from azneobert.data import tokens
tokens._SMALL = 0
tokens.os.sched_getaffinity = lambda pid: {0, 1}
folder = Path(sys.argv[1])
tokens.tokenize_collection(
    folder / "documents", folder / "duplicates.npy", folder / "tokenizer.json", folder / "stores", folder / "partial",
    vocab_size=300,
)
"""


def start(collection: Collection) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _CHILD, str(collection.folder)], stderr=subprocess.DEVNULL)


def state_and_parent(process: str) -> tuple[str, int]:
    try:
        state, parent = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "gone", 0
    return state, int(parent)


def children(process: int) -> list[str]:
    names = [entry.name for entry in Path("/proc").iterdir()]
    return [name for name in names if name.isdigit() and state_and_parent(name)[1] == process]


def wait_until(condition, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert child.poll() is None, "the child has ended"
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.002)


def kill(child: subprocess.Popen) -> list[str]:
    """Kill it, and say which of its own children outlive it for more than some seconds."""
    orphans = children(child.pid)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 5
    while orphans and time.monotonic() < deadline:
        time.sleep(0.02)
        orphans = [orphan for orphan in orphans if state_and_parent(orphan)[0] not in ("gone", "Z")]
    for orphan in orphans:
        os.kill(int(orphan), 9)
    return orphans


def finished(collection: Collection) -> dict[str, tuple[int, int]]:
    """The whole parts so far: the inode and time of each of their shards' files."""
    files = {file.name: file.stat() for file in collection.partial.glob("*/part-*")}
    whole = [name.split(".")[0] for name in files if name.endswith("validation.lengths")]
    return {n: (f.st_ino, f.st_mtime_ns) for n, f in files.items() if n.split(".")[0] in whole}


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_run_leaves_no_worker_and_goes_on_to_the_same_bytes(collection: Collection) -> None:
    parts = 12
    texts = some_texts(2000, longest=60)
    collection.write(texts * parts, (len(texts),) * parts)
    collection.strike([5, 2500, 23_999])
    whole = collection.tokenize("whole")
    seen: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        child = start(collection)
        enough = len(seen) + 4
        wait_until(lambda enough=enough: len(finished(collection)) > enough, child)
        assert kill(child) == []
        now = finished(collection)
        assert len(seen) < len(now) < 4 * parts
        assert {name: now[name] for name in seen} == seen, "a finished shard was made again"
        assert not (collection.folder / "stores").exists()
        seen = now
    assert collection.tokenize("stores") == whole
    assert list(collection.partial.rglob("*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_killed_while_its_workers_start_leaves_none(collection: Collection) -> None:
    child = start(collection)
    wait_until(lambda: len(children(child.pid)) >= 3, child)  # two workers and multiprocessing's tracker
    assert kill(child) == []
