import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.data.cleaning import content_hash
from azneobert.data.documents import Documents, parts, read_texts, split_by_part, write_part
from azneobert.data.duplicates import find_duplicate_ids, find_duplicates, remaining
from azneobert.errors import DataError


@pytest.fixture
def collect(tmp_path):
    """Write collections, each a list of parts; a document is a text, or a hash (bytes). Gives back their folders."""

    def write(*collections):
        folders = []
        for number, content in enumerate(collections):
            folders.append(tmp_path / f"{len(list(tmp_path.iterdir()))}-{number}")
            folders[-1].mkdir()
            for part, documents in enumerate(content):
                write_part(folders[-1], part, as_documents(documents))
        return folders

    return write


def as_documents(content):
    hashes = [document if isinstance(document, bytes) else content_hash(document) for document in content]
    texts = [str(document) for document in content]
    return Documents(
        [str(number) for number in range(len(texts))],
        texts,
        hashes,
        [text.startswith("!") for text in texts],
        [len(text.split()) for text in texts],
    )


def lists(found):
    return [(duplicates.within.tolist(), duplicates.across.tolist()) for duplicates in found]


def slow_duplicates(collections):
    """The same by a dictionary: where each hash stood first."""
    first, found = {}, []
    for number, content in enumerate(collections):
        within, across = [], []
        for index, document in enumerate(document for part in content for document in part):
            if document not in first:
                first[document] = number
            elif first[document] == number:
                within.append(index)
            else:
                across.append(index)
        found.append((within, across))
    return found


def test_a_text_that_stands_twice_in_a_collection_stays_once(collect):
    assert lists(find_duplicates(collect([["bir", "iki", "bir", "üç", "iki", "bir"]]))) == [([2, 4, 5], [])]


def test_a_text_in_two_collections_stays_in_the_first(collect):
    folders = collect([["bir", "iki"]], [["üç", "iki"]], [["üç", "bir", "dörd"]])
    assert lists(find_duplicates(folders)) == [([], []), ([], [1]), ([], [0, 1])]
    assert lists(find_duplicates(folders[::-1])) == [([], []), ([], [0]), ([], [0, 1])]


def test_a_text_that_stands_in_a_collection_twice_and_in_an_earlier_one_is_elsewhere_both_times(collect):
    assert lists(find_duplicates(collect([["bir"]], [["bir", "iki", "bir", "iki"]]))) == [([], []), ([3], [0, 2])]


def test_indices_go_on_from_part_to_part(collect):
    folders = collect([["bir", "iki"], ["üç"], ["iki", "dörd"]], [["beş"], ["dörd", "beş"]])
    assert lists(find_duplicates(folders)) == [([3], []), ([2], [1])]


def test_nothing_is_found_where_every_text_stands_once(collect):
    found = find_duplicates(collect([["bir"]], [["iki"], ["üç"]], [["dörd"]]))
    assert lists(found) == [([], [])] * 3
    assert {duplicates.all.dtype for duplicates in found} == {np.dtype(np.int64)}


def test_collections_that_hold_the_same_keep_the_first_only(collect):
    texts = ["bir", "iki", "üç"]
    assert lists(find_duplicates(collect([texts], [texts], [texts]))) == [([], []), ([], [0, 1, 2]), ([], [0, 1, 2])]


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_collection_without_documents_has_no_duplicates(collect, empty):
    collections = [[["bir", "bir"]], [["bir"]]]
    collections.insert(empty, [[]])
    expected = [([1], []), ([], [0])]
    expected.insert(empty, ([], []))
    assert lists(find_duplicates(collect(*collections))) == expected


def test_collections_without_any_document_have_no_duplicates(collect):
    assert lists(find_duplicates(collect([[]], [[], []]))) == [([], [])] * 2


def test_hashes_that_agree_in_one_half_only_are_not_the_same(collect):
    a, b, c = (bytes([number]) * 8 for number in range(3))
    content = [a + a, a + b, b + a, a + c, b + b, c + c]
    assert lists(find_duplicates(collect([content]))) == [([], [])]
    assert lists(find_duplicates(collect([content], [[a + b, c + a, a + b, a + a]]))) == [([], []), ([], [0, 2, 3])]


halves = st.sampled_from([b"\0" * 8, b"\0" * 7 + b"\1", b"\1" + b"\0" * 7, b"\xff" * 8])
hashes = st.builds(bytes.__add__, halves, halves)
part_contents = st.lists(hashes, max_size=8)


