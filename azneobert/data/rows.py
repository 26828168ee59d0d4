"""The row plan: which pieces of which documents share a row.

A document longer than a row is cut into windows, each framed ``[CLS] ... [SEP]``; windows are packed into rows of
exactly the sequence length. Packing works on the histogram of window lengths (longest-pack-first, Krell et al., arXiv
2107.02027), so that its cost follows the sequence length and not the number of windows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from azneobert.data.store import TokenStore
from azneobert.errors import DataError

FORMAT_VERSION = 1
FRAME = 2  # [CLS] and [SEP] around each window
_ARRAYS = ("store", "start", "length", "row_offsets")


@dataclass(frozen=True)
class PlanMeta:
    """What a plan's meta.json holds. `stores` are names in the order that `store` indexes, with their sha256."""

    format_version: int
    sequence_length: int
    rows: int
    windows: int
    tokens: int
    fill: float
    stores: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class RowPlan:
    """Flat arrays over the windows, in row order, and where each row's windows begin.

    store: uint8 (windows,), index into `meta.stores`
    start: int64 (windows,), first token in that store
    length: int32 (windows,), tokens without the frame
    row_offsets: int64 (rows + 1,)
    """

    meta: PlanMeta
    store: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row_offsets: np.ndarray

    def __len__(self) -> int:
        return self.meta.rows


def plan_rows(stores: dict[str, TokenStore], sequence_length: int, seed: int) -> RowPlan:
    """Cut every document into windows and pack them; each token of each document stands in exactly one row.

    `seed` decides which windows of equal length meet in a row, so that rows mix the collections.
    """
    store, start, length = _cut(list(stores.values()), sequence_length - FRAME)
    order, row_offsets = _pack(length + FRAME, sequence_length, seed)
    arrays = {"store": store[order], "start": start[order], "length": length[order], "row_offsets": row_offsets}
    rows = len(row_offsets) - 1
    tokens = int(length.sum())
    filled = tokens + FRAME * len(length)
    meta = PlanMeta(
        format_version=FORMAT_VERSION,
        sequence_length=sequence_length,
        rows=rows,
        windows=len(length),
        tokens=tokens,
        fill=round(filled / max(rows * sequence_length, 1), 6),
        stores={name: opened.meta.tokens_sha256 for name, opened in stores.items()},
        sha256=_digest(arrays),
    )
    return RowPlan(meta, **arrays)


def write_plan(plan: RowPlan, path: Path) -> None:
    """Write a plan as a folder of .npy files and meta.json; it appears under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _ARRAYS:
        np.save(partial / f"{name}.npy", getattr(plan, name))
    (partial / "meta.json").write_text(json.dumps(asdict(plan.meta), indent=1) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)


def open_plan(path: Path, stores: dict[str, TokenStore]) -> RowPlan:
    """Map a plan that was made from these stores.

    Raises:
        DataError: the plan is missing, damaged, or was made from other tokens.
    """
    try:
        meta = PlanMeta(**json.loads((path / "meta.json").read_text()))
        arrays = {name: _map(path / f"{name}.npy") for name in _ARRAYS}
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no whole row plan there; `dvc repro rows` writes it") from None
    except (TypeError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged row plan ({error}); `dvc repro -f rows` makes it anew") from None
    expected = {name: opened.meta.tokens_sha256 for name, opened in stores.items()}
    if meta.stores != expected:
        names = [*expected, *(name for name in meta.stores if name not in expected)]
        changed = [name for name in names if meta.stores.get(name) != expected.get(name)]
        raise DataError(f"{path}: made from other tokens of {', '.join(changed)}; `dvc repro rows` makes it anew")
    if len(arrays["row_offsets"]) != meta.rows + 1 or len(arrays["length"]) != meta.windows:
        raise DataError(f"{path}: its files do not have the {meta.rows} rows of meta.json; `dvc repro -f rows`")
    return RowPlan(meta, **arrays)


def plan_facts(plan: RowPlan) -> dict[str, float]:
    """What a person wants to know of a plan: rows, fill, windows per row and each collection's share of tokens."""
    facts: dict[str, float] = {
        "rows": plan.meta.rows,
        "tokens": plan.meta.tokens,
        "fill": plan.meta.fill,
        "windows_per_row": round(plan.meta.windows / max(plan.meta.rows, 1), 3),
    }
    tokens = np.bincount(plan.store, weights=plan.length, minlength=len(plan.meta.stores))
    for name, share in zip(plan.meta.stores, tokens / max(plan.meta.tokens, 1), strict=True):
        facts[f"share/{name}"] = round(float(share), 4)
    return facts


def _cut(stores: list[TokenStore], capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows of all stores in document order: full ones of `capacity` tokens, then what is left."""
    store, start, length = [], [], []
    for index, opened in enumerate(stores):
        sizes = np.diff(opened.offsets)
        counts = -(-sizes // capacity)
        document = np.repeat(np.arange(len(sizes)), counts)
        # The window's number within its document: position in the run of equal document numbers.
        number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        start.append(opened.offsets[document] + number * capacity)
        length.append(np.minimum(sizes[document] - number * capacity, capacity).astype(np.int32))
        store.append(np.full(len(document), index, dtype=np.uint8))
    return np.concatenate(store), np.concatenate(start), np.concatenate(length)


def _pack(lengths: np.ndarray, capacity: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An order of the windows, and the row boundaries in it, such that no row exceeds `capacity`."""
    histogram = np.bincount(lengths, minlength=capacity + 1)
    recipes = _pack_histogram(histogram, capacity)
    # Windows grouped by length, in random order within a group: row recipes then take from the groups in turn.
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    next_free = np.cumsum(histogram) - histogram
    order, sizes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for count, recipe in recipes:
        columns = []
        for length in recipe:
            columns.append(by_length[next_free[length] : next_free[length] + count])
            next_free[length] += count
        order.append(np.stack(columns, axis=1).ravel())
        sizes.append(np.full(count, len(recipe)))
    return np.concatenate(order), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)


def _pack_histogram(histogram: np.ndarray, capacity: int) -> list[tuple[int, tuple[int, ...]]]:
    """How many rows of each composition (a tuple of window lengths): longest windows first, tightest row first."""
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
    return [entry for rows in open_rows.values() for entry in rows]


def _map(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r" if file.stat().st_size > 128 else None)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in _ARRAYS:
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
