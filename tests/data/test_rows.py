import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.data.rows import FRAME, open_plan, plan_facts, plan_rows, write_plan
from azneobert.errors import DataError

SIZES = [3, 70, 0, 12, 30, 1, 31, 200, 8]


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=40), sequence_length=st.integers(3, 24))
@settings(max_examples=60, deadline=None)
def test_every_token_of_every_document_stands_in_exactly_one_row_and_no_row_is_too_long(
    make_store, sizes, sequence_length
):
    store = make_store(sizes)
    plan = plan_rows({"only": store}, sequence_length, seed=1)
    windows = [store.tokens[start : start + length] for start, length in zip(plan.start, plan.length, strict=True)]
    tokens = np.concatenate([*windows, np.empty(0, dtype=np.int32)])
    assert np.array_equal(np.sort(tokens), store.tokens)

    filled = np.concatenate([[0], np.cumsum(plan.length + FRAME)])[plan.row_offsets]
    assert (np.diff(filled) <= sequence_length).all()
    assert plan.row_offsets[-1] == len(plan.length)

    document = np.searchsorted(store.offsets, plan.start, side="right") - 1
    assert (plan.start + plan.length <= store.offsets[document + 1]).all()
    assert (plan.length > 0).all()


def test_the_windows_of_two_collections_keep_apart_and_share_rows(make_store):
    stores = {"small": make_store([5] * 40), "large": make_store([20] * 40)}
    plan = plan_rows(stores, 64, seed=1)
    for index, store in enumerate(stores.values()):
        mine = plan.store == index
        assert np.array_equal(np.sort(plan.start[mine]), store.offsets[:-1])
    rows = [plan.store[a:b] for a, b in zip(plan.row_offsets[:-1], plan.row_offsets[1:], strict=True)]
    assert any(len(set(row.tolist())) == 2 for row in rows)


@pytest.mark.parametrize("median", [60, 200, 500])
def test_rows_are_99_percent_full_on_a_log_normal_distribution(make_store, median):
    sizes = np.random.default_rng(3).lognormal(np.log(median), 1.0, 20_000).astype(int) + 1
    plan = plan_rows({"only": make_store(sizes.tolist())}, 1024, seed=1)
    used = sizes.sum() + FRAME * len(plan.length)
    assert used / (len(plan) * 1024) >= 0.99
    assert plan.meta.fill == pytest.approx(used / (len(plan) * 1024), abs=1e-6)


def test_the_same_seed_gives_the_same_plan_and_another_seed_other_company(make_store):
    stores = {"only": make_store([4] * 200)}
    first, again, other = (plan_rows(stores, 32, seed) for seed in (1, 1, 2))
    assert first.meta == again.meta
    assert np.array_equal(first.start, again.start)
    assert not np.array_equal(first.start, other.start)
    assert len(first) == len(other)


def test_a_document_longer_than_a_row_is_cut_into_full_windows_and_a_rest(make_store):
    plan = plan_rows({"only": make_store([25])}, 12, seed=1)
    assert sorted(zip(plan.start.tolist(), plan.length.tolist(), strict=True)) == [(0, 10), (10, 10), (20, 5)]


def test_facts_state_each_collection_s_share_of_the_tokens(make_store):
    facts = plan_facts(plan_rows({"a": make_store([10, 20]), "b": make_store([90])}, 32, seed=1))
    assert (facts["share/a"], facts["share/b"], facts["tokens"]) == (0.25, 0.75, 120)


@pytest.fixture
def written(make_store, tmp_path):
    stores = {"a": make_store(SIZES), "b": make_store([9, 9, 9])}
    plan = plan_rows(stores, 32, seed=1)
    write_plan(plan, tmp_path / "rows")
    return plan, stores, tmp_path / "rows"


def test_a_plan_reads_back_as_it_was_written(written):
    plan, stores, path = written
    opened = open_plan(path, stores)
    assert opened.meta == plan.meta
    for name in ("store", "start", "length", "row_offsets"):
        assert np.array_equal(getattr(opened, name), getattr(plan, name))


def test_a_plan_of_other_tokens_is_refused(written, make_store):
    _, stores, path = written
    with refused(DataError, str(path), "other tokens of b;", "dvc repro rows"):
        open_plan(path, stores | {"b": make_store([9, 9])})


def test_a_plan_that_holds_one_more_collection_is_refused_by_that_collection_s_name(written):
    _, stores, path = written
    with refused(DataError, str(path), "other tokens of b;", "dvc repro rows"):
        open_plan(path, {"a": stores["a"]})


def test_a_missing_plan_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/rows", "no whole row plan", "dvc repro rows"):
        open_plan(tmp_path / "rows", {})


@pytest.mark.parametrize("name", ["meta.json", "store.npy", "start.npy", "length.npy", "row_offsets.npy"])
def test_a_half_written_plan_is_not_taken_for_whole(written, name):
    _, stores, path = written
    whole = (path / name).read_bytes()
    (path / name).unlink()
    with refused(DataError, f"{path}/{name}", "no whole row plan", "dvc repro rows"):
        open_plan(path, stores)
    (path / name).write_bytes(whole[:-3])
    with refused(DataError, str(path), "damaged row plan", "dvc repro -f rows"):
        open_plan(path, stores)
