import contextlib
import hashlib
import importlib
import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.data.rows import open_plan, plan_rows, write_plan
from azneobert.data.store import TokenStore
from azneobert.data.stream import (
    Mixture,
    SampleRange,
    Stream,
    epoch_order,
    mask_keys,
    micro_batch_loader,
    permute,
    smallest_positions,
)
from azneobert.data.tokenizer import SPECIAL_TOKENS
from azneobert.errors import DataError
from azneobert.kernels.flash import full_rows

PAD, _, CLS, SEP, MASK = range(5)
LENGTH = 32
MASKS = 6  # 20 % of 32
FULL = LENGTH - 2


@pytest.fixture(scope="module")
def stream(make_stream):
    """40 documents of mixed sizes: rows with one window, with many, full and padded."""
    return make_stream(np.random.default_rng(5).integers(1, 70, 40).tolist())


@pytest.fixture(scope="module")
def long_stream(make_stream):
    """1,000 rows of one document each."""
    return make_stream([FULL] * 1000)


@pytest.fixture(scope="module")
def make_mixed(make_store):
    """A stream of a mixture over one store with documents of these sizes."""

    def make(sizes, mixture, seed=7):
        stores = {"only": make_store(sizes)}
        special_ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
        plan = plan_rows(stores, LENGTH, seed, mixture)
        return Stream(plan, stores, special_ids, seed=seed, masking_rate=0.2)

    return make


@pytest.fixture(scope="module")
def mixed(make_mixed):
    """Three pools of 100 documents of mixed sizes, the longest of several rows."""
    return make_mixed(np.random.default_rng(5).integers(1, 100, 100).tolist(), ((0, 0.2), (20, 0.43), (50, 0.37)))


@pytest.fixture(scope="module")
def either(request, stream, mixed):
    """The plain stream or that of a mixture."""
    return {"plain": stream, "mixed": mixed}[request.param]


PLAIN_AND_MIXED = pytest.mark.parametrize("either", ["plain", "mixed"], indirect=True)


def restored(batch):
    """The ids of a batch before masking."""
    ids = batch.input_ids.clone()
    ids[batch.masked_indices] = batch.targets
    return ids


def samples_of(*bounds):
    return np.arange(*bounds, dtype=np.uint64)


def starts_of(batch):
    """Where the windows of a batch begin, and its end: `cu_seqlens` without what repeats the last entry."""
    return torch.unique(batch.cu_seqlens)


def joined(batches):
    """What consecutive batches say together, as one batch would."""
    parts = {"input_ids": [], "position_ids": [], "targets": [], "masked_indices": [], "starts": []}
    offset = 0
    for batch in batches:
        for name in ("input_ids", "position_ids", "targets"):
            parts[name].append(getattr(batch, name))
        parts["masked_indices"].append(batch.masked_indices + offset)
        parts["starts"].append(starts_of(batch)[:-1] + offset)
        offset += len(batch.input_ids)
    return {name: torch.cat(tensors).tolist() for name, tensors in parts.items()}


def row_from_plan(stream, row):
    """A row as the plan describes it, before masking: token n of the store is n + 5."""
    ids = []
    for window in range(stream.plan.row_offsets[row], stream.plan.row_offsets[row + 1]):
        first = stream.plan.start[window] + len(SPECIAL_TOKENS)
        ids += [CLS, *range(first, first + stream.plan.length[window]), SEP]
    return ids + [PAD] * (LENGTH - len(ids))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 255, 256, 257, 1000, 4097])
def test_the_permutation_is_a_bijection(size):
    for key in range(5):
        values = permute(np.arange(size, dtype=np.uint64), size, np.uint64(key))
        assert np.array_equal(np.sort(values), np.arange(size))


