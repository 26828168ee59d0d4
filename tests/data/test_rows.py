import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.data.rows import (
    FORMAT_VERSION,
    FRAME,
    _digest,
    open_plan,
    plan_facts,
    plan_rows,
    verify_plan,
    write_plan,
)
from azneobert.data.store import read_meta, write_meta
from azneobert.errors import DataError

ARRAYS = ("store", "start", "length", "row_offsets")
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
    with refused(DataError, str(path), "damaged", "azneobert cache check"):
        open_plan(path, stores)


# Mixtures


def pool_slices(plan):
    """The rows and the windows of each pool, as slices."""
    rows = np.cumsum([0, *(pool.rows for pool in plan.meta.pools)])
    windows = np.cumsum([0, *(pool.windows for pool in plan.meta.pools)])
    assert (rows[-1], windows[-1]) == (len(plan), len(plan.length))
    assert np.array_equal(plan.row_offsets[rows], windows), "a pool's rows are not those of its windows"
    return [(slice(*rows[[n, n + 1]]), slice(*windows[[n, n + 1]])) for n in range(len(plan.meta.pools))]


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    sequence_length=st.integers(3, 24),
    limits=st.lists(st.integers(0, 40), min_size=1, max_size=3, unique=True),
)
@settings(max_examples=80, deadline=None)
def test_a_pool_holds_each_token_of_its_documents_once_and_of_shorter_ones_at_most_once(
    make_store, sizes, sequence_length, limits
):
    limits = [min(limit, max(sizes)) for limit in limits]
    store = make_store(sizes)
    plan = plan_rows({"only": store}, sequence_length, 1, [(limit, 1 / len(limits)) for limit in limits])
    filled = np.concatenate([[0], np.cumsum(plan.length + FRAME, dtype=np.int64)])[plan.row_offsets]
    assert (np.diff(filled) <= sequence_length).all()
    document_of = np.repeat(np.arange(len(sizes)), sizes)
    long = np.asarray(sizes, dtype=np.int64)[document_of]
    for pool, limit, (_, windows) in zip(plan.meta.pools, limits, pool_slices(plan), strict=True):
        seen = np.zeros(len(document_of), dtype=np.int64)
        for start, length in zip(plan.start[windows].tolist(), plan.length[windows].tolist(), strict=True):
            seen[start : start + length] += 1
            assert document_of[start] == document_of[start + length - 1]
        assert (seen[long >= limit] == 1).all()
        assert (seen[long < limit] <= 1).all()
        assert pool.filler == (seen[long < limit].sum() if limit else 0)
        assert pool.tokens == {"only": seen.sum()}


def test_fillers_leave_no_room_that_a_shorter_document_would_fill(make_store):
    plan = plan_rows({"only": make_store([20] * 10 + [5] * 30)}, 32, 1, [(0, 0.5), (20, 0.5)])
    _, (rows, _) = pool_slices(plan)
    assert plan.meta.pools[1].rows == 10
    assert plan.meta.pools[1].filler == 10 * 5
    for begin, end in zip(plan.row_offsets[rows], plan.row_offsets[rows.start + 1 : rows.stop + 1], strict=True):
        assert sorted(plan.length[begin:end].tolist()) == [5, 20]


def test_rows_of_neobert_s_mixture_are_99_percent_full_on_a_log_normal_distribution(make_store):
    sizes = np.random.default_rng(3).lognormal(np.log(350), 1.1, 30_000).astype(int) + 1
    mixture = ((0, 0.2), (1024, 0.4), (2048, 0.4))
    plan = plan_rows({"only": make_store(sizes.tolist())}, 4096, 1, mixture)
    facts = plan_facts(plan)
    for (limit, _), (rows, windows) in zip(mixture, pool_slices(plan), strict=True):
        used = plan.length[windows].sum() + FRAME * len(plan.length[windows])
        fill = used / ((rows.stop - rows.start) * 4096)
        assert fill >= 0.99
        assert facts[f"pool_{limit}/fill"] == pytest.approx(fill, abs=1e-6)
        inside = sizes[sizes >= limit].sum()
        assert facts[f"pool_{limit}/long_share"] == pytest.approx(inside / plan.length[windows].sum(), abs=1e-4)
        assert facts[f"pool_{limit}/long_share"] > 0.7
        assert facts[f"pool_{limit}/rows"] == rows.stop - rows.start


