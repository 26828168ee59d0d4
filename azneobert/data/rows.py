"""The row plan: which pieces of which documents share a row.

A document longer than a row is cut into windows, each framed ``[CLS] ... [SEP]``; windows are packed into rows of
exactly the sequence length. Packing works on the histogram of window lengths (longest-pack-first, Krell et al., arXiv
2107.02027), so its cost depends on the sequence length and not on the number of windows.

A plan may be a mixture by document length (NeoBERT's second phase: 20% of all documents, 40% of those of at least 1,024
tokens, 40% of those of at least 2,048). Each part is a pool of rows that training goes through at its own pace.
"""

from __future__ import annotations

import hashlib
import shutil
import tokenize
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from azneobert.data.store import HEADER_BYTES, TokenStore, read_meta, write_meta
from azneobert.errors import DataError

FORMAT_VERSION = 2
FRAME = 2  # [CLS] and [SEP] around each window
ARRAYS = {"store": np.uint8, "start": np.int64, "length": np.int32, "row_offsets": np.int64}
_CHUNK = 1 << 22
RESTORE = "`azneobert cache check`, then `dvc repro rows` makes it anew"


@dataclass(frozen=True)
class Pool:
    """Rows made of documents of at least `min_tokens`; `share` is the part of all samples that is drawn from them.

    `tokens` counts by store. `filler` of these tokens belong to shorter documents, which fill the room that the pool's
    own documents leave: two documents of 2,500 tokens do not fit into a row of 4,096.
    """

    min_tokens: int
    share: float
    rows: int
    windows: int
    tokens: dict[str, int]
    filler: int


@dataclass(frozen=True)
class PlanMeta:
    """The content of a plan's meta.json.

    `stores` gives the names, in the order that the array `store` indexes, and their sha256. Rows are in the order of
    `pools`. `rows_by_windows[n]` is the number of rows with n windows.
    """

    format_version: int
    sequence_length: int
    rows: int
    windows: int
    tokens: int
    fill: float
    pools: tuple[Pool, ...]
    rows_by_windows: tuple[int, ...]
    stores: dict[str, str]
    sha256: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> PlanMeta:
        """The content of a meta.json."""
        pools = tuple(Pool(**pool) for pool in content["pools"])
        return cls(**content | {"pools": pools, "rows_by_windows": tuple(content["rows_by_windows"])})


@dataclass(frozen=True)
class RowPlan:
    """Flat arrays over the windows, in row order, and where each row's windows begin.

    Attributes:
        meta: Sizes and hashes of the plan and of the stores that it reads.
        store: uint8 (windows,). Index into `meta.stores`.
        start: int64 (windows,). First token in that store.
        length: int32 (windows,). Tokens without the frame.
        row_offsets: int64 (rows + 1,). First window of each row.
    """

    meta: PlanMeta
    store: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row_offsets: np.ndarray

    def __len__(self) -> int:
        return self.meta.rows


def plan_rows(
    stores: dict[str, TokenStore],
    sequence_length: int,
    seed: int,
    mixture: Sequence[tuple[int, float]] = ((0, 1.0),),
) -> RowPlan:
    """Cut every document into windows and pack them; each token of each document stands in exactly one row.

    `seed` decides which windows of equal length meet in a row, so that rows mix the collections. `mixture` gives, for
    each pool, the minimum tokens of its documents and the share of samples drawn from it. Within each pool, each token
    of its documents then stands in exactly one row.

    Raises:
        DataError: a pool has no document.
    """
    planned = [
        _plan_pool(stores, sequence_length, np.random.default_rng([seed, number]), *part)
        for number, part in enumerate(mixture)
    ]
    arrays = {name: np.concatenate([pool[0][name] for pool in planned]) for name in ("store", "start", "length")}
    sizes = np.concatenate([pool[0]["windows_per_row"] for pool in planned])
    pools = tuple(pool[1] for pool in planned)
    del planned
    arrays["row_offsets"] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    rows, windows = len(sizes), len(arrays["length"])
    tokens = sum(sum(pool.tokens.values()) for pool in pools)
    meta = PlanMeta(
        format_version=FORMAT_VERSION,
        sequence_length=sequence_length,
        rows=rows,
        windows=windows,
        tokens=tokens,
        fill=round((tokens + FRAME * windows) / max(rows * sequence_length, 1), 6),
        pools=pools,
        rows_by_windows=tuple(np.bincount(sizes).tolist()),
        stores={name: opened.meta.tokens_sha256 for name, opened in stores.items()},
        sha256=_digest(arrays),
    )
    return RowPlan(meta, **arrays)