@given(size=st.integers(1, 2000), key=st.integers(0, 2**64 - 1), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_permutation_of_one_index_does_not_depend_on_the_others(size, key, data):
    whole = permute(np.arange(size, dtype=np.uint64), size, np.uint64(key))
    index = data.draw(st.integers(0, size - 1))
    assert permute(np.asarray([index], dtype=np.uint64), size, np.uint64(key)) == whole[index]
    assert np.array_equal(np.sort(whole), np.arange(size))


def test_each_epoch_sees_each_row_once_in_an_order_of_its_own(long_stream):
    rows = len(long_stream)
    epochs = [long_stream.row_numbers(np.arange(e * rows, (e + 1) * rows, dtype=np.uint64)) for e in range(4)]
    for order in epochs:
        assert np.array_equal(np.sort(order), np.arange(rows))
    for one, other in itertools.combinations([np.arange(rows), *epochs], 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
        assert (one == other).sum() < 10


def test_another_seed_gives_another_order(make_stream, long_stream):
    samples = np.arange(len(long_stream), dtype=np.uint64)
    other = make_stream([FULL] * 1000, seed=8)
    assert abs(np.corrcoef(long_stream.row_numbers(samples), other.row_numbers(samples))[0, 1]) < 0.1


def test_a_validation_stream_keeps_the_order_of_the_plan(make_stream):
    fixed = make_stream([FULL] * 10, shuffle=False)
    assert fixed.row_numbers(np.arange(12, dtype=np.uint64)).tolist() == [*range(10), 0, 1]


@PLAIN_AND_MIXED
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 6, 8, 12])
def test_a_batch_is_the_same_however_it_is_cut(either, micro_batch):
    start, count = len(either) - 7, 24
    whole = joined([either.batch(start, count)])
    assert joined(either.batch(start + cut, micro_batch) for cut in range(0, count, micro_batch)) == whole


@PLAIN_AND_MIXED
@pytest.mark.parametrize(("ranks", "micro_batch", "workers"), [(1, 4, 0), (1, 16, 4), (2, 2, 2), (8, 1, 0), (8, 2, 4)])
def test_any_number_of_ranks_and_workers_trains_on_the_same_samples(either, ranks, micro_batch, workers):
    global_batch, first_sample, steps = 16, 5, 3
    accumulation = global_batch // ranks // micro_batch
    loaders = [
        micro_batch_loader(
            either,
            SampleRange(
                range(first_sample + global_batch, first_sample + steps * global_batch, global_batch),
                micro_batch,
                accumulation,
                rank,
            ),
            workers=workers,
            pin_memory=False,
        )
        for rank in range(ranks)
    ]
    for step in range(1, steps):
        shares = [list(itertools.islice(loader, accumulation)) for loader in loaders]
        expected = either.batch(first_sample + step * global_batch, global_batch)
        batches = [batch.to(torch.device("cpu")) for batch in itertools.chain(*shares)]
        assert joined(batches) == joined([expected])
    assert all(next(loader, None) is None for loader in loaders)


def test_targets_are_the_original_tokens_and_everything_else_is_untouched(stream):
    count = 2 * len(stream)
    batch = stream.batch(0, count)
    assert (batch.input_ids[batch.masked_indices] == MASK).all()
    restored = batch.input_ids.clone()
    restored[batch.masked_indices] = batch.targets
    rows = stream.row_numbers(np.arange(count, dtype=np.uint64))
    assert restored.view(count, LENGTH).tolist() == [row_from_plan(stream, row) for row in rows]


def test_special_tokens_and_padding_are_never_masked(stream):
    batch = stream.batch(0, 10 * len(stream))
    assert (batch.targets >= len(SPECIAL_TOKENS)).all()
    assert (batch.input_ids == PAD).any()