def test_facts_weigh_the_pools_by_their_share_of_samples(make_store):
    stores = {"a": make_store([10]), "b": make_store([30])}
    facts = plan_facts(plan_rows(stores, 32, 1, [(0, 0.2), (20, 0.8)]))
    assert facts["share/a"] == pytest.approx(0.2 * 10 / 40)
    assert facts["share/b"] == pytest.approx(0.2 * 30 / 40 + 0.8)
    assert (facts["tokens"], facts["pool_20/long_share"], facts["rows"]) == (70, 1.0, 3)
    assert not any(key.startswith("pool_") for key in plan_facts(plan_rows(stores, 32, 1)))


def test_a_pool_without_documents_is_refused(make_store):
    with refused(DataError, "mixture: no document has 31 tokens or more", "smaller min_tokens"):
        plan_rows({"only": make_store([30, 3])}, 16, 1, [(0, 0.5), (31, 0.5)])


def test_a_mixture_is_the_same_for_a_seed_and_another_for_another(make_store):
    stores = {"only": make_store([4] * 200 + [20] * 50)}
    mixture = ((0, 0.5), (20, 0.5))
    first, again, other = (plan_rows(stores, 32, seed, mixture) for seed in (1, 1, 2))
    assert first.meta == again.meta
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ARRAYS)
    assert first.meta.sha256 != other.meta.sha256
    for _, windows in pool_slices(first):
        assert not np.array_equal(first.start[windows], other.start[windows])


# What verify_plan finds


@pytest.fixture
def mixed(make_store, tmp_path):
    """A plan of two pools over two stores, on the disk."""
    stores = {"a": make_store(SIZES), "b": make_store([9, 9, 9])}
    plan = plan_rows(stores, 32, 1, [(0, 0.25), (12, 0.75)])
    write_plan(plan, tmp_path / "rows")
    return plan, stores, tmp_path / "rows"


def rewrite(path, *, meta=None, **arrays):
    """Replace arrays and what meta.json says of them, hash included, as a faulty writer would."""
    content = read_meta(path / "meta.json", FORMAT_VERSION, "")
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    content["sha256"] = _digest({name: np.load(path / f"{name}.npy") for name in ARRAYS})
    write_meta(path / "meta.json", content | (meta or {}))


