import json
import os

import numpy as np
import pytest
from refusals import refused
from stores import write_store

from azneobert.data.store import (
    FORMAT_VERSION,
    Column,
    ShardWriter,
    TokenStore,
    assemble_store,
    read_meta,
    shard_files,
    write_meta,
)
from azneobert.errors import DataError
from azneobert.files import sha256_file

DOCUMENTS = [[5, 6, 7], [], [8], [9, 10]]


def write(path, documents=DOCUMENTS, vocab_size=11):
    return write_store(path, documents, vocab_size=vocab_size)


def write_shards(folder, *shards):
    """Whole shards of these documents; what `assemble_store` takes."""
    for number, documents in enumerate(shards):
        writer = ShardWriter(folder, str(number))
        for ids in documents:
            writer.add(np.asarray(ids, dtype=np.int32), np.asarray([len(ids)]))
        writer.close()
    return [shard_files(folder, str(number)) for number in range(len(shards))]


def assemble(path, shards):
    return assemble_store(path, shards, vocab_size=11, tokenizer_sha256="tokenizer", source_md5="source")


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def breaking_off(shards):
    yield shards[0]
    raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "store")
    return tmp_path / "store"


def rewrite(folder, name, array):
    """Replace an array and its hash, as a faulty writer would."""
    np.save(folder / f"{name}.npy", array)
    meta = read_meta(folder / "meta.json", FORMAT_VERSION, "")
    write_meta(folder / "meta.json", meta | {f"{name}_sha256": sha256_file(folder / f"{name}.npy")})


def test_documents_read_back_as_they_were_written(folder):
    store = TokenStore.open(folder)
    store.verify()
    assert [store[index].tolist() for index in range(len(store))] == DOCUMENTS
    assert (store.meta.documents, store.meta.tokens) == (4, 6)
    assert (store.tokens.dtype, store.offsets.dtype) == (np.int32, np.int64)


def test_the_same_documents_give_the_same_bytes(folder, tmp_path):
    write(tmp_path / "again")
    names = ("tokens.npy", "offsets.npy", "meta.json")
    assert [(folder / name).read_bytes() for name in names] == [
        (tmp_path / "again" / name).read_bytes() for name in names
    ]


def test_truncated_tokens_are_refused(folder):
    whole = (folder / "tokens.npy").read_bytes()
    (folder / "tokens.npy").write_bytes(whole[:-3])
    with refused(
        DataError, f"{folder}/tokens.npy", f"{len(whole) - 3} bytes found", "6 entries", "azneobert cache check"
    ):
        TokenStore.open(folder)


def test_tokens_cut_anywhere_are_refused(folder):
    whole = (folder / "tokens.npy").read_bytes()
    for length in range(len(whole)):
        (folder / "tokens.npy").write_bytes(whole[:length])
        with refused(DataError, f"{folder}/tokens.npy", "truncated or damaged"):
            TokenStore.open(folder)


def test_tokens_of_another_type_are_refused(folder):
    rewrite(folder, "tokens", np.arange(6, dtype=np.int64))
    with refused(DataError, f"{folder}/tokens.npy", "int64", "expected int32 of shape (6,)", "azneobert cache check"):
        TokenStore.open(folder)


def test_a_store_without_its_meta_json_is_not_taken_for_whole(folder):
    (folder / "meta.json").unlink()
    with refused(DataError, str(folder), "no whole token store", "dvc repro tokens"):
        TokenStore.open(folder)


def test_a_damaged_meta_json_is_refused(folder):
    (folder / "meta.json").write_text('{"documents": 4,\n')
    with refused(DataError, f"{folder}/meta.json", "damaged", "azneobert cache check"):
        TokenStore.open(folder)


def test_no_flipped_bit_of_meta_json_goes_on_without_a_word(folder):
    file = folder / "meta.json"
    whole, meta = file.read_bytes(), TokenStore.open(folder).meta
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            found = TokenStore.open(folder).meta
        except DataError as error:
            found = meta if str(error).startswith(f"{folder}") and "\n" not in str(error) else error
        assert found == meta, bit


def test_a_meta_json_of_before_states_no_hash_of_its_own_and_is_read(folder):
    file = folder / "meta.json"
    content = json.loads(file.read_text())
    del content["content_sha256"]
    file.write_text(json.dumps(content))
    TokenStore.open(folder).verify()
    file.write_text(json.dumps(content | {"documents": "4"}))
    with refused(DataError, str(file), "numbers and texts expected"):
        TokenStore.open(folder)


