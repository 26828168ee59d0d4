import json

import numpy as np
import pytest
from refusals import refused

from azneobert.data.store import TokenStore, sha256_file, write_store
from azneobert.errors import DataError

DOCUMENTS = [[5, 6, 7], [], [8], [9, 10]]


def write(path, documents=DOCUMENTS, vocab_size=11):
    return write_store(path, documents, vocab_size=vocab_size, tokenizer_sha256="tokenizer", source_md5="source")


def breaking_off():
    yield [5, 6]
    raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "store")
    return tmp_path / "store"


def rewrite(folder, name, array):
    """Replace an array and its hash, as a faulty writer would."""
    np.save(folder / f"{name}.npy", array)
    meta = json.loads((folder / "meta.json").read_text())
    meta[f"{name}_sha256"] = sha256_file(folder / f"{name}.npy")
    (folder / "meta.json").write_text(json.dumps(meta))


def test_documents_read_back_as_they_were_written(folder):
    store = TokenStore.open(folder)
    store.verify()
    assert [store[index].tolist() for index in range(len(store))] == DOCUMENTS
    assert (store.meta.documents, store.meta.tokens) == (4, 6)
    assert (store.tokens.dtype, store.offsets.dtype) == (np.int32, np.int64)


def test_tokens_are_a_read_only_memory_map(folder):
    tokens = TokenStore.open(folder).tokens
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable


def test_any_numpy_reads_the_tokens_without_this_program(folder):
    assert np.load(folder / "tokens.npy").tolist() == [5, 6, 7, 8, 9, 10]


def test_a_store_without_documents_is_whole(tmp_path):
    write(tmp_path / "store", [])
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert len(store) == 0


def test_the_same_documents_give_the_same_bytes(folder, tmp_path):
    write(tmp_path / "again")
    names = ("tokens.npy", "offsets.npy", "meta.json")
    assert [(folder / name).read_bytes() for name in names] == [
        (tmp_path / "again" / name).read_bytes() for name in names
    ]


def test_truncated_tokens_are_refused(folder):
    whole = (folder / "tokens.npy").read_bytes()
    (folder / "tokens.npy").write_bytes(whole[:-3])
    with refused(DataError, f"{folder}/tokens.npy", f"{len(whole) - 3} bytes found", "6 entries", "dvc checkout"):
        TokenStore.open(folder)


def test_tokens_cut_anywhere_are_refused(folder):
    whole = (folder / "tokens.npy").read_bytes()
    for length in range(len(whole)):
        (folder / "tokens.npy").write_bytes(whole[:length])
        with refused(DataError, f"{folder}/tokens.npy", "truncated or damaged"):
            TokenStore.open(folder)


@pytest.mark.parametrize("name", ["tokens", "offsets"])
def test_a_flipped_byte_is_found_by_verify(folder, name):
    file = folder / f"{name}.npy"
    whole = bytearray(file.read_bytes())
    whole[-4] ^= 1
    file.write_bytes(whole)
    with refused(DataError, str(file), "sha256", "expected", "make it anew"):
        TokenStore.open(folder).verify()


def test_a_flipped_byte_in_the_header_is_refused_in_one_line_wherever_it_is(folder):
    file = folder / "tokens.npy"
    whole = file.read_bytes()
    for place in range(128):
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        file.write_bytes(damaged)
        with refused(DataError, str(file)):
            TokenStore.open(folder).verify()


def test_offsets_that_decrease_are_found_by_verify(folder):
    rewrite(folder, "offsets", np.asarray([0, 3, 2, 4, 6]))
    with refused(DataError, f"{folder}/offsets.npy", "do not rise from 0 to 6", "make it anew"):
        TokenStore.open(folder).verify()


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_outside_the_vocabulary_is_found_by_verify(folder, token):
    rewrite(folder, "tokens", np.asarray([5, 6, 7, token, 9, 10], dtype=np.int32))
    with refused(DataError, f"{folder}/tokens.npy", f"token {token} at 3", "vocabulary of 11", "make it anew"):
        TokenStore.open(folder).verify()


def test_tokens_of_another_type_are_refused(folder):
    rewrite(folder, "tokens", np.arange(6, dtype=np.int64))
    with refused(DataError, f"{folder}/tokens.npy", "int64", "expected int32 of shape (6,)", "dvc checkout"):
        TokenStore.open(folder)


def test_a_half_written_store_is_not_taken_for_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", breaking_off())
    with refused(DataError, f"{tmp_path}/store", "no whole token store", "dvc repro tokens"):
        TokenStore.open(tmp_path / "store")
    write(tmp_path / "store")
    TokenStore.open(tmp_path / "store").verify()


def test_a_store_without_its_meta_json_is_not_taken_for_whole(folder):
    (folder / "meta.json").unlink()
    with refused(DataError, str(folder), "no whole token store", "dvc repro tokens"):
        TokenStore.open(folder)


def test_a_rewrite_that_breaks_off_leaves_the_whole_store_that_was_there(folder):
    with pytest.raises(KeyboardInterrupt):
        write(folder, breaking_off())
    TokenStore.open(folder).verify()


def test_a_damaged_meta_json_is_refused(folder):
    (folder / "meta.json").write_text('{"documents": 4,\n')
    with refused(DataError, f"{folder}/meta.json", "not a token store's meta.json", "make the store anew"):
        TokenStore.open(folder)


def test_a_store_of_a_later_format_is_refused(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format_version": 2}))
    with refused(DataError, f"{folder}/meta.json", "format version 2", "reads 1", "update"):
        TokenStore.open(folder)
