"""The data stream: a pure function from (seed, sample index) to a row, its masked positions and its targets.

There is no state. Sample i belongs to epoch i // rows (in a mixture i is the sample's number in its pool); the order
within an epoch is a keyed permutation evaluated for each index by itself; the masks come from a counter-based generator
keyed by (seed, i). Rank, worker and micro-batch are arithmetic on i, so they cannot change what a step trains on.
"""

from __future__ import annotations

import functools
import math
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from azneobert.data.rows import FRAME, RESTORE, RowPlan
from azneobert.data.store import RESTORE as RESTORE_STORE
from azneobert.data.store import Column, TokenStore
from azneobert.data.tokenizer import CLS, MASK, PAD, SEP
from azneobert.environment import end_with_parent
from azneobert.errors import DataError, TrainingError

SHARE_DENOMINATOR = 100  # the shares of a mixture are whole percents
_ROUNDS = 8
_WINDOWS_STEP = 16  # cu_seqlens is padded to a multiple of this, so that few lengths occur
_ORDER, _MASKS = 1, 2  # the two uses of the seed


@dataclass
class Batch:
    """Rows laid end to end. T = rows x sequence length, M = rows x masks per row.

    Attributes:
        input_ids: int64 (T,).
        position_ids: int64 (T,). Positions restart in each window.
        cu_seqlens: int32 (windows + 1, or a few more). Where windows begin; the padding of a row is a window of its
            own. The last entry is repeated up to a multiple of 16, unless each row is one window: this length then
            selects a faster attention kernel without windows. There is no bound common to all batches, since an empty
            window costs an attention kernel nearly as much as a short one. Two rows of 8 with windows of 5, 3 and 8
            have 0, 5, 8, 16 and twelve times 16 more; with windows of 8 and 8 they have 0, 8, 16.
        max_seqlen: The sequence length, which no window exceeds.
        masked_indices: int64 (M,). Positions in T.
        targets: int64 (M,). The tokens that stood there.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    masked_indices: torch.Tensor
    targets: torch.Tensor


@dataclass
class PackedBatch:
    """A batch as one int32 tensor, so that going to another process or to a GPU is one copy and not five.

    It holds cu_seqlens, input_ids, position_ids, masked_indices and targets, in this order; `sizes` are their lengths.
    """

    packed: torch.Tensor
    sizes: tuple[int, ...]
    max_seqlen: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, unpacked there."""
        cu_seqlens, *others = torch.split(self.packed.to(device, non_blocking=True), list(self.sizes))
        ids, positions, masked_indices, targets = (tensor.long() for tensor in others)
        return Batch(ids, positions, cu_seqlens, self.max_seqlen, masked_indices, targets)

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory; DataLoader calls this."""
        return PackedBatch(self.packed.pin_memory(), self.sizes, self.max_seqlen)


class Stream:
    """Batches of one row plan.

    `shuffle=False` gives a validation stream: rows in their order, and fewer masks in a row with padding.
    """

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
        self._tokens = [Column(stores[name].tokens) for name in plan.meta.stores]
        self._vocab_size = max(store.meta.vocab_size for store in stores.values())
        self._row_offsets, self._store, self._start, self._length = (
            Column(array, RESTORE) for array in (plan.row_offsets, plan.store, plan.start, plan.length)
        )
        self._special = special_ids
        self._mixture = Mixture([pool.share for pool in plan.meta.pools], [pool.rows for pool in plan.meta.pools])

    def __len__(self) -> int:
        return len(self.plan)

    def batch(self, start: int, count: int) -> Batch:
        """Samples start, start + 1, ... start + count - 1."""
        return self.packed_batch(start, count).to(torch.device("cpu"))

    def packed_batch(self, start: int, count: int) -> PackedBatch:
        """The samples of `batch`, as one tensor that is ready to go to another process or a GPU.

        Raises:
            DataError: the plan or a token store is damaged where these samples lie.
        """
        samples = np.arange(start, start + count, dtype=np.uint64)
        rows = self._rows(self.row_numbers(samples))
        masked = self._masked_positions(samples, rows)
        flat = (masked + np.arange(count)[:, None] * self.plan.meta.sequence_length).ravel()
        targets = rows.ids[flat]
        rows.ids[flat] = self._special[MASK]
        entries = len(rows.starts) + 1
        repeated = 0 if entries == count + 1 else -entries % _WINDOWS_STEP
        cu_seqlens = np.full(entries + repeated, rows.ids.size, dtype=np.int32)
        cu_seqlens[: len(rows.starts)] = rows.starts
        parts = (cu_seqlens, rows.ids, rows.positions, flat.astype(np.int32), targets)
        sizes = tuple(len(part) for part in parts)
        return PackedBatch(torch.from_numpy(np.concatenate(parts)), sizes, self.plan.meta.sequence_length)

    def row_numbers(self, samples: np.ndarray) -> np.ndarray:
        """The row of each sample (int64); each row of a pool occurs once in an epoch of that pool."""
        if not self.shuffle:
            return (samples % np.uint64(len(self.plan))).astype(np.int64)
        pools, places = self._mixture.locate(samples)
        numbers = np.empty(len(samples), dtype=np.int64)
        for number in np.unique(pools):
            inside = pools == number
            first_row, rows = self._mixture.first_rows[number], self._mixture.rows[number]
            numbers[inside] = first_row + self._shuffled(places[inside], rows, int(number))
        return numbers

    def _shuffled(self, places: np.ndarray, rows: int, pool: int) -> np.ndarray:
        epochs = places // np.uint64(rows)
        numbers = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            numbers[inside] = epoch_order(places[inside] % np.uint64(rows), rows, self.seed, pool, int(epoch))
        return numbers

    def _rows(self, rows: np.ndarray) -> _Rows:
        """Lay rows end to end, before masking."""
        length = self.plan.meta.sequence_length
        ids = np.full(len(rows) * length, self._special[PAD], dtype=np.int32)
        positions = np.empty(len(rows) * length, dtype=np.int32)
        ramp = np.arange(length, dtype=np.int32)
        starts: list[int] = []
        unmaskable: list[int] = []
        filled, eligible = np.zeros((2, len(rows)), dtype=np.int64)
        for i, row in enumerate(rows.tolist()):
            at, row_end = i * length, (i + 1) * length
            low, high = self._row_offsets.read(row, 2).tolist()
            if not 0 <= low < high <= low + length:
                raise self._damaged(row, f"windows {low:,} to {high:,}")
            windows = (column.read(low, high - low).tolist() for column in (self._store, self._start, self._length))
            for store, first, size in zip(*windows, strict=True):
                end = at + size + FRAME
                if size <= 0 or end > row_end or store >= len(self._tokens):
                    raise self._damaged(row, f"a window of {size:,} tokens of store {store} at {at - i * length}")
                ids[at] = self._special[CLS]
                self._tokens[store].read_into(ids[at + 1 : end - 1], first)
                ids[end - 1] = self._special[SEP]
                positions[at:end] = ramp[: size + FRAME]
                starts.append(at)
                unmaskable += (at, end - 1)
                eligible[i] += size
                at = end
            filled[i] = at - i * length
            if at < row_end:
                starts.append(at)
                unmaskable += range(at, row_end)
                positions[at:row_end] = ramp[: row_end - at]
        if ids.view(np.uint32).max() >= self._vocab_size:  # negative ones too
            self._refuse_outside(rows, ids)
        return _Rows(ids, positions, starts, unmaskable, filled, eligible)

    def _damaged(self, row: int, found: str) -> DataError:
        place = (self._row_offsets.path or self._store.path or Path("plan")).parent
        return DataError(
            f"{place}: row {row:,} has {found}, expected windows of {len(self._tokens)} stores that fit into "
            f"{self.plan.meta.sequence_length} tokens; {RESTORE}"
        )

    def _refuse_outside(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Raise an error that says where a token outside the vocabulary stands."""
        at = int(np.flatnonzero(ids.view(np.uint32) >= self._vocab_size)[0])
        row, place = int(rows[at // self.plan.meta.sequence_length]), at % self.plan.meta.sequence_length
        low, high = self._row_offsets.read(row, 2).tolist()
        lengths = self._length.read(low, high - low)
        window = low + int(np.searchsorted(np.cumsum(lengths + FRAME), place, side="right"))
        tokens = self._tokens[int(self._store.read(window, 1)[0])]
        before = int((lengths + FRAME)[: window - low].sum())
        position = int(self._start.read(window, 1)[0]) + place - before - 1
        raise DataError(
            f"{tokens.path}: token {ids[at]} at {position} is outside the vocabulary of {self._vocab_size}; "
            f"{RESTORE_STORE}"
        )

    def _masked_positions(self, samples: np.ndarray, rows: _Rows) -> np.ndarray:
        """`masks_per_row` positions in each row, ascending, (rows, K) int64: those with the smallest random numbers.

        At least half of a row's tokens stay visible. A validation row with padding has the same masked share as a full
        row; otherwise a collection of little more than a row would seem harder than it is. Masks are repeated up to K.
        """
        # The example at `mask_keys` has a full row. Of a validation row of 6 whose last 2 are padding, [CLS] a b [SEP],
        # three masks become 3 x 4 / 6 = 2, which would leave nothing to guess by: one of the two tokens, say b, is
        # masked and stands there three times. The answer is 2, 2 and 2.
        length = self.plan.meta.sequence_length
        numbers = random_uint32(_key(self.seed, _MASKS), samples, length)
        distinct = np.minimum(self.masks_per_row, rows.eligible // 2)
        if not self.shuffle:  # a training row has the masks that it has always had: it is full, or the last of its plan
            distinct = np.minimum(distinct, (2 * self.masks_per_row * rows.filled + length) // (2 * length))
        distinct = np.maximum(1, distinct)
        return smallest_positions(mask_keys(numbers, rows.unmaskable), distinct, self.masks_per_row)


@dataclass(frozen=True)
class _Rows:
    """Rows laid end to end: ids and positions int32 (T,), where windows start, which positions are never masked, how
    many positions of each row are no padding, and how many of those may be masked."""

    ids: np.ndarray
    positions: np.ndarray
    starts: list[int]
    unmaskable: list[int]
    filled: np.ndarray
    eligible: np.ndarray


class Mixture:
    """Which pool each sample is drawn from, and which of that pool's samples it is: arithmetic on the sample index.

    The pools take turns in a fixed pattern in which each has exactly its share, spread as evenly as possible.
    """

    # Shares of 0.2, 0.4 and 0.4 have a pattern of 5 turns, in which the pools have 1, 2 and 2. A pool with n turns has
    # them at 1/2n, 3/2n, ... of the pattern: pool 0 at 1/2, pools 1 and 2 at 1/4 and 3/4, the lower pool first.
    #
    #     sample               0  1  2  3  4    5  6  7  8  9
    #     pool                 1  2  0  1  2    1  2  0  1  2
    #     number in its pool   0  0  0  1  1    2  2  1  3  3
    #
    # Sample 8 is turn 3 of the second pattern: pool 1 had 2 turns in the first pattern, and 1 before it in this one.
    def __init__(self, shares: Sequence[float], rows: Sequence[int]):
        fractions = [Fraction(share).limit_denominator(SHARE_DENOMINATOR) for share in shares]
        period = math.lcm(*(fraction.denominator for fraction in fractions))
        counts = [int(fraction * period) for fraction in fractions]
        turns = sorted((Fraction(2 * k + 1, 2 * n), pool) for pool, n in enumerate(counts) for k in range(n))
        self.rows = list(rows)
        self.first_rows = [sum(rows[:pool]) for pool in range(len(rows))]
        self._pools = np.asarray([pool for _, pool in turns])
        self._counts = np.asarray(counts, dtype=np.uint64)
        before = [(self._pools[:turn] == pool).sum() for turn, pool in enumerate(self._pools)]
        self._before = np.asarray(before, dtype=np.uint64)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pool of each sample (int64), and the sample's number among those of its pool (uint64)."""
        turns = samples % np.uint64(len(self._pools))
        pools = self._pools[turns]
        return pools, samples // np.uint64(len(self._pools)) * self._counts[pools] + self._before[turns]


class _MicroBatches(IterableDataset):
    """The micro-batches of one rank, from a step on; worker w of W yields every W-th of them."""

    def __init__(self, stream: Stream, starts: Iterable[int], micro_batch: int):
        self.stream = stream
        self.starts = starts
        self.micro_batch = micro_batch

    def __iter__(self) -> Iterator[PackedBatch | DataError]:
        """An error is yielded in place of its batch: torch would wrap a raised one in a worker's traceback."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, start in enumerate(self.starts):
            if number % stride == first:
                try:
                    yield self.stream.packed_batch(start, self.micro_batch)
                except DataError as error:
                    yield error
                    return


@dataclass(frozen=True)
class SampleRange:
    """Where each micro-batch of one rank starts: arithmetic on the global sample index, and nothing else.

    `steps` holds the first sample of each step: `course.Course.steps` makes it.
    """

    steps: range
    micro_batch: int
    accumulation: int
    rank: int

    def __iter__(self) -> Iterator[int]:
        share = self.micro_batch * self.accumulation
        for first_sample in self.steps:
            base = first_sample + self.rank * share
            yield from range(base, base + share, self.micro_batch)


def micro_batch_loader(
    stream: Stream, samples: SampleRange, *, workers: int, pin_memory: bool
) -> Generator[PackedBatch, None, None]:
    """The micro-batches of one rank in order, prepared by `workers` processes (0: in this one).

    Close it: workers that still run when the interpreter ends keep it from ending, since they ignore its SIGTERM.

    Raises:
        DataError: see `Stream.packed_batch`.
        TrainingError: a worker was killed. torch may raise its own error anywhere in the program: see `lost_worker`.
    """
    dataset = _MicroBatches(stream, samples, samples.micro_batch)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(_leave_stopping_to_the_parent, os.getpid()),
        # A forked worker inherits the maps of the tokens; a spawned one would be sent all tokens through a pipe.
        multiprocessing_context="fork" if workers else None,
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (ConnectionError, EOFError) as error:  # it died while it was handing over a batch
        raise _without_worker(str(error)) from None
    finally:
        del batches  # stops the workers


def lost_worker(error: RuntimeError) -> TrainingError | None:
    """The error for the user, if this is torch's own, raised by a signal handler, for a killed worker of the loader."""
    return _without_worker(str(error)) if str(error).startswith("DataLoader worker") else None


def _without_worker(said: str) -> TrainingError:
    return TrainingError(
        f"runtime.workers: a worker of the data loader has ended ({said.strip().rstrip('.')}), perhaps killed for want "
        "of memory; start again to go on from the last checkpoint, with fewer workers if it comes again"
    )


def _leave_stopping_to_the_parent(parent: int, worker: int) -> None:
    # Ctrl-C and scancel reach the whole process group; a worker that died of it would cost the run its checkpoint.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # A worker that outlived a killed run would go on holding what it has inherited.
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the kernel was asked
        os._exit(1)


def epoch_order(places: np.ndarray, rows: int, seed: int, pool: int, epoch: int) -> np.ndarray:
    """The rows (int64) that stand at these places (uint64) of one epoch of a pool."""
    return permute(places, rows, _key(seed, _ORDER, pool, epoch))


# Of 7 there is a grid of 3 x 3, whose 9 places the Feistel network permutes; with the key 5:
#
#     index         0  1  2  3  4  5  6  7  8
#     in the grid   6  0  2  5  4  3  7  1  8
#     walked        6  0  2  5  4  3  1
#
# Index 6 lands on 7, which is outside the range, and goes on from there to 1. No other index ends on 1: the only other
# way there begins at 7, which is not an index.
def permute(indices: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """A keyed permutation of range(size), evaluated for these indices only: O(1) memory, (n,) uint64 -> int64.

    A Feistel network over the smallest near-square grid that holds the range, walked until it falls into the range
    (format-preserving encryption: generalised Feistel and cycle walking, Black and Rogaway, CT-RSA 2002).
    """
    left_size = math.isqrt(size - 1) + 1
    grid = left_size, -(-size // left_size)
    values = _feistel(indices.astype(np.uint64), grid, key)
    # The grid is larger than the range by less than one of its sides, so few indices walk twice.
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _feistel(values[outside], grid, key)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def random_uint32(key: np.uint64, samples: np.ndarray, count: int) -> np.ndarray:
    """Counter-based random numbers, (samples, count) uint32: number j of sample i depends on (key, i, j) only."""
    rows = _mix(samples.astype(np.uint64) ^ key)
    pairs = np.arange(-(-count // 2), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.ascontiguousarray(_mix(rows[:, None] + pairs).astype("<u8").view("<u4")[:, :count])


# Which tokens of a row are masked: those with the smallest keys. A key is a random number with its position behind it,
# so that no two keys of a row are equal. In decimal, with two masks and position 4 not to be masked:
#
#     position    0    1    2    3    4    5
#     random      7    2    2    9    0    2
#     key        70   21   22   93  (04)   25        (04): above all others
#
# The smallest two keys are 21 and 22, and their last digits are the answer: 1 and 2. By the random numbers alone any
# two of the positions 1, 2 and 5 would do, and which of them NumPy takes depends on the processor.
_POSITION_BITS = 31
_POSITIONS = np.uint64((1 << _POSITION_BITS) - 1)
_NEVER = np.uint64(1 << 63)


def mask_keys(numbers: np.ndarray, unmaskable: Sequence[int]) -> np.ndarray:
    """Keys that are distinct within a row, (rows, length) uint64, of random numbers (rows, length) uint32.

    `unmaskable` counts through all rows; its keys are above all others.
    """
    keys = numbers.astype(np.uint64) << np.uint64(_POSITION_BITS)
    keys |= np.arange(numbers.shape[1], dtype=np.uint64)
    keys.ravel()[unmaskable] |= _NEVER
    return keys


def smallest_positions(keys: np.ndarray, distinct: np.ndarray, count: int) -> np.ndarray:
    """The positions of the smallest keys of each row, as many as `distinct` says, ascending, (rows, count) int64.

    If there are fewer than `count`, they are repeated in turn.
    """
    chosen = np.partition(keys, count - 1, axis=1)[:, :count]
    for row in np.flatnonzero(distinct < count):
        chosen[row] = np.resize(np.sort(chosen[row])[: distinct[row]], count)
    return np.sort((chosen & _POSITIONS).astype(np.int64), axis=1)


def _feistel(values: np.ndarray, grid: tuple[int, int], key: np.uint64) -> np.ndarray:
    sizes = [np.uint64(size) for size in grid]
    halves = list(np.divmod(values, sizes[1]))
    for number in range(_ROUNDS):
        turned, other = number % 2, 1 - number % 2
        shift = _mix(halves[other] ^ _key(int(key), number)) % sizes[turned]
        halves[turned] = (halves[turned] + shift) % sizes[turned]
    return halves[0] * sizes[1] + halves[1]


@functools.lru_cache(maxsize=4096)
def _key(*words: int) -> np.uint64:
    """One 64-bit key from a seed, what it is for, and counters."""
    key = np.zeros(1, dtype=np.uint64)
    for word in words:
        key = _mix(key ^ np.uint64(word))
    return key[0]


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) after its increment; wraps around on purpose."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