def test_a_store_of_a_later_format_is_refused(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format_version": 2}))
    with refused(DataError, f"{folder}/meta.json", "format version 2", "reads 1", "update"):
        TokenStore.open(folder)


@pytest.mark.parametrize("name", ["tokens", "offsets"])
def test_the_arrays_are_read_only_memory_maps(folder, name):
    array = getattr(TokenStore.open(folder), name)
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_document_is_a_read_only_view(folder):
    with pytest.raises(ValueError, match="read-only"):
        TokenStore.open(folder)[0][0] = 1


@pytest.mark.parametrize("documents", [DOCUMENTS, [], [[], []], [list(range(5, 11)) * 1000]])
def test_numpy_writes_the_same_bytes_and_reads_them_without_this_program(tmp_path, documents):
    write(tmp_path / "store", documents)
    for name, dtype in (("tokens", np.int32), ("offsets", np.int64)):
        file = tmp_path / "store" / f"{name}.npy"
        array = np.load(file)
        assert array.dtype == dtype
        np.save(tmp_path / "again.npy", array)
        assert (tmp_path / "again.npy").read_bytes() == file.read_bytes()
    tokens, offsets = (np.load(tmp_path / "store" / f"{name}.npy").tolist() for name in ("tokens", "offsets"))
    assert tokens == [token for document in documents for token in document]
    assert offsets == np.cumsum([0, *map(len, documents)]).tolist()


@pytest.mark.parametrize(
    "shards",
    [[], [[]], [[], [], []], [DOCUMENTS], [DOCUMENTS[:1], DOCUMENTS[1:]], [[], *([d] for d in DOCUMENTS), []]],
)
def test_shards_give_the_store_that_one_shard_of_all_documents_gives(tmp_path, shards):
    documents = [document for shard in shards for document in shard]
    meta = assemble(tmp_path / "store", write_shards(tmp_path, *shards))
    assert meta == write(tmp_path / "one", documents)
    assert contents(tmp_path / "store") == contents(tmp_path / "one")
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    assert [store[index].tolist() for index in range(len(store))] == documents
    assert (meta.documents, meta.tokens) == (len(documents), sum(map(len, documents)))


def test_documents_added_together_are_those_added_one_by_one(tmp_path):
    writer = ShardWriter(tmp_path, "together")
    writer.add(np.arange(5, 11), np.asarray([3, 0, 1, 2]))
    writer.add(np.empty(0, np.int64), np.empty(0, np.int64))
    writer.close()
    assemble(tmp_path / "store", [shard_files(tmp_path, "together")])
    write(tmp_path / "one")
    assert contents(tmp_path / "store") == contents(tmp_path / "one")


def test_a_shard_appears_when_it_is_whole(tmp_path):
    writer = ShardWriter(tmp_path, "half")
    writer.add(np.asarray([5, 6]), np.asarray([2]))
    assert not any(file.exists() for file in shard_files(tmp_path, "half"))
    writer.close()
    assert all(file.exists() for file in shard_files(tmp_path, "half"))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_shard_that_broke_off_leaves_nothing_in_the_one_written_again(tmp_path):
    ShardWriter(tmp_path, "0").add(np.arange(100), np.asarray([100]))
    [files] = write_shards(tmp_path, DOCUMENTS)
    assert np.fromfile(files[0], np.int32).tolist() == [5, 6, 7, 8, 9, 10]
    assert np.fromfile(files[1], np.int64).tolist() == [3, 0, 1, 2]


def test_a_half_written_store_is_not_taken_for_whole(tmp_path):
    shards = write_shards(tmp_path, DOCUMENTS[:2], DOCUMENTS[2:])
    gone = [*shards[:1], shard_files(tmp_path, "gone")]
    for broken in (breaking_off(shards), gone):
        with pytest.raises((KeyboardInterrupt, FileNotFoundError)):
            assemble(tmp_path / "store", broken)
        with refused(DataError, f"{tmp_path}/store", "no whole token store", "dvc repro tokens"):
            TokenStore.open(tmp_path / "store")
    assemble(tmp_path / "store", shards)
    TokenStore.open(tmp_path / "store").verify()
    assert not (tmp_path / ".store.partial").exists()


def test_a_rewrite_that_breaks_off_leaves_the_whole_store_that_was_there(folder, tmp_path):
    before = contents(folder)
    shards = write_shards(tmp_path, [[5]])
    shards[0][0].unlink()
    with pytest.raises(FileNotFoundError):
        assemble(folder, shards)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["tokens", "offsets"])
