"""The data stream: a pure function from (seed, sample index) to a row, its masked positions and its targets.

There is no state. Sample i belongs to epoch i // rows; the order within an epoch is a keyed permutation evaluated for
each index by itself; the masks come from a counter-based generator keyed by (seed, i). Rank, worker and micro-batch are
arithmetic on i, so they cannot change what a step trains on.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from azneobert.data.rows import FRAME, RowPlan
from azneobert.data.store import TokenStore
from azneobert.data.tokenizer import CLS, MASK, PAD, SEP

_ROUNDS = 6
_ORDER, _MASKS = 1, 2  # the two uses of the seed


@dataclass
class Batch:
    """Rows laid end to end. T = rows x sequence length, M = rows x masks per row.

    input_ids (T,), position_ids (T,): int64; positions restart in each window
    cu_seqlens (fixed bound,): int32; where windows begin, the padding of each row as a window of its own; the last
        entry repeats up to the bound
    max_seqlen: the sequence length, which no window exceeds
    masked_indices (M,): int64 positions in T; targets (M,): int64, the tokens that stood there
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    masked_indices: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return Batch(max_seqlen=self.max_seqlen, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; DataLoader calls this."""
        pinned = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return Batch(max_seqlen=self.max_seqlen, **pinned)


class Stream:
    """Batches of one row plan. `shuffle=False` gives the fixed order of a validation stream."""

    def __init__(
        self,
        plan: RowPlan,
        stores: dict[str, TokenStore],
        special_ids: dict[str, int],
        *,
        seed: int,
        masking_rate: float,
        shuffle: bool = True,
    ):
        self.plan = plan
        self.seed = seed
        self.shuffle = shuffle
        self.masks_per_row = max(1, round(masking_rate * plan.meta.sequence_length))
        self._tokens = [stores[name].tokens for name in plan.meta.stores]
        self._special = special_ids
        self._windows_per_row = np.diff(plan.row_offsets)
        self._bounds: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.plan)

    def batch(self, start: int, count: int) -> Batch:
        """Samples start, start + 1, ... start + count - 1."""
        samples = np.arange(start, start + count, dtype=np.uint64)
        ids, positions, maskable, starts = self._rows(self.row_numbers(samples))
        masked = self._masked_positions(samples, maskable)
        flat = (masked + np.arange(count)[:, None] * self.plan.meta.sequence_length).ravel()
        flat_ids = ids.ravel()
        targets = flat_ids[flat]
        flat_ids[flat] = self._special[MASK]
        cu_seqlens = np.full(self.cu_seqlens_bound(count), flat_ids.size, dtype=np.int32)
        cu_seqlens[: len(starts)] = starts
        return Batch(
            input_ids=torch.from_numpy(flat_ids),
            position_ids=torch.from_numpy(positions.ravel()),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=self.plan.meta.sequence_length,
            masked_indices=torch.from_numpy(flat),
            targets=torch.from_numpy(targets),
        )

    def row_numbers(self, samples: np.ndarray) -> np.ndarray:
        """The row of each sample (int64), each row once an epoch."""
        rows = np.uint64(len(self.plan))
        if not self.shuffle:
            return (samples % rows).astype(np.int64)
        epochs = samples // rows
        numbers = np.empty(len(samples), dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            numbers[inside] = permute(samples[inside] % rows, int(rows), _key(self.seed, _ORDER, int(epoch)))
        return numbers

    def cu_seqlens_bound(self, count: int) -> int:
        """The length of `cu_seqlens` for a batch of `count` rows: enough for the rows with the most windows."""
        if count not in self._bounds:
            windows = self._windows_per_row
            # A batch can reach into this many epochs, and the fullest rows may stand in each of them.
            epochs = min(count, (count - 2) // len(windows) + 2)
            most = min(-(-count // epochs), len(windows))
            largest = np.sort(np.partition(windows, len(windows) - most)[len(windows) - most :])[::-1]
            # Each row may end in padding, a window more; and one entry closes the last window.
            self._bounds[count] = int(np.repeat(largest, epochs)[:count].sum()) + count + 1
        return self._bounds[count]

    def _rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Ids, positions (both int64) and whether a token may be masked, each (rows, S); and all window starts."""
        length = self.plan.meta.sequence_length
        ids = np.full((len(rows), length), self._special[PAD], dtype=np.int64)
        positions = np.zeros((len(rows), length), dtype=np.int64)
        maskable = np.zeros((len(rows), length), dtype=bool)
        ramp = np.arange(length)
        starts: list[int] = []
        for i, row in enumerate(rows):
            at = 0
            for window in range(self.plan.row_offsets[row], self.plan.row_offsets[row + 1]):
                size = int(self.plan.length[window])
                first = self.plan.start[window]
                end = at + size + FRAME
                starts.append(i * length + at)
                ids[i, at] = self._special[CLS]
                ids[i, at + 1 : end - 1] = self._tokens[self.plan.store[window]][first : first + size]
                ids[i, end - 1] = self._special[SEP]
                positions[i, at:end] = ramp[: end - at]
                maskable[i, at + 1 : end - 1] = True
                at = end
            if at < length:
                starts.append(i * length + at)
                positions[i, at:] = ramp[: length - at]
        return ids, positions, maskable, starts

    def _masked_positions(self, samples: np.ndarray, maskable: np.ndarray) -> np.ndarray:
        """`masks_per_row` positions in each row, ascending, (rows, K) int64: those with the smallest random numbers."""
        keys = random_uint64(_key(self.seed, _MASKS, 0), samples, maskable.shape[1])
        keys[~maskable] = np.iinfo(np.uint64).max
        chosen = np.argpartition(keys, self.masks_per_row - 1, axis=1)[:, : self.masks_per_row]
        eligible = maskable.sum(axis=1)
        for row in np.flatnonzero(eligible < 2 * self.masks_per_row):
            # A row that is nearly empty keeps half of its tokens visible and repeats its masks up to the fixed number.
            distinct = np.argsort(keys[row])[: max(1, eligible[row] // 2)]
            chosen[row] = np.resize(distinct, self.masks_per_row)
        return np.sort(chosen, axis=1)


class _MicroBatches(IterableDataset):
    """The micro-batches of one rank, from a step on; worker w of W yields every W-th of them."""

    def __init__(self, stream: Stream, starts: Iterable[int], micro_batch: int):
        self.stream = stream
        self.starts = starts
        self.micro_batch = micro_batch

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, start in enumerate(self.starts):
            if number % stride == first:
                yield self.stream.batch(start, self.micro_batch)


@dataclass(frozen=True)
class SampleRange:
    """Where each micro-batch of one rank starts: arithmetic on the global sample index, and nothing else."""

    first_sample: int
    first_step: int
    steps: int
    global_batch: int
    micro_batch: int
    accumulation: int
    rank: int

    def __iter__(self) -> Iterator[int]:
        share = self.micro_batch * self.accumulation
        for step in range(self.first_step, self.steps):
            base = self.first_sample + step * self.global_batch + self.rank * share
            yield from range(base, base + share, self.micro_batch)


def micro_batch_loader(stream: Stream, samples: SampleRange, *, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The micro-batches of one rank in order, prepared by `workers` processes (0: in this one)."""
    dataset = _MicroBatches(stream, samples, samples.micro_batch)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_stopping_to_the_parent,
    )
    return iter(loader)


def _leave_stopping_to_the_parent(worker: int) -> None:
    # Ctrl-C and scancel reach the whole process group; a worker that died of it would take the run's checkpoint along.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def permute(indices: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """A keyed permutation of range(size), evaluated for these indices only: O(1) memory, (n,) uint64 -> int64.

    A Feistel network over the next even number of bits, walked until it falls into the range (format-preserving
    encryption by cycle walking, Black and Rogaway, CT-RSA 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = _feistel(indices.astype(np.uint64), half, key)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _feistel(values[outside], half, key)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def random_uint64(key: np.uint64, samples: np.ndarray, count: int) -> np.ndarray:
    """Counter-based random numbers, (samples, count) uint64: number j of sample i depends on (key, i, j) only."""
    rows = _mix(samples.astype(np.uint64) ^ key)
    with np.errstate(over="ignore"):
        return _mix(rows[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _feistel(values: np.ndarray, half: int, key: np.uint64) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    bits = np.uint64(half)
    left, right = values >> bits, values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _key(int(key), number, 0)) & mask)
    return (left << bits) | right


def _key(seed: int, use: int, number: int) -> np.uint64:
    """One 64-bit key from a seed, what it is for, and a counter."""
    words = np.asarray([seed, use, number], dtype=np.uint64)
    key = np.zeros(1, dtype=np.uint64)
    for word in words:
        key = _mix(key ^ word)
    return key[0]


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) after its increment; wraps around on purpose."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
