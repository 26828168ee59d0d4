import numpy as np
import pytest
from refusals import refused

from azneobert.data.cleaning import Document, content_hash
from azneobert.data.documents import find_duplicates, read_duplicates, read_texts, write_documents
from azneobert.errors import DataError


def document(text, validation=False):
    return Document(f"id of {text}", text, content_hash(text), validation)


@pytest.fixture
def duplicates(tmp_path):
    def save(indices):
        np.save(tmp_path / "duplicates.npy", np.asarray(indices, dtype=np.int64))
        return tmp_path / "duplicates.npy"

    return save


def test_each_side_of_the_split_reads_back_its_own_texts_in_order(tmp_path, duplicates):
    path = tmp_path / "new" / "documents.parquet"
    write_documents(path, [document("bir"), document("iki", validation=True), document("üç")])
    assert list(read_texts(path, duplicates([]), validation=False)) == [["bir", "üç"]]
    assert list(read_texts(path, duplicates([]), validation=True)) == [["iki"]]


def test_struck_out_documents_are_left_out_beyond_the_first_batch_too(tmp_path, duplicates):
    path = tmp_path / "documents.parquet"
    write_documents(path, (document(str(number)) for number in range(9000)))
    struck = [0, 4095, 4096, 8999]
    texts = [text for batch in read_texts(path, duplicates(struck), validation=False) for text in batch]
    assert texts == [str(number) for number in range(9000) if number not in struck]


def test_a_text_in_two_collections_stays_in_the_first(tmp_path):
    first, second, third = (tmp_path / f"{name}.parquet" for name in ("first", "second", "third"))
    write_documents(first, map(document, ["bir", "iki"]))
    write_documents(second, map(document, ["üç", "iki"]))
    write_documents(third, map(document, ["üç", "bir", "dörd"]))
    assert [found.tolist() for found in find_duplicates([first, second, third])] == [[], [1], [0, 1]]


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path, duplicates):
    def breaking_off():
        yield document("iki")
        raise KeyboardInterrupt

    path = tmp_path / "documents.parquet"
    write_documents(path, [document("bir")])
    with pytest.raises(KeyboardInterrupt):
        write_documents(path, breaking_off())
    assert list(read_texts(path, duplicates([]), validation=False)) == [["bir"]]


def test_missing_documents_are_refused(tmp_path, duplicates):
    with refused(DataError, f"{tmp_path}/documents.parquet", "no such file", "dvc repro ingest"):
        list(read_texts(tmp_path / "documents.parquet", duplicates([]), validation=False))


def test_truncated_documents_are_refused(tmp_path, duplicates):
    path = tmp_path / "documents.parquet"
    write_documents(path, map(document, ["bir", "iki"]))
    path.write_bytes(path.read_bytes()[:-30])
    with refused(DataError, str(path), "not a whole Parquet file", "dvc repro ingest"):
        list(read_texts(path, duplicates([]), validation=False))


def test_a_missing_list_of_duplicates_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/duplicates.npy", "dvc repro deduplicate"):
        read_duplicates(tmp_path / "duplicates.npy")
