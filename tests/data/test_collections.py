import gzip

import pytest
from refusals import refused

from azneobert.data.collections import COLLECTIONS, RawDocument, read_source
from azneobert.errors import DataError
from azneobert.recipe import load_recipe

AZ = {"id": "a", "text": "Bakı gözəl şəhərdir."}


def read(path, text_field="text", id_field="id"):
    return list(read_source(path, text_field, id_field))


def test_every_collection_of_the_sample_recipe_reads(project):
    _, recipe = load_recipe(project / "params.yaml", "sample")
    assert len(COLLECTIONS) == 11
    for source in recipe.data.sources.values():
        assert read(project / source.path, source.text_field, source.id_field)


def test_a_folder_is_read_in_the_order_of_its_file_names_and_other_files_are_left_alone(tmp_path, write_lines):
    write_lines(tmp_path / "b.jsonl", [{"id": "2", "text": "iki"}])
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"id": "1", "text": "bir"}\n')
    (tmp_path / "README.md").write_text("not a source")
    assert read(tmp_path) == [RawDocument("1", "bir"), RawDocument("2", "iki")]


def test_a_dotted_text_field_reaches_into_nested_objects(tmp_path, write_lines):
    path = write_lines(tmp_path / "nllb.jsonl", [{"id": "1", "translation": {"azj_Latn": "bir", "eng_Latn": "one"}}])
    assert read(path, "translation.azj_Latn") == [RawDocument("1", "bir")]


def test_without_an_id_field_a_document_is_named_by_its_file_and_line(tmp_path, write_lines):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "bir"}, "", {"text": "iki"}])
    assert [document.id for document in read(path, id_field=None)] == ["a.jsonl:1", "a.jsonl:3"]


def test_a_missing_source_file_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/none.jsonl", "no such source file", ".jsonl", "`path`"):
        read(tmp_path / "none.jsonl")


def test_an_empty_source_file_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with refused(DataError, f"{tmp_path}/empty.jsonl", "is empty", "one JSON object a line"):
        read(tmp_path / "empty.jsonl")


def test_a_folder_without_a_supported_file_is_refused(tmp_path):
    (tmp_path / "corpus.csv").write_text("id,text\n")
    with refused(DataError, str(tmp_path), "holds no source", ".jsonl"):
        read(tmp_path)


def test_a_line_that_is_not_json_is_refused_with_its_file_and_line(tmp_path, write_lines):
    path = write_lines(tmp_path / "a.jsonl", [AZ, AZ, '{"id": "b", "text": '])
    with refused(DataError, f"{path}:3:", "not JSON", '{"id": "b", "text":', "one JSON object a line"):
        read(path)


def test_a_line_that_is_json_but_not_an_object_is_refused(tmp_path, write_lines):
    path = write_lines(tmp_path / "a.jsonl", [AZ, ["text"]])
    with refused(DataError, f"{path}:2:", "JSON list", "an object"):
        read(path)


def test_a_missing_text_field_is_refused_with_the_fields_that_are_there(tmp_path, write_lines):
    path = write_lines(tmp_path / "a.jsonl", [AZ, {"id": "b", "content": "mətn"}])
    with refused(DataError, f"{path}:2:", "no field 'text'", "found content, id", "name a field that is there"):
        read(path)


def test_a_text_that_is_not_a_string_is_refused(tmp_path, write_lines):
    path = write_lines(tmp_path / "a.jsonl", [AZ, {"id": "b", "text": None}])
    with refused(DataError, f"{path}:2:", "'text' is NoneType", "a string would do"):
        read(path)


def test_bytes_that_are_not_utf8_are_refused_with_their_own_line(tmp_path, write_lines):
    path = write_lines(tmp_path / "a.jsonl", [AZ, AZ])
    with path.open("ab") as file:
        file.write('{"id": "b", "text": "şəhər"}\n'.encode("cp1254", errors="replace"))
    with refused(DataError, f"{path}:3:", "not UTF-8", "convert"):
        read(path)


@pytest.mark.parametrize("damage", ["truncated", "flipped byte"])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(f'{{"id": "{number}", "text": "sənəd {number**3}"}}\n' for number in range(500))
    whole = bytearray(path.read_bytes())
    if damage == "flipped byte":
        whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole if damage == "flipped byte" else whole[:-20])
    with refused(DataError, str(path), "broken gzip file", "fetch it again"):
        read(path)
