import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from azneobert.data.rows import plan_rows
from azneobert.data.stream import SampleRange, Stream, micro_batch_loader, permute
from azneobert.data.tokenizer import SPECIAL_TOKENS

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


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 6, 8, 12])
def test_a_batch_is_the_same_however_it_is_cut(stream, micro_batch):
    start, count = len(stream) - 7, 24
    whole = joined([stream.batch(start, count)])
    assert joined(stream.batch(start + cut, micro_batch) for cut in range(0, count, micro_batch)) == whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 4), (1, 16), (2, 2), (8, 1), (8, 2)])
def test_any_number_of_ranks_and_workers_trains_on_the_same_samples(stream, ranks, micro_batch, workers):
    global_batch, first_sample, steps = 16, 5, 3
    accumulation = global_batch // ranks // micro_batch
    loaders = [
        micro_batch_loader(
            stream,
            SampleRange(first_sample, 1, steps, global_batch, micro_batch, accumulation, rank),
            workers=workers,
            pin_memory=False,
        )
        for rank in range(ranks)
    ]
    for step in range(1, steps):
        shares = [list(itertools.islice(loader, accumulation)) for loader in loaders]
        expected = stream.batch(first_sample + step * global_batch, global_batch)
        assert joined(itertools.chain(*shares)) == joined([expected])
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


def test_every_batch_has_the_same_shape(stream):
    shapes = {
        tuple(tuple(value.shape) for value in vars(stream.batch(start, 4)).values() if torch.is_tensor(value))
        for start in range(3 * len(stream))
    }
    assert len(shapes) == 1


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
        batch = stream.batch(sample, 1)
        assert len(batch.masked_indices) == MASKS
        assert len(torch.unique(batch.masked_indices)) == tokens // 2
        assert (batch.targets >= len(SPECIAL_TOKENS)).all()


def test_a_row_of_twice_its_masks_is_not_nearly_empty(make_stream):
    assert len(torch.unique(make_stream([2 * MASKS]).batch(0, 1).masked_indices)) == MASKS


def test_the_order_in_which_stores_are_named_does_not_change_what_is_read(make_store):
    stores = {"a": make_store([FULL] * 3), "b": make_store([11] * 7)}
    plan = plan_rows(stores, LENGTH, seed=1)
    special_ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    turned = dict(reversed(stores.items()))
    one, other = (Stream(plan, given, special_ids, seed=1, masking_rate=0.2) for given in (stores, turned))
    assert joined([one.batch(0, len(plan))]) == joined([other.batch(0, len(plan))])