@given(collections=st.lists(st.lists(part_contents, min_size=1, max_size=3), min_size=1, max_size=4))
@settings(max_examples=120, deadline=None)
def test_duplicates_are_those_that_a_dictionary_finds(tmp_path_factory, collections):
    folders = []
    for content in collections:
        folders.append(tmp_path_factory.mktemp("collection"))
        for number, documents in enumerate(content):
            write_part(folders[-1], number, as_documents(documents))
    assert lists(find_duplicates(folders)) == slow_duplicates(collections)


def test_many_duplicates_are_those_that_a_dictionary_finds(collect):
    random = np.random.default_rng(7)
    collections = [
        [[f"{number}" for number in random.integers(0, 5000, size)] for size in sizes]
        for sizes in ([3000, 100], [2500], [1, 2000, 900])
    ]
    found = find_duplicates(collect(*collections))
    assert lists(found) == slow_duplicates(collections)
    assert sum(len(duplicates.all) for duplicates in found) > 3000


def test_all_that_goes_is_in_ascending_order(collect):
    found = find_duplicates(collect([["bir"]], [["iki", "bir", "iki", "bir", "üç", "iki"]]))[1]
    assert found.all.tolist() == [1, 2, 3, 5]
    assert found.all.dtype == np.int64


def test_what_is_left_holds_each_text_once(collect):
    folders = collect([["bir", "iki"], ["bir"]], [["iki", "üç"], ["dörd", "üç"]])
    left = [
        text
        for folder, duplicates in zip(folders, find_duplicates(folders), strict=True)
        for part, struck in split_by_part(folder, duplicates.all)
        for texts, _ in read_texts(part, struck)
        for text in texts
    ]
    assert left == ["bir", "iki", "üç", "dörd"]


def test_remaining_counts_what_is_left(collect):
    folders = collect([["bir iki üç", "!dörd"], ["bir iki üç", "şəhər 😀"]], [["!dörd", "!beş altı", "!beş altı", ""]])
    first, second = (remaining(f, d) for f, d in zip(folders, find_duplicates(folders), strict=True))
    assert first == {"documents": 3, "validation": 1, "words": 6, "characters": 10 + 5 + 7}
    assert second == {"documents": 2, "validation": 1, "words": 2, "characters": 9}


def test_remaining_counts_everything_where_nothing_goes_and_nothing_where_everything_goes(collect):
    folders = collect([["bir iki"]], [["bir iki"]])
    whole, none = (remaining(f, d) for f, d in zip(folders, find_duplicates(folders), strict=True))
    assert whole == {"documents": 1, "validation": 0, "words": 2, "characters": 7}
    assert none == dict.fromkeys(whole, 0)


def test_a_collection_that_is_not_there_is_refused(collect, tmp_path):
    with refused(DataError, f"{tmp_path}/missing", "dvc repro deduplicate"):
        find_duplicates([*collect([["bir"]]), tmp_path / "missing"])


def test_a_damaged_part_is_refused(collect):
    folders = collect([["bir"]], [["iki"]])
    damaged = parts(folders[1])[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with refused(DataError, str(damaged), "dvc repro deduplicate"):
        find_duplicates(folders)


def with_ids(folder, *parts_of_ids):
    folder.mkdir()
    for number, ids in enumerate(parts_of_ids):
        documents = as_documents([f"{number} {index}" for index in range(len(ids))])
        documents.ids[:] = ids
        write_part(folder, number, documents)
    return folder


def test_ids_that_are_used_again_are_counted_with_the_first_three(tmp_path):
    folder = with_ids(tmp_path / "a", ["x", "y", "x", "ə"], ["w", "x", "y"], ["ə", "w", "z", ""])
    found = find_duplicate_ids(folder)
    assert (found.count, found.examples) == (5, ["x", "y", "ə"])


def test_no_id_is_used_again_where_all_differ_or_nothing_stands(tmp_path):
    assert find_duplicate_ids(with_ids(tmp_path / "a", ["x", "X", "x ", ""], ["y"])).count == 0
    assert find_duplicate_ids(with_ids(tmp_path / "b", [])).examples == []


@given(ids=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_ids_used_again_are_those_that_a_set_finds(tmp_path_factory, ids):
    found = find_duplicate_ids(with_ids(tmp_path_factory.mktemp("ids") / "a", *ids))
    flat = [identity for part in ids for identity in part]
    assert found.count == len(flat) - len(set(flat))
    again = [identity for place, identity in enumerate(flat) if identity in flat[:place]]
    assert found.examples == list(dict.fromkeys(again))[:3]