def write_plan(plan: RowPlan, path: Path) -> None:
    """Write a plan as a folder of .npy files and meta.json; it appears under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ARRAYS:
        np.save(partial / f"{name}.npy", getattr(plan, name))
    write_meta(partial / "meta.json", asdict(plan.meta))
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)


def open_plan(path: Path, stores: dict[str, TokenStore]) -> RowPlan:
    """Map a plan that was made from these stores.

    Raises:
        DataError: the plan is missing, damaged, or was made from other tokens.
    """
    meta = read_plan_meta(path)
    try:
        arrays = {name: _map(path / f"{name}.npy") for name in ARRAYS}
    except FileNotFoundError as error:
        raise _no_plan(error) from None
    except (EOFError, SyntaxError, ValueError, tokenize.TokenError) as error:
        raise _damaged_plan(path, error) from None
    expected = {name: opened.meta.tokens_sha256 for name, opened in stores.items()}
    if meta.stores != expected:
        names = [*expected, *(name for name in meta.stores if name not in expected)]
        changed = [name for name in names if meta.stores.get(name) != expected.get(name)]
        raise DataError(f"{path}: made from other tokens of {', '.join(changed)}; `dvc repro rows` makes it anew")
    sizes = {"row_offsets": meta.rows + 1}
    if any(a.shape != (sizes.get(n, meta.windows),) or a.dtype != ARRAYS[n] for n, a in arrays.items()):
        raise DataError(f"{path}: its files do not have the {meta.rows} rows of meta.json; {RESTORE}")
    return RowPlan(meta, **arrays)


def read_plan_meta(path: Path) -> PlanMeta:
    """The meta.json of a plan.

    Raises:
        DataError: it is missing or damaged, or of another format version.
    """
    try:
        return PlanMeta.from_json(read_meta(path / "meta.json", FORMAT_VERSION, "`dvc repro -f -s rows` makes it anew"))
    except FileNotFoundError as error:
        raise _no_plan(error) from None
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged_plan(path, error) from None


def _no_plan(error: FileNotFoundError) -> DataError:
    return DataError(f"{error.filename}: no whole row plan there; `dvc repro rows` writes it")


def _damaged_plan(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged row plan ({' '.join(str(error).split())}); {RESTORE}")


def verify_plan(path: Path, stores: dict[str, TokenStore]) -> RowPlan:
    """Open a plan and read every entry: windows inside their stores, rows that are not too full, the hash.

    Raises:
        DataError: naming the plan and what is wrong with it.
    """
    plan = open_plan(path, stores)
    sizes = np.asarray([stores[name].meta.tokens for name in plan.meta.stores])
    for first in range(0, plan.meta.windows, _CHUNK):
        store, start, length = (array[first : first + _CHUNK] for array in (plan.store, plan.start, plan.length))
        if (store >= len(sizes)).any() or (start < 0).any() or (length <= 0).any():
            raise DataError(f"{path}: a window of no tokens or of no store; {RESTORE}")
        if (start > sizes[store] - length).any():
            raise DataError(f"{path}: a window reaches beyond its token store; {RESTORE}")
    for first in range(0, plan.meta.rows, _CHUNK):
        bounds = plan.row_offsets[first : first + _CHUNK + 1]
        if (np.diff(bounds) <= 0).any() or bounds[0] < 0 or bounds[-1] > plan.meta.windows:
            raise DataError(f"{path}/row_offsets.npy: does not rise from row to row; {RESTORE}")
        framed = np.add.reduceat(plan.length[bounds[0] : bounds[-1]] + FRAME, bounds[:-1] - bounds[0])
        if (framed > plan.meta.sequence_length).any():
            raise DataError(f"{path}: a row holds more than {plan.meta.sequence_length} tokens; {RESTORE}")
    _verify_meta(path, plan)
    if _digest({name: getattr(plan, name) for name in ARRAYS}) != plan.meta.sha256:
        raise DataError(f"{path}: its sha256 is not that of meta.json: a byte has changed; {RESTORE}")
    return plan


def _verify_meta(path: Path, plan: RowPlan) -> None:
    """Check the counts in meta.json against the arrays: the stream takes its pools and its bounds from them."""
    meta, offsets = plan.meta, plan.row_offsets
    if offsets[0] != 0 or offsets[-1] != meta.windows:
        raise DataError(
            f"{path}/row_offsets.npy: goes from {offsets[0]} to {offsets[-1]}, expected 0 to {meta.windows}; {RESTORE}"
        )
    ends = np.cumsum([pool.rows for pool in meta.pools])
    windows = np.cumsum([pool.windows for pool in meta.pools])
    if (
        not len(ends)
        or min(pool.rows for pool in meta.pools) <= 0
        or ends[-1] != meta.rows
        or not np.array_equal(offsets[ends], windows)
        or np.bincount(np.diff(offsets)).tolist() != list(meta.rows_by_windows)
        or meta.tokens != plan.length.sum(dtype=np.int64)
    ):
        raise DataError(f"{path}/meta.json: does not count what the arrays hold; {RESTORE}")


def plan_facts(plan: RowPlan) -> dict[str, float]:
    """A summary of a plan: rows, fill, windows per row, and each collection's share of tokens.

    The shares are those of the training samples: each pool is weighted by how often it is drawn from.
    """
    meta = plan.meta
    facts: dict[str, float] = {
        "rows": meta.rows,
        "tokens": meta.tokens,
        "fill": meta.fill,
        "windows_per_row": round(meta.windows / max(meta.rows, 1), 3),
    }
    for name in meta.stores:
        share = sum(pool.share * pool.tokens[name] / max(sum(pool.tokens.values()), 1) for pool in meta.pools)
        facts[f"share/{name}"] = round(share, 4)
    for pool in meta.pools if len(meta.pools) > 1 else ():
        tokens = sum(pool.tokens.values())
        facts[f"pool_{pool.min_tokens}/rows"] = pool.rows
        facts[f"pool_{pool.min_tokens}/fill"] = round(
            (tokens + FRAME * pool.windows) / max(pool.rows * meta.sequence_length, 1), 6
        )
        facts[f"pool_{pool.min_tokens}/long_share"] = round(1 - pool.filler / max(tokens, 1), 4)
    return facts


def _plan_pool(
    stores: dict[str, TokenStore], sequence_length: int, rng: np.random.Generator, min_tokens: int, share: float
) -> tuple[dict[str, np.ndarray], Pool]:
    """The windows of one pool in row order, the number of windows of each of its rows, and its facts."""
    store, start, length, spare = _cut(list(stores.values()), sequence_length - FRAME, min_tokens)
    if min_tokens and spare.all():
        raise DataError(f"mixture: no document has {min_tokens} tokens or more; use a smaller min_tokens")
    order, windows_per_row = _pack(length + FRAME, spare, sequence_length, rng)
    arrays = {"store": store[order], "start": start[order], "length": length[order], "windows_per_row": windows_per_row}
    filler = int(length[order[spare[order]]].sum(dtype=np.int64)) if min_tokens else 0
    tokens = np.bincount(arrays["store"], minlength=len(stores))
    for index in range(len(stores)):
        tokens[index] = arrays["length"][arrays["store"] == index].sum(dtype=np.int64)
    pool = Pool(
        min_tokens=min_tokens,
        share=share,
        rows=len(windows_per_row),
        windows=len(order),
        tokens=dict(zip(stores, tokens.tolist(), strict=True)),
        filler=filler,
    )
    return arrays, pool


def _cut(
    stores: list[TokenStore], capacity: int, min_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut all stores into windows, in document order: full ones of `capacity` tokens, then the rest of the document.

    Returns store, start, length, and whether a window is of a document shorter than `min_tokens`.
    """
    store, start, length, spare = [], [], [], []
    for index, opened in enumerate(stores):
        sizes = np.diff(opened.offsets)
        counts = -(-sizes // capacity)
        document = np.repeat(np.arange(len(sizes), dtype=np.uint32), counts)
        # The window's number within its document: position in the run of equal document numbers.
        number = np.arange(len(document), dtype=np.int64)
        number -= np.repeat(np.cumsum(counts) - counts, counts)
        number *= capacity
        start.append(opened.offsets[document] + number)
        length.append(np.minimum(sizes[document] - number, capacity).astype(np.int32))
        spare.append(sizes[document] < min_tokens)
        store.append(np.full(len(document), index, dtype=np.uint8))
    return np.concatenate(store), np.concatenate(start), np.concatenate(length), np.concatenate(spare)


def _pack(
    lengths: np.ndarray, spare: np.ndarray, capacity: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An order of the windows (spare ones only as they are needed), and how many windows each row takes, row by row."""
    # A window's kind is its length; a spare window's kind is its length plus `capacity` + 1.
    kinds = (lengths + spare * (capacity + 1)).astype(np.uint16 if 2 * capacity < 65535 else np.uint32)
    histogram = np.bincount(kinds, minlength=2 * (capacity + 1))
    packed = _pack_histogram(histogram[: capacity + 1], histogram[capacity + 1 :], capacity)
    # Windows grouped by kind, in random order within a group: row recipes then take from the groups in turn.
    shuffled = rng.permutation(np.arange(len(lengths), dtype=np.uint32))
    by_kind = shuffled[np.argsort(kinds[shuffled], kind="stable")]
    del shuffled, kinds
    next_free = np.cumsum(histogram) - histogram
    order, sizes = [np.empty(0, dtype=np.uint32)], [np.empty(0, dtype=np.int64)]
    for count, recipe in packed:
        columns = []
        for kind in recipe:
            columns.append(by_kind[next_free[kind] : next_free[kind] + count])
            next_free[kind] += count
        order.append(np.stack(columns, axis=1).ravel())
        sizes.append(np.full(count, len(recipe)))
    return np.concatenate(order), np.concatenate(sizes)


# Rows of 10, and windows of 7, 6, 4, 3, 3, 3, 2 and 2 tokens. 7 and 6 open a row each; 4 fits behind 6 and the first 3
# behind 7, so both rows are full. The other two 3s open a row together, and the 2s fill it:
#
#     (6, 4)   (7, 3)   (3, 3, 2, 2)
#
# Equal rows are one entry with a count, so the work grows with the number of lengths and not of windows: three windows
# of 6, two of 4 and five of 3 become 2 x (6, 4), 1 x (6, 3), 1 x (3, 3, 3) and 1 x (3).
def _pack_histogram(histogram: np.ndarray, spare: np.ndarray, capacity: int) -> list[tuple[int, tuple[int, ...]]]:
    """How many rows of each composition (a tuple of kinds): longest windows first, tightest row first.

    Then rows with room take the longest spare windows that fit.
    """
    open_rows: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)  # by the space they have left
    for length in range(capacity, 0, -1):
        left = int(histogram[length])
        while left:
            space = next((s for s in range(length, capacity) if open_rows[s]), capacity)
            count, recipe = open_rows[space].pop() if space < capacity else (left * length, ())
            # An empty row takes as many windows of this length as fit; a row with company takes one at a time.
            copies = capacity // length if not recipe else 1
            placed = min(count, left) if recipe else left // copies
            if not recipe and not placed:
                copies, placed = left, 1
            if recipe and count > placed:
                open_rows[space].append((count - placed, recipe))
            open_rows[space - copies * length].append((placed, recipe + (length,) * copies))
            left -= placed * copies
    if spare.any():
        _fill(open_rows, spare.tolist(), capacity)
    return [entry for rows in open_rows.values() for entry in rows]


# Two rows (6) of 10, so both have room for 4, and spare windows of 3, 2 and 2 tokens, whose kinds are 14, 13 and 13:
# the length plus the capacity plus 1. The longest that fits goes first: one row takes the 3 and has room for 1,
# which no spare window fits; the other takes a 2, and then, when the turn comes to rows with room for 2, the other 2:
#
#     2 x (6)   ->   (6, 14)   (6, 13, 13)
def _fill(open_rows: dict[int, list[tuple[int, tuple[int, ...]]]], spare: list[int], capacity: int) -> None:
    for space in range(capacity - 1, 0, -1):
        rows, open_rows[space] = open_rows[space], []
        length = space
        while rows:
            while length and not spare[length]:
                length -= 1
            if not length:
                open_rows[space] += rows
                break
            count, recipe = rows.pop()
            placed = min(count, spare[length])
            spare[length] -= placed
            open_rows[space - length].append((placed, (*recipe, length + capacity + 1)))
            if count > placed:
                rows.append((count - placed, recipe))


def _map(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r" if file.stat().st_size > 128 else None)


def digest_of_files(path: Path) -> str:
    """The sha256 of a plan's files, to be compared with `PlanMeta.sha256`; the files are read and not mapped.

    Raises:
        OSError: one is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for name in ARRAYS:
        with (path / f"{name}.npy").open("rb") as file:
            file.seek(HEADER_BYTES)
            while piece := file.read(_CHUNK):
                digest.update(piece)
    return digest.hexdigest()


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ARRAYS:
        for first in range(0, len(arrays[name]), _CHUNK):
            digest.update(np.ascontiguousarray(arrays[name][first : first + _CHUNK]).data)
    return digest.hexdigest()