def test_every_row_masks_the_same_number_of_tokens(stream, long_stream):
    for batch in (stream.batch(0, 50), long_stream.batch(0, 50)):
        assert (batch.masked_indices.view(50, MASKS) // LENGTH).tolist() == [[row] * MASKS for row in range(50)]
    assert len(torch.unique(batch.masked_indices)) == 50 * MASKS


def test_masks_of_the_same_row_differ_between_epochs(make_stream):
    fixed = make_stream([FULL] * 50, shuffle=False)
    first, second = fixed.batch(0, 50), fixed.batch(50, 50)
    differ = (first.masked_indices != second.masked_indices).view(50, MASKS).any(1)
    assert differ.all()


@pytest.fixture(scope="module")
def masked(make_stream):
    """Whether each token of one full row is masked, epoch after epoch: (epochs, tokens)."""
    batch = make_stream([FULL]).batch(0, 2000)
    flags = torch.zeros(2000 * LENGTH).index_fill_(0, batch.masked_indices, 1.0)
    return flags.view(2000, LENGTH)[:, 1:-1]


def test_every_token_of_a_row_is_masked_equally_often(masked):
    # Five standard deviations of a binomial around MASKS / FULL.
    assert (masked.mean(0) - MASKS / FULL).abs().max() < 5 * (0.2 * 0.8 / len(masked)) ** 0.5


def test_masks_of_two_tokens_of_a_row_fall_independently(masked):
    correlation = torch.corrcoef(masked.T).fill_diagonal_(0)
    # A fixed number of masks a row leaves -1 / (FULL - 1) between any two.
    assert correlation.abs().max() < 1 / (FULL - 1) + 5 / len(masked) ** 0.5


def test_positions_restart_in_each_window(stream):
    batch = stream.batch(0, len(stream))
    tokens = torch.arange(len(batch.position_ids))
    starts = starts_of(batch)
    window = torch.searchsorted(starts, tokens, right=True) - 1
    assert torch.equal(batch.position_ids, tokens - starts[window])


def test_each_window_and_each_row_s_padding_is_an_entry_of_cu_seqlens(stream):
    batch = stream.batch(0, len(stream))
    restored = batch.input_ids.clone()
    restored[batch.masked_indices] = batch.targets
    ids = restored.view(-1, LENGTH)
    padding = (ids == PAD) & (torch.roll(ids, 1, dims=1) == SEP)
    expected = torch.nonzero(((ids == CLS) | padding).ravel()).ravel().tolist()
    assert starts_of(batch).tolist() == [*expected, ids.numel()]
    assert (starts_of(batch).diff() <= batch.max_seqlen).all()


def test_all_of_a_batch_but_its_windows_has_the_same_shape_in_every_batch(crowded):
    batches = [crowded.batch(start, 8) for start in range(3 * len(crowded))]
    shapes = {
        tuple(tuple(value.shape) for name, value in vars(batch).items() if name not in ("cu_seqlens", "max_seqlen"))
        for batch in batches
    }
    assert shapes == {((8 * LENGTH,), (8 * LENGTH,), (8 * MASKS,), (8 * MASKS,))}
    assert {batch.max_seqlen for batch in batches} == {LENGTH}
    assert {len(batch.cu_seqlens) for batch in batches} == {16, 32}


def test_a_crowded_row_that_ends_one_epoch_and_begins_the_next_fits_its_batch(make_stream):
    crowded = make_stream([1] * 10 + [FULL] * 2)
    for start in range(200):
        assert starts_of(crowded.batch(start, 2))[-1] == 2 * LENGTH


def test_a_batch_larger_than_an_epoch_wraps_around(make_stream):
    small = make_stream([1] * 10 + [FULL] * 2)
    assert joined([small.batch(1, 11)]) == joined(small.batch(start, 1) for start in range(1, 12))


@pytest.mark.parametrize("tokens", [2, 5, 11])
def test_a_nearly_empty_row_keeps_half_its_tokens_visible(make_stream, tokens):
    stream = make_stream([tokens])
    for sample in range(20):
        assert distinct_masks(stream, sample) == tokens // 2


def test_a_row_of_twice_its_masks_is_not_nearly_empty(make_stream):
    assert distinct_masks(make_stream([2 * MASKS]), 0) == MASKS


@pytest.mark.parametrize(("tokens", "masks"), [(1, 1), (2, 1), (4, 1), (11, 2), (20, 4), (25, 5), (FULL, MASKS)])
def test_a_validation_row_with_padding_masks_the_share_of_its_tokens_that_a_full_one_does(make_stream, tokens, masks):
    stream = make_stream([tokens], shuffle=False)
    for sample in range(20):
        assert distinct_masks(stream, sample) == masks


def distinct_masks(stream, sample):
    """How many; with the others they come up to the number of a full row, each as often as the others or once more."""
    batch = stream.batch(sample, 1)
    assert len(batch.masked_indices) == MASKS
    assert (batch.targets >= len(SPECIAL_TOKENS)).all()
    repeats = torch.unique(batch.masked_indices, return_counts=True)[1]
    assert repeats.max() - repeats.min() <= 1
    return len(repeats)


def test_the_worked_example_beside_the_masks_is_right(make_store):
    stores = {"only": make_store([2])}
    special_ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    plan = plan_rows(stores, 6, seed=1)
    found = set()
    for seed in range(20):
        stream = Stream(plan, stores, special_ids, seed=seed, masking_rate=0.5, shuffle=False)
        found.add(tuple(stream.batch(0, 1).masked_indices.tolist()))
    assert found == {(1, 1, 1), (2, 2, 2)}


def test_the_order_in_which_stores_are_named_does_not_change_what_is_read(make_store):
    stores = {"a": make_store([FULL] * 3), "b": make_store([11] * 7)}
    plan = plan_rows(stores, LENGTH, seed=1)
    special_ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    turned = dict(reversed(stores.items()))
    one, other = (Stream(plan, given, special_ids, seed=1, masking_rate=0.2) for given in (stores, turned))
    assert joined([one.batch(0, len(plan))]) == joined([other.batch(0, len(plan))])


# Masks are the same on every processor


def test_the_worked_example_beside_the_keys_is_right():
    keys = mask_keys(np.asarray([[7, 2, 2, 9, 0, 2]], dtype=np.uint32), [4])
    assert np.argsort(keys[0]).tolist() == [1, 2, 5, 0, 3, 4]
    assert smallest_positions(keys, np.asarray([2]), 2).tolist() == [[1, 2]]


@pytest.mark.parametrize("largest", [0, 1, 2**32 - 1])
def test_the_keys_of_a_row_are_distinct_and_those_of_special_tokens_come_last(largest):
    numbers = np.random.default_rng(1).integers(0, largest, (5, 5000), dtype=np.uint32, endpoint=True)
    numbers[0] = largest
    unmaskable = list(range(0, numbers.size, 3))
    flags = np.isin(np.arange(numbers.size), unmaskable).reshape(numbers.shape)
    for keys, never in zip(mask_keys(numbers, unmaskable), flags, strict=True):
        assert len(np.unique(keys)) == len(keys)
        assert keys[~never].max() < keys[never].min()


# Rows with many ties, full ones and nearly empty ones, of the two published lengths and of a short one.
CHOICE_WITH_TIES = """
import hashlib
import numpy as np
from azneobert.data.stream import mask_keys, smallest_positions

rng = np.random.default_rng(3)
found = hashlib.sha256()
for rows, length, count in ((40, 1024, 205), (10, 4096, 819), (60, 128, 26)):
    numbers = rng.integers(0, 7, (rows, length), dtype=np.uint32)
    eligible = np.where(np.arange(rows) % 4, length, 3 * count // 2)
    unmaskable = [row * length + at for row in range(rows) for at in range(eligible[row], length)]
    distinct = np.where(eligible < length, count // 2, count)
    found.update(smallest_positions(mask_keys(numbers, unmaskable), distinct, count).astype("<i8").tobytes())
print(found.hexdigest())
"""


def test_ties_are_resolved_alike_whatever_the_processor_can_do():
    features = importlib.import_module("numpy._core._multiarray_umath")
    extras = [name for name in features.__cpu_dispatch__ if features.__cpu_features__[name]]
    if not extras:
        pytest.skip("NumPy uses nothing of this processor that could be switched off")
    found = {}
    for kept in range(len(extras) + 1):  # from the oldest processor that NumPy runs on up to this one
        environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": ",".join(extras[kept:])}
        command = [sys.executable, "-c", CHOICE_WITH_TIES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
        found[kept] = done.stdout
    assert len(set(found.values())) == 1, found


# The order


def test_the_permutation_is_a_bijection_at_every_small_size():
    for size in range(1, 300):
        assert np.array_equal(np.sort(permute(samples_of(size), size, np.uint64(size))), np.arange(size))


@pytest.mark.parametrize("size", [12_000_000, 2**24, 2**24 + 1])
def test_the_permutation_of_millions_of_rows_is_injective_and_in_range(size):
    rng = np.random.default_rng(1)
    for key in (0, 1, 2**64 - 1):
        near = np.concatenate([samples_of(50_000), samples_of(size - 50_000, size)])
        far = rng.choice(size, 100_000, replace=False).astype(np.uint64)
        for chosen in (near, far):
            values = permute(chosen, size, np.uint64(key))
            assert len(np.unique(values)) == len(chosen)
            assert values.min() >= 0
            assert values.max() < size
            spread = np.bincount(values * 10 // size, minlength=10) / len(chosen)
            assert np.abs(spread - 0.1).max() < 0.01


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_each_row_of_a_small_pool_stands_at_each_place_equally_often(size):
    orders = np.asarray([epoch_order(samples_of(size), size, 7, 0, epoch) for epoch in range(1500)])
    for place in range(size):
        found = np.bincount(orders[:, place], minlength=size) / len(orders)
        assert np.abs(found - 1 / size).max() < 5 * (1 / size / len(orders)) ** 0.5


@pytest.mark.parametrize("size", [1000, 50_000, 12_000_000])
def test_consecutive_epochs_have_nothing_to_do_with_each_other(size):
    places = samples_of(min(size, 50_000))
    orders = [epoch_order(places, size, 7, 0, epoch) for epoch in range(5)]
    ranks = [np.argsort(np.argsort(order)) for order in orders]
    for one, other in itertools.combinations([np.arange(len(places)), *ranks], 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / len(places) ** 0.5


@pytest.mark.parametrize("size", [1000, 30_000])
def test_neighbours_in_one_epoch_are_not_neighbours_in_the_next(size):
    places = [np.argsort(epoch_order(samples_of(size), size, 7, 0, epoch)) for epoch in range(6)]
    rows = np.arange(size)
    for one, other in itertools.pairwise([rows, *places]):
        row_at = np.argsort(one)  # which row stands at each place of the first
        distance = np.abs(np.diff(other[row_at]))
        assert (distance == 1).sum() < 15  # two in a random order, whatever its size
        assert distance.mean() == pytest.approx(size / 3, rel=0.1)


def test_the_pools_of_a_mixture_have_orders_of_their_own():
    one, other = (epoch_order(samples_of(1000), 1000, 7, pool, 0) for pool in range(2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


# Mixtures

SHARES = [(1.0,), (0.2, 0.4, 0.4), (0.2, 0.43, 0.37), (0.01, 0.99), (0.07, 0.29, 0.57, 0.07), (0.01,) * 100]


def percents(shares):
    return np.asarray([round(100 * share) for share in shares])


@pytest.mark.parametrize("shares", SHARES)
def test_every_hundred_samples_in_a_row_have_exactly_the_shares(shares):
    pools, _ = Mixture(shares, [9] * len(shares)).locate(samples_of(350))
    for first in range(250):
        assert np.array_equal(np.bincount(pools[first : first + 100], minlength=len(shares)), percents(shares))


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("batch", [1, 4, 7, 48, 512])
def test_every_batch_has_nearly_the_shares(shares, batch):
    pools, _ = Mixture(shares, [9] * len(shares)).locate(samples_of(200 * batch))
    for cut in pools.reshape(200, batch):
        assert np.abs(np.bincount(cut, minlength=len(shares)) - percents(shares) / 100 * batch).max() < 2


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("first", [0, 123, 200_000_000, 2**40 + 3])
def test_locate_is_a_bijection(shares, first):
    mixture = Mixture(shares, [9] * len(shares))
    pools, places = mixture.locate(samples_of(first, first + 1000))
    for pool, before in enumerate(np.bincount(mixture.locate(samples_of(first % 100))[0], minlength=len(shares))):
        start = first // 100 * percents(shares)[pool] + before
        mine = places[pools == pool]
        assert np.array_equal(mine, np.arange(start, start + len(mine), dtype=np.uint64))


def test_each_pool_s_rows_come_once_in_each_epoch_of_the_pool(mixed):
    numbers = mixed.row_numbers(samples_of(40 * len(mixed)))
    first = 0
    for pool in mixed.plan.meta.pools:
        mine = numbers[(numbers >= first) & (numbers < first + pool.rows)] - first
        assert len(mine) == pytest.approx(pool.share * len(numbers), abs=2)
        epochs = mine[: len(mine) // pool.rows * pool.rows].reshape(-1, pool.rows)
        assert len(epochs) > 5
        assert (np.sort(epochs, axis=1) == np.arange(pool.rows)).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)
        first += pool.rows


# What stands in the rows


def test_every_token_of_every_document_is_seen_exactly_once_an_epoch(stream):
    for epoch in range(3):
        ids = restored(stream.batch(epoch * len(stream), len(stream)))
        seen = torch.sort(ids[ids >= len(SPECIAL_TOKENS)]).values
        assert torch.equal(seen, torch.arange(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + stream.plan.meta.tokens))


def test_every_token_of_a_pool_s_documents_is_seen_exactly_once_an_epoch_of_the_pool(make_mixed):
    sizes = np.random.default_rng(6).integers(1, 60, 60)
    mixed = make_mixed(sizes.tolist(), ((0, 0.5), (25, 0.5)))
    long = np.repeat(sizes, sizes) >= 25
    numbers = mixed.row_numbers(samples_of(6 * len(mixed)))
    first = 0
    for pool, own in zip(mixed.plan.meta.pools, (np.ones(len(long), bool), long), strict=True):
        mine = np.flatnonzero((numbers >= first) & (numbers < first + pool.rows))
        for epoch in mine[: len(mine) // pool.rows * pool.rows].reshape(-1, pool.rows):
            ids = torch.cat([restored(mixed.batch(int(sample), 1)) for sample in epoch]).numpy()
            seen = np.bincount(ids[ids >= len(SPECIAL_TOKENS)] - len(SPECIAL_TOKENS), minlength=len(long))
            assert (seen[own] == 1).all()
            assert (seen[~own] <= 1).all()
        first += pool.rows


@PLAIN_AND_MIXED
def test_no_token_sees_another_document_or_another_window(either):
    count = 4 * len(either)
    batch = either.batch(3, count)
    ids, bounds = restored(batch), starts_of(batch).tolist()
    plan = either.plan
    documents = dict(zip((plan.start + len(SPECIAL_TOKENS)).tolist(), plan.length.tolist(), strict=True))
    assert bounds[0] == 0
    assert set(range(0, count * LENGTH + 1, LENGTH)) <= set(bounds), "a window reaches over the end of its row"
    for begin, end in itertools.pairwise(bounds):
        window = ids[begin:end].tolist()
        assert batch.position_ids[begin:end].tolist() == list(range(end - begin))
        if window[0] == PAD:
            assert window == [PAD] * len(window)
            assert end % LENGTH == 0
        else:
            first = window[1]
            assert window == [CLS, *range(first, first + documents[first]), SEP]


# Far along, and stable


@PLAIN_AND_MIXED
def test_a_batch_far_along_is_the_same_however_it_is_cut(either):
    start = 200_000_000
    whole = either.batch(start, 24)
    for size in (1, 3, 8):
        assert joined(either.batch(start + cut, size) for cut in range(0, 24, size)) == joined([whole])
    loader = micro_batch_loader(either, SampleRange(range(start, start + 16, 16), 4, 2, 1), workers=0, pin_memory=False)
    assert joined(batch.to(torch.device("cpu")) for batch in loader) == joined([either.batch(start + 8, 8)])


def digest(stream, start):
    found = hashlib.sha256()
    for values in joined([stream.batch(start, 12)]).values():
        found.update(np.asarray(values, dtype="<i8").tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("either", "start", "golden"),
    [
        ("plain", 0, "b7796f0011517f9d"),
        ("plain", 200_000_000, "35c29ffd728c279f"),
        ("mixed", 0, "c0de3b6912db18f0"),
        ("mixed", 200_000_000, "54495602f479207f"),
    ],
    indirect=["either"],
)
def test_the_stream_means_what_it_has_always_meant(either, start, golden):
    """Another digest is another order, other rows or other masks: a run begun before it would not go on as it was."""
    assert digest(either, start) == golden


# The length of cu_seqlens


@pytest.fixture(scope="module")
def crowded(make_mixed):
    """A pool with one crowded row of ten windows beside eight of one, and a pool of three rows of one window."""
    sizes = [1] * 10 + [FULL] * 5 + [FULL - 1] * 3
    return make_mixed(sizes, ((0, 0.5), (FULL, 0.5)))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 40])
def test_cu_seqlens_ascends_to_the_total_in_the_smallest_multiple_of_16_that_holds_it(crowded, mixed, stream, count):
    for source in (crowded, mixed, stream):
        for start in range(0, 150):
            batch = source.batch(start, count)
            entries = len(starts_of(batch))  # windows + 1
            assert entries <= len(batch.cu_seqlens) < entries + 16
            assert len(batch.cu_seqlens) % 16 == 0 or entries == count + 1
            assert batch.cu_seqlens.dtype == torch.int32
            assert (batch.cu_seqlens[:entries].diff() > 0).all()
            assert (batch.cu_seqlens[entries - 1 :] == count * LENGTH).all()


@pytest.mark.parametrize(("rows", "length"), [(1, 16), (7, 16), (8, 32), (15, 32), (16, 48)])
def test_fifteen_windows_fill_sixteen_entries_and_one_more_takes_sixteen_more(make_stream, rows, length):
    alike = make_stream([FULL - 1] * 20)  # a window, and padding, in each row
    batch = alike.batch(3, rows)
    assert len(starts_of(batch)) == 2 * rows + 1
    assert len(batch.cu_seqlens) == length


@pytest.mark.parametrize("rows", [1, 8, 15, 16, 48])
def test_a_batch_of_full_rows_repeats_nothing_and_is_known_by_that(make_stream, rows):
    batch = make_stream([FULL] * 20).batch(0, rows)
    assert batch.cu_seqlens.tolist() == list(range(0, rows * LENGTH + 1, LENGTH))
    assert full_rows(len(batch.input_ids), batch.cu_seqlens, batch.max_seqlen) == rows


@pytest.mark.parametrize("rows", [2, 7, 15, 16, 31, 48])
def test_rows_of_which_one_is_not_full_are_not_taken_for_full_ones(make_stream, rows):
    stream = make_stream([FULL] * 60 + [FULL - 1])
    found = {len(starts_of(batch)) for batch in (stream.batch(start, rows) for start in range(61))}
    assert found == {rows + 1, rows + 2}
    for start in range(61):
        batch = stream.batch(start, rows)
        full = len(starts_of(batch)) == rows + 1
        assert (full_rows(len(batch.input_ids), batch.cu_seqlens, batch.max_seqlen) == rows) == full


# Damage


@pytest.fixture
def on_disk(make_store, tmp_path):
    """A stream whose plan and tokens are files of the test's own."""
    store = shutil.copytree(make_store([3, 70, 12, 30, 1, 31, 200, 8]).path, tmp_path / "store")
    stores = {"only": TokenStore.open(store)}
    write_plan(plan_rows(stores, LENGTH, 7), tmp_path / "rows")
    special_ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    return Stream(open_plan(tmp_path / "rows", stores), stores, special_ids, seed=7, masking_rate=0.2, shuffle=False)


def overwrite(file, entry, value):
    """Change an entry of an array in place, as damage below the file system would."""
    array = np.load(file, mmap_mode="r+")
    array[entry] = value
    array.flush()


@pytest.mark.parametrize("token", [-1, -(2**31), 2**31 - 1, 400])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_token_outside_the_vocabulary_is_refused_where_it_stands(on_disk, tmp_path, token, workers):
    file = tmp_path / "store" / "tokens.npy"
    overwrite(file, 137, token)
    samples = SampleRange(range(0, 64, 4), 4, 1, 0)
    loader = micro_batch_loader(on_disk, samples, workers=workers, pin_memory=False)
    with contextlib.closing(loader), refused(DataError, f"{file}: token {token} at 137 is outside the vocabulary of"):
        list(loader)


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        *(("store", 3, value) for value in (1, 255)),
        *(("start", 3, value) for value in (-1, 354, 2**62, -(2**63))),
        *(("length", 3, value) for value in (0, -1, 31, 2**31 - 1, -(2**31))),
        *(("row_offsets", 3, value) for value in (-1, 0, 2**62, 100)),
    ],
)
def test_a_window_that_lies_nowhere_is_refused_in_one_line(on_disk, tmp_path, name, entry, value):
    overwrite(tmp_path / "rows" / f"{name}.npy", entry, value)
    with refused(DataError, str(tmp_path), "azneobert cache check"):
        on_disk.packed_batch(0, len(on_disk))


@pytest.mark.parametrize("file", ["store/tokens.npy", "rows/start.npy", "rows/row_offsets.npy"])
def test_files_that_become_shorter_while_they_are_read_are_an_error_and_no_signal(on_disk, tmp_path, file):
    os.truncate(tmp_path / file, 130)
    with refused(DataError, f"{tmp_path / file}: 130 bytes found", "it has become shorter"):
        on_disk.packed_batch(0, len(on_disk))
