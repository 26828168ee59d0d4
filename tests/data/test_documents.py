import itertools
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.data.cleaning import content_hash
from azneobert.data.documents import (
    Documents,
    count_documents,
    parts,
    read_column,
    read_duplicates,
    read_hashes,
    read_texts,
    split_by_part,
    training_texts,
    write_part,
)
from azneobert.errors import DataError

NOTHING = np.zeros(0, dtype=np.int64)


def documents(texts, validation=()):
    return Documents(
        [f"id of {text}" for text in texts],
        list(texts),
        [content_hash(text) for text in texts],
        [text in validation for text in texts],
        [len(text.split()) for text in texts],
    )


def numbered(count):
    return [f"sənəd {number}" for number in range(count)]


def texts_of(part, **arguments):
    return [text for texts, _ in read_texts(part, **arguments) for text in texts]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A part of many row groups, of which every seventh document is held out."""
    texts = numbered(5000)
    return write_part(tmp_path_factory.mktemp("large"), 0, documents(texts, set(texts[::7])))


# One part


def test_a_part_reads_back_as_it_was_written(tmp_path):
    texts = ["bir", "iki\nüç", "dörd\n\nbeş altı 😀 漢", ""]
    written = documents(texts, {"bir"})
    part = write_part(tmp_path, 3, written)
    assert part.name == "part-00003.parquet"
    assert count_documents(part) == 4
    for column, name in (("ids", "id"), ("texts", "text"), ("hashes", "hash"), ("validation",) * 2, ("words",) * 2):
        assert read_column(part, name).to_pylist() == getattr(written, column)
    [(found, held_out)] = read_texts(part)
    assert found == texts
    assert held_out.tolist() == [True, False, False, False]


def test_the_same_documents_make_the_same_bytes(tmp_path):
    one, other = (write_part(tmp_path, number, documents(numbered(3000))) for number in range(2))
    assert one.read_bytes() == other.read_bytes()


def test_a_part_that_is_written_again_replaces_the_old_one(tmp_path):
    write_part(tmp_path, 0, documents(["bir"]))
    part = write_part(tmp_path, 0, documents(["iki"]))
    assert texts_of(part) == ["iki"]
    assert os.listdir(tmp_path) == [part.name]  # noqa: PTH208 - hidden files too


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path):
    part = write_part(tmp_path, 0, documents(["bir"]))
    broken = documents(["iki"])
    broken.words = ["not a number"]
    with pytest.raises(Exception, match="not a number"):
        write_part(tmp_path, 0, broken)
    half = documents(["üç"])
    half.hashes = [b"short"]
    with pytest.raises(Exception, match="16"):
        write_part(tmp_path, 1, half)
    assert parts(tmp_path) == [part]
    assert texts_of(part) == ["bir"]


def test_what_is_half_written_is_no_part(tmp_path):
    part = write_part(tmp_path, 0, documents(["bir"]))
    (tmp_path / ".part-00001.parquet.partial").write_bytes(part.read_bytes()[:40])
    assert parts(tmp_path) == [part]


def test_parts_come_in_order(tmp_path):
    for number in (10, 2, 0, 1, 9, *range(3, 9)):
        write_part(tmp_path, number, documents([f"{number}"]))
    assert [texts_of(part) for part in parts(tmp_path)] == [[f"{number}"] for number in range(11)]


def test_a_part_without_documents_reads_as_none(tmp_path):
    part = write_part(tmp_path, 0, documents([]))
    assert count_documents(part) == 0
    assert texts_of(part) == texts_of(part, share=0.5) == []
    assert read_hashes(part).shape == (0, 2)


# Hashes


def test_hashes_are_read_over_many_row_groups(large):
    assert pq.ParquetFile(large).num_row_groups > 3
    expected = b"".join(content_hash(text) for text in numbered(5000))
    assert read_hashes(large).tobytes() == expected
    assert read_hashes(large).shape == (5000, 2)


@pytest.mark.parametrize("bounds", [(0, 3), (2, 9), (1023, 1026), (4990, 5000), (7, 7)])
def test_hashes_of_a_sliced_column_are_those_of_the_slice(large, tmp_path, bounds):
    low, high = bounds
    sliced = pq.read_table(large).slice(low, high - low)
    pq.write_table(sliced, tmp_path / "part-00000.parquet", row_group_size=2)
    assert read_hashes(tmp_path / "part-00000.parquet").tolist() == read_hashes(large)[low:high].tolist()


def test_hashes_that_arrow_hands_over_with_an_offset_are_those_of_the_slice(large, monkeypatch):
    whole = read_hashes(large)
    column = read_column(large, "hash")
    monkeypatch.setattr("azneobert.data.documents.read_column", lambda part, name: column.slice(1500, 20))
    assert read_hashes(large).tolist() == whole[1500:1520].tolist()


# Struck documents and samples


@pytest.mark.parametrize(
    "struck", [[], [0], [4999], [0, 1023, 1024, 2047, 4999], range(1024, 2048), range(5000)], ids=len
)
def test_struck_documents_are_left_out_in_every_batch(large, struck):
    expected = [text for i, text in enumerate(numbered(5000)) if i not in set(struck)]
    assert texts_of(large, struck=np.asarray(struck, dtype=np.int64)) == expected


def test_who_is_held_out_stays_beside_its_text_when_others_are_struck(large):
    struck = np.arange(0, 5000, 3)
    found = {t: bool(v) for ts, vs in read_texts(large, struck, 0.5) for t, v in zip(ts, vs, strict=True)}
    assert found == {text: int(text.split()[1]) % 7 == 0 for text in found}
    assert 1500 < len(found) < 1850


def test_a_smaller_share_is_a_part_of_a_larger_one(large):
    shares = [0.0, 0.01, 0.1, 0.5, 0.9, 0.999999, 1.0, 3.0]
    samples = [texts_of(large, share=share) for share in shares]
    assert all(set(few) <= set(more) for few, more in itertools.pairwise(samples))
    assert samples[0] == []
    assert samples[-1] == samples[-2] == numbered(5000)
    for share, sample in zip(shares[1:5], samples[1:5], strict=True):
        assert abs(len(sample) - 5000 * share) < 4 * np.sqrt(5000 * share * (1 - share))


def test_a_sample_does_not_depend_on_the_part_a_document_stands_in(tmp_path):
    texts = numbered(400)
    whole = texts_of(write_part(tmp_path, 0, documents(texts)), share=0.3)
    pieces = [write_part(tmp_path, 1 + i, documents(texts[low : low + 90])) for i, low in enumerate(range(0, 400, 90))]
    assert [text for piece in pieces for text in texts_of(piece, share=0.3)] == whole


def test_a_sample_does_not_favour_a_side_of_the_split(tmp_path):
    texts = numbered(4000)
    part = write_part(tmp_path, 0, documents(texts, {t for t in texts if content_hash(t)[0] < 64}))
    held_out = np.concatenate([validation for _, validation in read_texts(part, share=0.5)])
    assert 0.22 < held_out.mean() < 0.28


# A collection of several parts


@pytest.fixture
def collection(tmp_path):
    """Parts of 3, 1 and 4 documents, the last one held out."""
    texts = numbered(8)
    for number, (low, high) in enumerate([(0, 3), (3, 4), (4, 8)]):
        write_part(tmp_path, number, documents(texts[low:high], {"sənəd 7"}))
    return tmp_path


def test_indices_are_split_by_the_part_they_fall_into(collection):
    found = [(part.name, indices.tolist()) for part, indices in split_by_part(collection, np.array([0, 2, 3, 4, 7]))]
    assert found == [("part-00000.parquet", [0, 2]), ("part-00001.parquet", [0]), ("part-00002.parquet", [0, 3])]


@given(indices=st.sets(st.integers(0, 7)))
@settings(max_examples=30, deadline=None)
def test_split_indices_name_the_same_documents(large, tmp_path_factory, indices):
    folder = tmp_path_factory.getbasetemp() / "split"
    if not folder.exists():
        folder.mkdir()
        for number, texts in enumerate((["0", "1", "2"], ["3"], ["4", "5", "6", "7"])):
            write_part(folder, number, documents(texts))
    split = list(split_by_part(folder, np.array(sorted(indices), dtype=np.int64)))
    named = [int(texts_of(part)[i]) for part, chosen in split for i in chosen]
    assert named == sorted(indices)
    assert len(split) == 3


def test_training_sees_neither_duplicates_nor_what_is_held_out(collection):
    texts = [text for batch in training_texts(collection, np.array([1, 3, 4])) for text in batch]
    assert texts == [f"sənəd {number}" for number in (0, 2, 5, 6)]


def test_a_sample_for_training_is_a_part_of_what_training_sees(collection):
    everything = [text for batch in training_texts(collection, NOTHING) for text in batch]
    some = [text for batch in training_texts(collection, NOTHING, 0.5) for text in batch]
    assert everything == numbered(7)
    assert set(some) < set(everything)
    assert some


# What is refused


def test_a_folder_without_parts_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with refused(DataError, str(folder), "no documents there", "dvc repro deduplicate"):
            parts(folder)


def test_a_collection_with_a_part_missing_between_others_is_refused(collection):
    (collection / "part-00001.parquet").unlink()
    with refused(DataError, f"{collection}/part-00001.parquet", "dvc repro deduplicate"):
        list(split_by_part(collection, NOTHING))


READERS = {
    "count": count_documents,
    "hashes": read_hashes,
    "texts": texts_of,
    "sample": lambda part: texts_of(part, share=0.5),
    "words": lambda part: read_column(part, "words"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_a_missing_part_is_refused(tmp_path, read):
    with refused(DataError, f"{tmp_path}/part-00000.parquet", "no such file", "dvc repro deduplicate"):
        read(tmp_path / "part-00000.parquet")


@pytest.mark.parametrize("keep", [0, 3, 40, -1, -30], ids=lambda keep: f"[:{keep}]")
@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_a_truncated_part_is_refused(tmp_path, read, keep):
    part = write_part(tmp_path, 0, documents(numbered(50)))
    part.write_bytes(part.read_bytes()[:keep])
    with refused(DataError, str(part), "not a whole Parquet file", "dvc repro deduplicate"):
        read(part)


@pytest.mark.parametrize("read", [texts_of, lambda part: read_column(part, "text")], ids=["batches", "column"])
@pytest.mark.parametrize("place", [0.1, 0.5], ids=["near the start", "in the middle"])
def test_a_part_with_damaged_bytes_is_refused(tmp_path, read, place):
    part = write_part(tmp_path, 0, documents([f"{number}: Bakı gözəl şəhərdir " * 40 for number in range(2000)]))
    content = bytearray(part.read_bytes())
    metadata = pq.ParquetFile(part).metadata.row_group(0).column(1)  # the texts
    start = int(metadata.dictionary_page_offset + place * metadata.total_compressed_size)
    content[start : start + 64] = bytes(64)
    part.write_bytes(content)
    with refused(DataError, str(part), "dvc repro deduplicate"):
        read(part)


def test_a_damaged_footer_is_refused(tmp_path):
    part = write_part(tmp_path, 0, documents(numbered(50)))
    content = bytearray(part.read_bytes())
    size = int.from_bytes(content[-8:-4], "little")
    content[-8 - size : -8] = b"\xff" * size
    part.write_bytes(content)
    with refused(DataError, str(part), "dvc repro deduplicate"):
        count_documents(part)


def test_duplicates_are_read_back(tmp_path):
    np.save(tmp_path / "wikipedia.npy", np.array([1, 5], dtype=np.int64))
    assert read_duplicates(tmp_path / "wikipedia.npy").tolist() == [1, 5]


def test_a_missing_list_of_duplicates_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/duplicates.npy", "no such file", "dvc repro deduplicate"):
        read_duplicates(tmp_path / "duplicates.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array", None], ids=["empty", "cut", "text", "half"])
def test_a_damaged_list_of_duplicates_is_refused(tmp_path, content):
    path = tmp_path / "duplicates.npy"
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with refused(DataError, str(path), "dvc repro deduplicate"):
        read_duplicates(path)


def test_no_flipped_bit_changes_what_is_read_without_a_word(tmp_path):
    texts = numbered(30)
    part = write_part(tmp_path, 0, documents(texts, {texts[3]}))
    whole = part.read_bytes()
    expected = texts, [text == texts[3] for text in texts], b"".join(map(content_hash, texts))
    refusals = []
    bits = range(0, 8 * len(whole), 37)  # headers and footer too, which the pages' own checksums do not cover
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        part.write_bytes(damaged)
        try:
            [(found, held_out)] = read_texts(part)
            read = found, held_out.tolist(), read_hashes(part).tobytes()
        except DataError as error:
            refusals.append(str(error))
        else:
            assert read == expected, bit
    assert all(line.startswith(f"{part}: ") and "\n" not in line for line in refusals)
    assert len(refusals) > 0.95 * len(bits)


def test_a_part_of_before_has_no_checksum_and_is_read(tmp_path):
    part = write_part(tmp_path, 0, documents(["bir"]))
    table = pq.read_table(part).replace_schema_metadata(None)
    pq.write_table(table, part, compression="zstd")
    assert texts_of(part) == ["bir"]


def test_a_part_that_is_cut_while_it_is_read_is_an_error_and_no_signal(tmp_path):
    part = write_part(tmp_path, 0, documents([f"{number}: Bakı gözəl şəhərdir" * 50 for number in range(5000)]))
    batches = read_texts(part)
    next(batches)
    os.truncate(part, 5000)
    with refused(DataError, str(part), "dvc repro deduplicate"):
        list(batches)