def test_a_flipped_byte_is_found_by_verify_wherever_it_is(folder, name):
    file = folder / f"{name}.npy"
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bits in (1, 0x10, 0x20, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= bits
            file.write_bytes(damaged)
            with refused(DataError, str(file), "azneobert cache check"):
                TokenStore.open(folder).verify()


def test_a_flipped_byte_beyond_the_first_piece_is_found_by_verify(tmp_path, monkeypatch):
    monkeypatch.setattr("azneobert.data.store._CHUNK", 4)
    write(tmp_path / "store", [[5] * 7, [6] * 6])
    store = TokenStore.open(tmp_path / "store")
    store.verify()
    with (tmp_path / "store" / "tokens.npy").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\1")
    with refused(DataError, f"token {6 + 65536} at 12"):
        store.verify()


@pytest.mark.parametrize("name", ["tokens", "offsets"])
def test_a_file_with_bytes_behind_its_end_is_refused(folder, name):
    file = folder / f"{name}.npy"
    with file.open("ab") as opened:
        opened.write(bytes(8))
    with refused(DataError, str(file), "azneobert cache check"):
        TokenStore.open(folder)


@pytest.mark.parametrize("name", ["tokens", "offsets"])
def test_a_missing_file_is_refused(folder, name):
    (folder / f"{name}.npy").unlink()
    with refused(DataError, f"{folder}/{name}.npy", "is missing", "azneobert cache check"):
        TokenStore.open(folder)


def test_offsets_that_decrease_are_found_by_verify(folder):
    damaged = np.asarray([0, 3, 2, 4, 6])
    for with_its_hash in (False, True):
        np.save(folder / "offsets.npy", damaged)
        if with_its_hash:
            rewrite(folder, "offsets", damaged)
        with refused(
            DataError, f"{folder}/offsets.npy", "decreases after document 1, from 3 to 2", "azneobert cache check"
        ):
            TokenStore.open(folder).verify()


@pytest.mark.parametrize("offsets", [[1, 3, 3, 4, 6], [0, 3, 3, 4, 5], [-1, 3, 3, 4, 6], [0, 3, 3, 4, 7]])
def test_offsets_that_do_not_span_the_tokens_are_found_by_verify(folder, offsets):
    rewrite(folder, "offsets", np.asarray(offsets))
    with refused(DataError, f"{folder}/offsets.npy", f"from {offsets[0]} to {offsets[-1]}, expected 0 to 6"):
        TokenStore.open(folder).verify()


@pytest.mark.parametrize("with_its_hash", [False, True])
@pytest.mark.parametrize("token", [-1, 11, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_found_by_verify(folder, token, with_its_hash):
    damaged = np.asarray([5, 6, 7, token, 9, 10], dtype=np.int32)
    np.save(folder / "tokens.npy", damaged)
    if with_its_hash:
        rewrite(folder, "tokens", damaged)
    with refused(DataError, f"{folder}/tokens.npy", f"token {token} at 3", "vocabulary of 11", "azneobert cache check"):
        TokenStore.open(folder).verify()


# Read, not mapped


def test_a_column_reads_what_the_map_shows(tmp_path):
    write(tmp_path / "store", [list(range(5, 11)) * 100])
    tokens = TokenStore.open(tmp_path / "store").tokens
    for source in (tokens, np.asarray(tokens)):
        column = Column(source)
        assert len(column) == 600
        for first, count in ((0, 600), (7, 1), (599, 1), (600, 0), (100, 250)):
            assert column.read(first, count).tolist() == tokens[first : first + count].tolist()
        for first, count in ((-1, 1), (599, 2), (2**62, 1)):
            with refused(DataError, "600", "azneobert cache check"):
                column.read(first, count)


def test_a_file_that_becomes_shorter_is_an_error_of_one_line_and_no_signal(tmp_path):
    write(tmp_path / "store", [list(range(5, 11)) * 3000])
    file = tmp_path / "store" / "tokens.npy"
    column = Column(TokenStore.open(tmp_path / "store").tokens)
    os.truncate(file, 5000)
    assert column.read(0, 4).tolist() == [5, 6, 7, 8]
    with refused(DataError, str(file), "5,000 bytes found", "it has become shorter"):
        column.read(10_000, 50)