def test_verify_finds_nothing_in_a_whole_plan(mixed):
    plan, stores, path = mixed
    assert verify_plan(path, stores).meta == plan.meta


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_byte_of_the_content_is_found_by_verify_wherever_it_is(mixed, name):
    _, stores, path = mixed
    whole = (path / f"{name}.npy").read_bytes()
    for place in range(128, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (path / f"{name}.npy").write_bytes(damaged)
        with refused(DataError, str(path), "azneobert cache check"):
            verify_plan(path, stores)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_byte_of_the_header_is_refused_in_one_line_or_changes_nothing(mixed, name):
    plan, stores, path = mixed
    whole = (path / f"{name}.npy").read_bytes()
    for place in range(128):
        for bits in (1, 4, 8, 0x10, 0x20, 0x40, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= bits
            (path / f"{name}.npy").write_bytes(damaged)
            message = ""
            try:
                found = getattr(verify_plan(path, stores), name)
            except DataError as error:
                message = str(error)
            assert str(path) in message or np.array_equal(found, getattr(plan, name))
            assert "\n" not in message


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_another_length_is_refused(mixed, name):
    plan, stores, path = mixed
    rewrite(path, **{name: getattr(plan, name)[:-1]})
    with refused(DataError, str(path), "azneobert cache check"):
        verify_plan(path, stores)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_another_type_is_refused(mixed, name):
    plan, stores, path = mixed
    rewrite(path, **{name: getattr(plan, name).astype(np.float64)})
    with refused(DataError, str(path), "azneobert cache check"):
        verify_plan(path, stores)


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("store", 2, "of no store"),
        ("start", -1, "of no store"),
        ("start", 10**6, "reaches beyond its token store"),
        ("start", 2**63 - 1, "reaches beyond its token store"),
        ("length", 0, "a window of no tokens"),
        ("length", -5, "a window of no tokens"),
        ("length", 2**31 - 1, "reaches beyond its token store"),
    ],
)
def test_a_window_out_of_range_is_found_by_verify_whatever_the_hash_says(mixed, name, value, wrong):
    plan, stores, path = mixed
    array = getattr(plan, name).copy()
    array[len(array) // 2] = value
    for with_its_hash in (False, True):
        np.save(path / f"{name}.npy", array)
        if with_its_hash:
            rewrite(path)
        with refused(DataError, str(path), wrong, "azneobert cache check"):
            verify_plan(path, stores)


def test_a_row_that_is_too_full_is_found_by_verify_whatever_the_hash_says(mixed):
    plan, stores, path = mixed
    offsets = np.delete(plan.row_offsets, 3)  # two rows become one
    rewrite(path, row_offsets=offsets, meta={"rows": len(offsets) - 1})
    with refused(DataError, str(path), "a row holds more than 32 tokens"):
        verify_plan(path, stores)


def test_a_full_row_beyond_the_first_piece_is_found_by_verify(mixed, monkeypatch):
    monkeypatch.setattr("azneobert.data.rows._CHUNK", 4)
    plan, stores, path = mixed
    verify_plan(path, stores)
    length = plan.length.copy()
    start, store = plan.start.copy(), plan.store.copy()
    store[-1], start[-1], length[-1] = 0, 0, 200
    rewrite(path, store=store, start=start, length=length)
    with refused(DataError, str(path), "a row holds more than 32 tokens"):
        verify_plan(path, stores)


@pytest.mark.parametrize("change", [{0: 1}, {3: 0}, {-1: -1}, {2: 10**9}])
def test_rows_that_do_not_follow_each_other_to_the_end_are_found_by_verify(mixed, change):
    plan, stores, path = mixed
    offsets = plan.row_offsets.copy()
    for place, value in change.items():
        offsets[place] = value if value >= 0 else offsets[place] + value
    rewrite(path, row_offsets=offsets)
    with refused(DataError, f"{path}/row_offsets.npy"):
        verify_plan(path, stores)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_cut_anywhere_is_refused(mixed, name):
    _, stores, path = mixed
    whole = (path / f"{name}.npy").read_bytes()
    for length in range(len(whole)):
        (path / f"{name}.npy").write_bytes(whole[:length])
        with refused(DataError, str(path), "azneobert cache check"):
            open_plan(path, stores)


@pytest.mark.parametrize("version", [1, 3])
def test_a_plan_of_another_format_is_refused(mixed, version):
    _, stores, path = mixed
    rewrite(path, meta={"format_version": version})
    with refused(DataError, str(path), f"{version}"):
        open_plan(path, stores)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "{}", '{"pools": 3}', '{"pools": [3]}', "\udcff"])
def test_a_damaged_meta_json_is_refused(mixed, content):
    _, stores, path = mixed
    (path / "meta.json").write_bytes(content.encode(errors="surrogateescape"))
    with refused(DataError, str(path), "damaged", "azneobert cache check"):
        open_plan(path, stores)


@pytest.mark.parametrize(
    "meta", [{"rows_by_windows": [0, 1]}, {"pools": []}, {"rows": 1}, {"windows": 1}, {"extra": 1}, {"tokens": 5}]
)
def test_a_meta_json_that_does_not_fit_the_arrays_is_found_by_verify(mixed, meta):
    _, stores, path = mixed
    rewrite(path, meta=meta)
    with refused(DataError, str(path), "dvc"):
        verify_plan(path, stores)


@pytest.mark.parametrize(("first", "second"), [(1, 0), (-1, 1)])
def test_pools_that_are_not_the_rows_of_the_plan_are_found_by_verify(mixed, first, second):
    _, stores, path = mixed
    pools = json.loads((path / "meta.json").read_text())["pools"]
    for pool, more in zip(pools, (first, second), strict=True):
        pool["rows"] += more
    rewrite(path, meta={"pools": pools})
    with refused(DataError, str(path), "dvc"):
        verify_plan(path, stores)


def test_no_flipped_bit_of_meta_json_goes_on_without_a_word(mixed):
    _, stores, path = mixed
    file = path / "meta.json"
    whole = file.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        if not _means_the_same(damaged, whole):  # as another space does
            with refused(DataError, str(path)):
                open_plan(path, stores)


def _means_the_same(damaged, whole):
    try:
        return json.loads(damaged) == json.loads(whole)
    except ValueError:
        return False


def test_a_plan_that_is_written_again_replaces_the_one_that_was_there(mixed, tmp_path):
    plan, stores, path = mixed
    partial = path.with_name(f".{path.name}.partial")
    shutil.copytree(path, partial)  # a write that was killed
    other = plan_rows(stores, 32, seed=2)
    write_plan(other, path)
    assert verify_plan(path, stores).meta == other.meta
    assert plan.meta != other.meta
    assert not partial.exists()
