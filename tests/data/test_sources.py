import csv
import gzip
import io
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.data import local_files, unpacking
from azneobert.data import records as records_module
from azneobert.data.local_files import source_files
from azneobert.data.records import TOO_LONG, Records
from azneobert.data.sources import open_source
from azneobert.errors import DataError
from azneobert.recipe import FileSource

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
LINE_FORMATS = [f"{form}{suffix}" for form in (".jsonl", ".csv", ".txt") for suffix in PACKERS]
FORMATS = [*LINE_FORMATS, ".parquet"]
MUTATIONS = 40
TEXTS = ["Bakı, Xəzərin sahilində", 'dırnaqda "söz"', "iki\nsətir", "\u200bgöl ", "", "İ" * 90]


def text_of(number: int) -> str:
    return f"{number} {TEXTS[number % len(TEXTS)]}"


def write(path: Path, rows: Sequence[tuple[object, str | None]]) -> Path:
    """Rows of an id and a text in the format that the name asks for; plain text is a paragraph each, without ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form, suffix = path.suffixes[0], (*path.suffixes, "")[1]
    if form == ".parquet":
        table = pa.table({"other": [0] * len(rows), "text": [t for _, t in rows], "id": [str(i) for i, _ in rows]})
        pq.write_table(table, path, row_group_size=7)
        return path
    if form == ".jsonl":
        content = "".join(f"{json.dumps({'id': i, 'text': t}, ensure_ascii=False)}\n" for i, t in rows)
    elif form == ".csv":
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows([("id", "other", "text"), *((i, "x", t) for i, t in rows)])
        content = lines.getvalue()
    else:
        content = "".join(f"{t}\n\n" for _, t in rows)
    path.write_bytes(PACKERS[suffix](content.encode()))
    return path


def read(path: Path, position=None, **source) -> list[Records]:
    return [records for records in open_source(FileSource(path=str(path), **source)).read(position) if len(records)]


def joined(batches: Sequence[Records]) -> Records:
    """Batches as one."""
    return Records(*([item for batch in batches for item in getattr(batch, n)] for n in ("ids", "texts", "malformed")))


def content(batches: Sequence[Records]) -> list[tuple]:
    """What must be the same when a reader goes on: everything but how far the file has been read ahead."""
    return [(batch.ids, batch.texts, batch.malformed, batch.position) for batch in batches]


def check_resume(path: Path, **source) -> list[Records]:
    """From every position, after a trip through JSON, exactly what is left comes, cut at the same places."""
    whole = read(path, **source)
    for number, batch in enumerate(whole, 1):
        position = json.loads(json.dumps(batch.position))
        assert content(read(path, position, **source)) == content(whole[number:])
    return whole


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(local_files, "_BATCH_DOCUMENTS", 5)
    monkeypatch.setattr(local_files, "_BATCH_CHARACTERS", 120)
    monkeypatch.setattr(local_files, "_PARQUET_ROWS", 3)
    monkeypatch.setattr(local_files, "_CSV_BLOCK", 300)


# Formats


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_each_format_gives_its_ids_and_texts(tmp_path, form):
    rows = [(f"n{number}", text_of(number)) for number in range(20)]
    path = write(tmp_path / f"a{form}", rows)
    records = joined(read(path, sample_by="paragraph"))
    assert records.malformed == []
    if form.startswith(".txt"):
        assert [text.strip() for text in records.texts] == [text.strip() for _, text in rows]
    else:
        assert list(zip(records.ids, records.texts, strict=True)) == rows


def test_a_folder_of_mixed_formats_is_read_in_the_order_of_its_paths(tmp_path):
    names = ["a.csv", "b/c/d.parquet", "b/z.jsonl.zst", "c.jsonl.gz"]
    for name in reversed(names):
        write(tmp_path / name, [(name, "salam")])
    write(tmp_path / "d.txt", [(0, "mətn")])
    for other in (".hidden.jsonl", ".git/a.jsonl", "README.md", "table.parquet.gz", "x.json"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("{}")
    assert joined(read(tmp_path)).ids == [*names, f"{tmp_path}/d.txt"]


def test_the_size_is_that_of_all_files_and_the_bytes_read_reach_it(tmp_path):
    for name in ("a.jsonl", "b.txt", "c.parquet", "d.csv.gz", "e.csv"):
        write(tmp_path / name, [(number, text_of(number)) for number in range(9)])
    reader = open_source(FileSource(path=str(tmp_path)))
    read_so_far = [records.bytes_read for records in reader.read()]
    assert reader.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert read_so_far == sorted(read_so_far)
    assert read_so_far[-1] == reader.size


@pytest.mark.parametrize(("suffix", "pack"), PACKERS.items())
def test_files_packed_in_several_members_are_read_to_the_last(tmp_path, suffix, pack):
    lines = [f'{{"id": {number}, "text": "{"ə" * 50}"}}\n'.encode() for number in range(300)]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(pack(b"".join(lines[i : i + 7])) for i in range(0, 300, 7)))
    assert joined(read(tmp_path)).ids == [str(number) for number in range(300)]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_line_longer_than_the_blocks_that_are_read_stays_whole(tmp_path, small_batches, suffix):
    long = "uzun sətir " * 250_000
    path = write(tmp_path / f"a.jsonl{suffix}", [(1, "qısa"), (2, long), (3, "qısa")])
    assert joined(check_resume(path)).texts == ["qısa", long, "qısa"]


# Fields


def test_a_dotted_text_field_and_id_field_reach_into_nested_objects(tmp_path, write_lines):
    rows = [{"meta": {"id": n}, "translation": {"azj_Latn": text_of(n), "eng_Latn": "x"}} for n in range(20)]
    write_lines(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=7)
    fields = {"text_field": "translation.azj_Latn", "id_field": "meta.id"}
    records = joined(read(tmp_path, **fields))
    assert records.ids == [str(n) for n in range(20)] * 2
    assert records.texts == [text_of(n) for n in range(20)] * 2


def test_ids_may_be_strings_numbers_null_or_not_looked_for(tmp_path, write_lines):
    ids = ["a", 7, None, ""]
    path = write_lines(tmp_path / "a.jsonl", [{"id": identity, "text": "salam"} for identity in ids])
    assert joined(read(path)).ids == ["a", "7", f"{path}:3", ""]
    assert joined(read(path, id_field=None)).ids == [f"{path}:{number}" for number in range(1, 5)]
    table = pa.table({"id": pa.array([1, None, 3]), "text": ["salam"] * 3})
    pq.write_table(table, tmp_path / "b.parquet")
    assert joined(read(tmp_path / "b.parquet")).ids == ["1", f"{tmp_path}/b.parquet:2", "3"]


def test_a_null_text_is_a_record_without_text_and_not_malformed(tmp_path, write_lines):
    write_lines(tmp_path / "a.jsonl", [{"id": 1, "text": None}, {"id": 2, "text": "salam"}])
    pq.write_table(pa.table({"id": [3, 4], "text": [None, "salam"]}), tmp_path / "b.parquet")
    records = joined(read(tmp_path))
    assert (records.texts, records.malformed) == ([None, "salam"] * 2, [])


def test_words_that_other_readers_take_for_null_are_texts_of_a_csv_file(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\nNA,NA\nnull,""\n1,007\n2,true\n')
    records = joined(read(tmp_path))
    assert records.ids == ["NA", "null", "1", "2"]
    assert records.texts == ["NA", "", "007", "true"]


def test_half_of_a_surrogate_pair_in_a_text_or_an_id_is_no_error(tmp_path, write_lines):
    write_lines(
        tmp_path / "a.jsonl", ['{"id": "i\\ud83d", "text": "\\ud83d bir"}', '{"id": "\\ud83d\\ude00", "text": "x"}']
    )
    records = joined(read(tmp_path))
    assert records.ids == ["i?", "😀"]
    assert records.texts == ["\ud83d bir", "x"]


# Plain text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_document_of_plain_text_is_a_file_a_paragraph_or_a_line(tmp_path, newline):
    path = tmp_path / "a.txt"
    path.write_bytes("bir\niki\n\n \nüç\n\t\ndörd".replace("\n", newline).encode())

    def found(sample_by):
        records = joined(read(path, sample_by=sample_by))
        return [
            (identity, text.split()) for identity, text in zip(records.ids, records.texts, strict=True) if text.strip()
        ]

    assert found("document") == [(str(path), ["bir", "iki", "üç", "dörd"])]
    assert found("paragraph") == [(f"{path}:1", ["bir", "iki"]), (f"{path}:5", ["üç"]), (f"{path}:7", ["dörd"])]
    assert found("line") == [
        (f"{path}:{line}", [word]) for line, word in ((1, "bir"), (2, "iki"), (5, "üç"), (7, "dörd"))
    ]


def test_each_file_of_a_folder_of_plain_text_is_a_document(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"sənəd {number}\n\nson")
    assert joined(read(tmp_path)).texts == [f"sənəd {number}\n\nson" for number in range(3)]


# Odd files


def test_crlf_and_blank_lines_between_records_are_no_records(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\r\n{"id": 1, "text": "bir"}\r\n\n  \n{"id": 2, "text": "iki"}')
    (tmp_path / "b.csv").write_bytes(b"id,text\r\n3,bir\r\n\r\n4,iki")
    records = joined(read(tmp_path))
    assert (records.ids, records.texts, records.malformed) == (list("1234"), ["bir", "iki"] * 2, [])


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path):
    # Regression: json.loads refuses the mark, so the first record of such a file is lost.
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 1, "text": "bir"}\n')
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfid,text\n2,iki\n")
    records = joined(read(tmp_path))
    assert records.malformed == []
    assert (records.ids, records.texts) == (["1", "2"], ["bir", "iki"])


def test_quotes_newlines_and_delimiters_stand_inside_values_of_a_csv_file(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"bir, ""iki""\n\nüç"\n2,"a\r\nb"\n', newline="")
    assert joined(read(tmp_path)).texts == ['bir, "iki"\n\nüç', "a\r\nb"]


def test_empty_tables_and_packed_nothing_hold_no_record(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "b.csv").write_text("id,text\n")
    (tmp_path / "c.txt.zst").write_bytes(PACKERS[".zst"](b""))
    pq.write_table(
        pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}), tmp_path / "d.parquet"
    )
    assert read(tmp_path) == []


# Malformed records


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": 1, "text": "kəs', "not JSON"),
        ("salam", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["text"]', "a JSON list, not an object"),
        # Regression: is taken for a blank line, and not counted.
        ("null", "a JSON NoneType, not an object"),
        ('{"id": 1, "body": "x"}', "no field 'text', found body, id"),
        ('{"text": "x"}', "no field 'id', found text"),
        ('{"id": 1, "text": ["x"]}', "field 'text' is list, not a string"),
        # Regression: ends the stage with Python's ValueError.
        (f'{{"id": {"1" * 5000}, "text": "x"}}', "not JSON"),
    ],
    ids=lambda value: value[:20],
)
def test_a_malformed_line_is_named_and_its_neighbours_stay(tmp_path, write_lines, line, problem):
    good = {"id": 1, "text": "salam"}
    path = write_lines(tmp_path / "a.jsonl", [good, "", line, good])
    (records,) = read(path)
    assert records.texts == ["salam", "salam"]
    (said,) = records.malformed
    assert said.startswith(f"{path}:3: {problem}")
    assert len(said) < 500
    assert len(records) == 3


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": 1, "text": "a"}\n{"id": 2, "text": "\xff"}\n{"id": 3, "text": "c"}\n')
    (records,) = read(path)
    assert (records.texts, records.malformed) == (["a", "c"], [f"{path}:2: not UTF-8 (invalid start byte)"])
    text = tmp_path / "b.txt"
    text.write_bytes(b"bir\n\xe4\xfeiki\n")
    assert joined(read(text, sample_by="line")).malformed == [f"{text}:2: not UTF-8 (invalid continuation byte)"]


def test_what_is_wrong_with_a_record_is_one_line_that_can_be_written_down(tmp_path, write_lines):
    # Regression: a key with a line end or half a surrogate pair is shown as it is.
    path = write_lines(tmp_path / "a.jsonl", ['{"a\\nb": 1}', '{"c\\ud800": 1}'])
    (records,) = read(path)
    assert len(records.malformed) == 2
    assert not any("\n" in said for said in records.malformed)
    assert all(said.encode() for said in records.malformed)


def test_rows_of_a_csv_file_with_a_wrong_number_of_columns_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,bir\n2,iki,üç\n3\n4,dörd\n")
    records = joined(read(path))
    assert records.texts == ["bir", "dörd"]
    assert records.malformed == [
        f"{path}:3: 3 columns, the header has 2: '2,iki,üç'",
        f"{path}:4: 1 columns, the header has 2: '3'",
    ]


def test_a_value_of_a_csv_file_that_is_not_utf8_is_one_malformed_record(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text,other\n1,bir,\xff\n2,\xff,x\n3,dord,x\n")
    (records,) = read(path)
    assert records.texts == ["bir", "dord"]
    (said,) = records.malformed
    assert str(path) in said
    assert "not UTF-8" in said


def test_malformed_rows_of_a_csv_file_count_also_where_a_whole_block_is_malformed(tmp_path, monkeypatch):
    # Regression: dropped in a block without a good row, and after the last one.
    monkeypatch.setattr(local_files, "_CSV_BLOCK", 32)
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,bir\n" + "x,y,z\n" * 30 + "2,iki\n" + "x,y,z\n" * 30)
    records = joined(check_resume(path))
    assert records.ids == ["1", "2"]
    assert len(records.malformed) == 60
    path.write_text("id,text\n" + "x,y,z\n" * 30)
    assert len(joined(read(path)).malformed) == 30


def test_a_value_of_a_parquet_file_that_is_not_utf8_is_one_malformed_record(tmp_path):
    # Regression: ends the stage with Python's UnicodeDecodeError.
    path = tmp_path / "a.parquet"
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
    broken = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffc")])
    pq.write_table(pa.table({"id": [1, 2, 3], "text": broken}), path)
    (records,) = read(path)
    assert records.texts == ["a", "c"]
    (said,) = records.malformed
    assert said.startswith(f"{path}:2: not UTF-8")


def test_a_row_of_a_parquet_file_whose_nested_text_is_of_another_type_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": [{"az": "salam"}, None]}), path)
    assert joined(read(path, text_field="text.az")).texts == ["salam"]
    assert joined(read(path, text_field="text.az")).malformed == [f"{path}:2: no field 'text.az', found NoneType"]
    assert joined(read(path)).malformed[0] == f"{path}:1: field 'text' is dict, not a string"


# What is refused


def test_a_missing_path_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/none: no such", "`path`", ".jsonl", ".parquet"):
        open_source(FileSource(path=str(tmp_path / "none")))


@pytest.mark.parametrize("name", ["README.md", "a.json", "a.parquet.zst", ".a.jsonl"])
def test_a_folder_without_a_source_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with refused(DataError, f"{tmp_path}: holds no source", "expected a .jsonl"):
        source_files(tmp_path)


def test_a_file_of_no_format_that_can_be_read_is_refused(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with refused(DataError, f"{tmp_path}/a.docx: holds no source", "expected a .jsonl"):
        source_files(tmp_path / "a.docx")


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_file_is_refused(tmp_path, form):
    write(tmp_path / "a.jsonl", [(1, "salam")])
    (tmp_path / f"b{form}").touch()
    with refused(DataError, f"{tmp_path}/b{form}: is empty", "fetch it again"):
        open_source(FileSource(path=str(tmp_path)))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("form", [*(form for form in LINE_FORMATS if form.endswith((".gz", ".zst"))), ".parquet"])
def test_a_truncated_file_is_refused(tmp_path, form, share):
    path = write(tmp_path / f"a{form}", [(number, os.urandom(50).hex()) for number in range(300)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with refused(DataError, f"{path}: damaged", "fetch it again"):
        read(path)


@pytest.mark.parametrize("form", [".jsonl.gz", ".csv.gz", ".txt.zst", ".csv.zst", ".parquet"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, form):
    path = tmp_path / f"a{form}"
    path.write_text("id,text\n1,salam\n")
    with refused(DataError, f"{path}: damaged", "fetch it again"):
        read(path)


def test_a_damaged_page_of_a_parquet_file_is_refused(tmp_path):
    # Regression: says `damaged None file`.
    path = write(tmp_path / "a.parquet", [(number, text_of(number)) for number in range(300)])
    whole = bytearray(path.read_bytes())
    page = pq.ParquetFile(path).metadata.row_group(0).column(1).dictionary_page_offset
    whole[page : page + 20] = b"\xff" * 20
    path.write_bytes(whole)
    with refused(DataError, f"{path}: damaged parquet file", "fetch it again"):
        read(path)


@pytest.mark.parametrize("form", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("fields", [{"text_field": "body"}, {"id_field": "key"}, {"text_field": "body.az"}])
def test_a_missing_column_is_refused_with_those_that_are_there(tmp_path, form, fields):
    path = write(tmp_path / f"a{form}", [(1, "salam")])
    with refused(DataError, f"{path}: no column {next(iter(fields.values()))!r}", "text", "other", "id"):
        read(path, **fields)


def test_a_csv_file_whose_first_row_does_not_end_is_refused(tmp_path, monkeypatch):
    # Regression: "no column 'text', found none".
    monkeypatch.setattr(local_files, "_CSV_BLOCK", 1 << 20)
    path = tmp_path / "a.csv"
    path.write_text("x" * (3 << 20))
    with refused(DataError, str(path), "its first row is longer than 1 MB"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1254"])
def test_a_csv_file_whose_header_is_not_utf8_is_refused(tmp_path, encoding):
    # Regression: ends the stage with Python's UnicodeDecodeError.
    path = tmp_path / "a.csv"
    path.write_bytes("id,text,mənbə\n1,salam,x\n".replace("ə", "ş").encode(encoding))
    with refused(DataError, str(path), "UTF-8"):
        read(path)


# Going on


@pytest.mark.parametrize("form", FORMATS)
def test_reading_goes_on_from_every_position_of_every_format(tmp_path, small_batches, form):
    write(tmp_path / f"a{form}", [(number, text_of(number)) for number in range(40)])
    write(tmp_path / "b" / f"c{form}", [(number, text_of(number)) for number in range(40, 60)])
    whole = check_resume(tmp_path, sample_by="paragraph")
    assert len(whole) > 8
    assert {batch.position["file"] for batch in whole} == {0, 1}
    if not form.startswith(".txt"):
        assert joined(whole).texts == [text_of(number) for number in range(60)]


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
@pytest.mark.parametrize("suffix", PACKERS)
def test_reading_goes_on_in_plain_text(tmp_path, small_batches, sample_by, suffix):
    for name in "ab":
        text = "\r\n\n \nbir\niki\r\n\n" + "üç\n\xa0\ndörd\n" * 20 + "\n\nson"
        (tmp_path / f"{name}.txt{suffix}").write_bytes(PACKERS[suffix](text.encode()))
    whole = joined(check_resume(tmp_path, sample_by=sample_by))
    assert "".join(whole.texts) == text * 2


@pytest.mark.parametrize("suffix", PACKERS)
def test_reading_goes_on_among_malformed_and_blank_lines(tmp_path, small_batches, suffix):
    lines = ["", "{", '{"id": 1, "text": "ə"}', "  ", '{"id": 2}', '{"id": 3, "text": null}', '{"id": 4, "text": "b"}']
    packed = PACKERS[suffix]("\n".join(lines * 9).encode())
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed)
    whole = joined(check_resume(tmp_path))
    assert [len(whole.malformed), len(whole.texts)] == [18, 27]
    lines_named = [int(said.removeprefix(f"{tmp_path}/a.jsonl{suffix}:").split(":")[0]) for said in whole.malformed]
    assert lines_named == [7 * n + k for n in range(9) for k in (2, 5)]


def test_the_ids_by_position_are_the_same_after_going_on(tmp_path, small_batches):
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        write(tmp_path / name, [(number, text_of(number)) for number in range(20)])
    whole = joined(check_resume(tmp_path, id_field=None))
    assert len(set(whole.ids)) == 60


def test_a_batch_ends_at_so_many_documents_or_characters(tmp_path, small_batches):
    write(tmp_path / "a.jsonl", [(1, "a" * 130), (2, "b" * 100), (3, "c" * 20), *((n, "d") for n in range(12))])
    assert [len(batch) for batch in read(tmp_path)] == [1, 2, 5, 5, 2]


def test_the_state_changes_with_the_files_and_not_with_the_reading(tmp_path, small_batches):
    path = write(tmp_path / "a.jsonl", [(number, "salam") for number in range(20)])
    source = FileSource(path=str(tmp_path))
    reader = open_source(source)
    before = reader.state()
    assert json.loads(json.dumps(before)) == before
    assert len(list(reader.read())) > 1
    assert reader.state() == before == open_source(source).state()
    os.utime(path, ns=(1, 1))
    touched = open_source(source).state()
    write(tmp_path / "b.jsonl", [(1, "salam")])
    more = open_source(source).state()
    path.rename(tmp_path / "c.jsonl")
    assert len({json.dumps(state) for state in (before, touched, more, open_source(source).state())}) == 4


ANY_TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=30)
ANY_LINE = st.one_of(
    st.builds(lambda text: json.dumps({"id": 1, "text": text}).encode(), st.text(max_size=30)),
    st.sampled_from([b"", b" \t", b"{}", b"{", b'{"id": 1, "text": "\xff"}', b'{"id": null, "text": null}', b"[1]"]),
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")),
)
FEW = settings(max_examples=25, deadline=None, database=None)


def small(batch: int, block: int = 64) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setattr(local_files, "_BATCH_DOCUMENTS", batch)
    patch.setattr(local_files, "_PARQUET_ROWS", batch)
    patch.setattr(local_files, "_CSV_BLOCK", block)
    return patch


@FEW
@given(lines=st.lists(ANY_LINE, min_size=1, max_size=12), suffix=st.sampled_from([*PACKERS]), batch=st.integers(1, 4))
def test_any_lines_are_read_once_wherever_reading_goes_on(tmp_path_factory, lines, suffix, batch):
    path = tmp_path_factory.mktemp("any") / f"a.jsonl{suffix}"
    lines = ['{"id": 0, "text": "ə"}'.encode(), *lines]  # else random bytes may pass for a file in another encoding
    path.write_bytes(PACKERS[suffix](b"\n".join(lines) + b"\n"))
    patch = small(batch)
    try:
        whole = joined(check_resume(path))
    finally:
        patch.undo()
    assert len(whole) == sum(bool(line.strip()) for line in lines)


@FEW
@given(rows=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=12), block=st.integers(200, 400))
def test_any_values_of_a_csv_file_are_read_as_they_were_written(tmp_path_factory, rows, block):
    path = write(tmp_path_factory.mktemp("any") / "a.csv", rows)
    patch = small(2, block)
    try:
        whole = joined(check_resume(path))
    finally:
        patch.undo()
    assert list(zip(whole.ids, whole.texts, strict=True)) == rows


@FEW
@given(texts=st.lists(st.none() | ANY_TEXT, min_size=1, max_size=12), group=st.integers(1, 5), batch=st.integers(1, 4))
def test_any_rows_of_a_parquet_file_are_read_once_wherever_reading_goes_on(tmp_path_factory, texts, group, batch):
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=group)
    patch = small(batch)
    try:
        assert joined(check_resume(path)).texts == texts
    finally:
        patch.undo()


@FEW
@given(
    text=st.text(st.sampled_from("aə \t\r\n\x0b\x85"), min_size=1, max_size=40),
    sample_by=st.sampled_from(["document", "paragraph", "line"]),
    suffix=st.sampled_from([*PACKERS]),
)
def test_no_character_of_a_plain_text_is_lost(tmp_path_factory, text, sample_by, suffix):
    path = tmp_path_factory.mktemp("any") / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](text.encode()))
    patch = small(2)
    try:
        assert "".join(joined(check_resume(path, sample_by=sample_by)).texts) == text
    finally:
        patch.undo()


# Other encodings

AZERBAIJANI = [f"{number} küçə, görüş, işıq, ağac, İçərişəhər" for number in range(30)]


def lines_of(form: str) -> str:
    rows = [(f"n{number}", text) for number, text in enumerate(AZERBAIJANI)]
    if form == ".csv":
        return "id,text\n" + "".join(f'{identity},"{text}"\n' for identity, text in rows)
    if form == ".jsonl":
        return "".join(f'{{"id": "{identity}", "text": "{text}"}}\n' for identity, text in rows)
    return "".join(f"{text}\n\n" for _, text in rows)


ENCODINGS = {
    "utf-16": ("is UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8"),
    "utf-16-le": ("is UTF-16 without a byte order mark", "iconv -f UTF-16LE -t UTF-8"),
    "utf-16-be": ("is UTF-16 without a byte order mark", "iconv -f UTF-16BE -t UTF-8"),
    "utf-32": ("is UTF-32, not UTF-8", "iconv -f UTF-32 -t UTF-8"),
    "cp1254": ("looks like cp1254", "iconv -f CP1254 -t UTF-8"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", LINE_FORMATS)
def test_a_file_in_another_encoding_is_refused_with_the_command_that_converts_it(tmp_path, form, encoding):
    path = tmp_path / f"a{form}"
    suffix = path.suffixes[1] if len(path.suffixes) > 1 else ""
    # cp1254 has no ə: who writes Azerbaijani in it writes ä or e.
    text = lines_of(path.suffixes[0]).replace("ə", "e" if encoding == "cp1254" else "ə")
    path.write_bytes(PACKERS[suffix](text.encode(encoding)))
    said, command = ENCODINGS[encoding]
    with refused(DataError, f"{path}: ", said, command, str(path)):
        read(path, sample_by="line")


def test_the_command_that_converts_a_file_does(tmp_path):
    path = tmp_path / "a b.csv.gz"
    path.write_bytes(gzip.compress(lines_of(".csv").encode("utf-16")))
    with pytest.raises(DataError) as caught:
        read(path)
    subprocess.run(str(caught.value).split("convert it: ")[1], shell=True, check=True)
    assert joined(read(path)).texts == AZERBAIJANI


@pytest.mark.parametrize("suffix", PACKERS)
def test_one_document_of_many_in_another_encoding_is_one_malformed_record(tmp_path, suffix):
    for name, encoding in (("a", "utf-8"), ("b", "utf-16-le"), ("c", "cp1254"), ("d", "utf-8-sig")):
        text = "görüş işıq ağac " * 9
        (tmp_path / f"{name}.txt{suffix}").write_bytes(PACKERS[suffix](text.encode(encoding)))
    records = joined(check_resume(tmp_path))
    assert records.texts == [text] * 2
    assert [said.split(";")[0] for said in records.malformed] == [
        f"{tmp_path}/b.txt{suffix}: is UTF-16 without a byte order mark, not UTF-8",
        f"{tmp_path}/c.txt{suffix}: is not UTF-8 and looks like cp1254 (Turkish Windows)",
    ]


def test_a_few_records_in_another_encoding_are_malformed_and_no_reason_to_refuse_the_file(tmp_path):
    lines = [f'{{"id": {number}, "text": "küçə"}}'.encode() for number in range(20)]
    lines[7:9] = ['{"id": 7, "text": "görüş"}'.encode("cp1254"), '{"id": 8, "text": "işıq"}'.encode("cp1254")]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    (records,) = read(path)
    assert (len(records.texts), len(records.malformed)) == (18, 2)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_character_cut_by_the_end_of_what_is_looked_at_is_no_other_encoding(tmp_path, suffix):
    for shift in range(2):
        path = tmp_path / f"{shift}.txt{suffix}"
        path.write_bytes(PACKERS[suffix](("a" * shift + "ə" * 100_000).encode()))
        assert joined(read(path, sample_by="line")).malformed == []


@pytest.mark.parametrize("form", LINE_FORMATS)
def test_a_byte_order_mark_before_utf8_is_passed_over_in_every_format(tmp_path, form):
    path = tmp_path / f"a{form}"
    suffix = path.suffixes[1] if len(path.suffixes) > 1 else ""
    path.write_bytes(PACKERS[suffix](lines_of(path.suffixes[0]).encode("utf-8-sig")))
    records = joined(read(path, sample_by="paragraph"))
    assert [text.strip() for text in records.texts] == AZERBAIJANI
    assert records.malformed == []


# Rows of a CSV file that are not as the header says

ROWS = {
    "in the middle": ("1,bir\n2,iki,üç\n3,dörd\n", [3]),
    "first": ("2,iki,üç\n1,bir\n3,dörd\n", [2]),
    "last": ("1,bir\n3,dörd\n2,iki,üç", [4]),
    "only": ("2,iki,üç\n", [2]),
    "narrow": ("1,bir\n2\n3,dörd\n", [3]),
    "narrow and last": ("1,bir\n3,dörd\n2", [4]),
    "several": ("1,bir\n2,a,b\n2\n3,dörd\n2,a,b,c", [3, 4, 6]),
}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_is_too_wide_or_too_narrow_is_one_malformed_record_however_packed(tmp_path, suffix, case):
    # Regression: ValueError (I/O operation on closed file) where the file is packed.
    rows, expected = ROWS[case]
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(PACKERS[suffix](f"id,text\n{rows}".encode()))
    for _ in range(3):  # it depends on when Arrow's thread lets go of the file
        records = joined(check_resume(path))
        assert records.texts == (["bir", "dörd"] if "1,bir" in rows else [])
        assert [int(said.removeprefix(f"{path}:").split(":")[0]) for said in records.malformed] == expected


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_row_that_is_too_wide_and_not_utf8_is_one_malformed_record(tmp_path, suffix, capfd):
    # Regression: the whole file is refused, and a traceback is printed.
    path = tmp_path / f"a.csv{suffix}"
    rows = b"n,t\xc9\x99\n1,bir\n2,\xff,x\n3,d\xc3\xb6rd\n4,\xff\n"
    path.write_bytes(PACKERS[suffix](rows))
    records = joined(check_resume(path, text_field="tə", id_field="n"))
    assert (records.ids, records.texts) == (["1", "3"], ["bir", "dörd"])
    assert [said.split(": ", 1)[1] for said in records.malformed] == [
        "not UTF-8 (invalid start byte)",
        "3 columns, the header has 2: '2,\ufffd,x'",
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("row", ['2,"iki\n3,dörd\n4,beş', '"2,iki\n3,dörd\n4,beş', '2,"iki ""\n3,dörd\n\n4,beş\n'])
def test_what_a_quote_that_never_closes_swallows_is_counted(tmp_path, suffix, row):
    # Regression: all that follows is taken for one text, and nothing said.
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(PACKERS[suffix](f"id,text\n1,bir\n{row}".encode()))
    records = joined(check_resume(path))
    assert (records.ids, len(records.malformed)) == (["1"], 3)
    assert records.malformed[0].startswith(f"{path}:3: a quote opens here and never closes, 3 lines")


def test_a_quote_that_swallows_more_than_a_block_is_refused_with_its_place(tmp_path, small_batches):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,bir\n2,"iki\n' + "3,üç\n" * 500)
    with refused(DataError, f"{path}: a row after the", "a quote that never closes"):
        read(path)


@pytest.mark.parametrize("text", ['a,"b', "ab", 'a"b', '"a"', '"a""b"', '"a"b', "", '""'])
@pytest.mark.parametrize("newline", ["", "\n", "\r\n"])
@pytest.mark.parametrize("columns", [1, 2])
def test_the_last_row_is_read_like_any_other(tmp_path, text, newline, columns):
    header, row = ("text", "x") if columns == 1 else ("id,text", "1,x")
    value = f'"{text.replace(chr(34), chr(34) * 2)}"'
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n{row}\n{row[:-1]}{value}{newline}", newline="")
    records = joined(read(path, id_field=None))
    assert (records.texts, records.malformed) == (["x", text], [])


def test_a_column_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,text,text\n1,bir,iki\n")
    with refused(DataError, f"{tmp_path}/a.csv: 2 columns are called 'text'", "rename"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("id,x,x,text\n1,a,b,bir\n")
    assert joined(read(tmp_path)).texts == ["bir"]


def test_the_columns_that_are_there_are_named_in_one_line(tmp_path):
    (tmp_path / "a.csv").write_text('"a\nb",' + "c" * 5000 + "\n1,2\n")
    with refused(DataError, "no column 'text', found a b, c") as _:
        read(tmp_path)


@pytest.mark.parametrize("length", [local_files.HEAD - 10, local_files.HEAD + 10, 5 * local_files.HEAD])
def test_a_long_header_or_a_long_first_row_is_read(tmp_path, length):
    (tmp_path / "a.csv").write_text(f"id,text,{'x' * length}\n1,bir,y\n")
    (tmp_path / "b.csv").write_text(f"id,text\n2,{'x' * length}")
    assert joined(read(tmp_path)).ids == ["1", "2"]


# Nothing in it

NOTHING = {
    "a.jsonl": (b"\n  \n\r\n", "3 blank lines"),
    "b.jsonl.gz": (gzip.compress(b""), "it is packed nothing"),
    "c.csv": (b"\n\n  \n\n", "4 blank lines"),
    "d.csv.gz": (gzip.compress(b""), "it is packed nothing"),
    "e.csv": (b"id,text\n", "a header and no row"),
    "f.csv.zst": (PACKERS[".zst"](b"id,text"), "a header and no row"),
    "g.txt": (b"\xef\xbb\xbf \n\t\n", "2 blank lines"),
    "h.txt.gz": (gzip.compress(b"\n" * 50), "50 blank lines"),
}


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
@pytest.mark.parametrize("name", NOTHING)
def test_a_file_without_a_text_says_so(tmp_path, name, sample_by):
    content, found = NOTHING[name]
    (tmp_path / name).write_bytes(content)
    batches = list(open_source(FileSource(path=str(tmp_path), sample_by=sample_by)).read())
    assert [(b.warning, b.blank) for b in batches if b.warning] == [
        (f"{tmp_path}/{name}: holds no record: {found}", True)
    ]


def test_a_file_with_a_text_says_nothing_wherever_reading_goes_on(tmp_path, small_batches):
    for form in FORMATS:
        write(tmp_path / f"a{form}", [(number, f"\n\n{text_of(number)}") for number in range(9)])
    reader = open_source(FileSource(path=str(tmp_path), sample_by="line"))
    positions = [None, *(batch.position for batch in reader.read())]
    assert len(positions) > 20
    assert not [b.warning for position in positions for b in reader.read(position) if b.warning]


# Links and what is no file


def test_a_file_that_stands_there_twice_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [(1, "bir")])
    (tmp_path / "b.jsonl").symlink_to(path)
    (tmp_path / "c.jsonl").hardlink_to(path)
    batches = list(open_source(FileSource(path=str(tmp_path))).read())
    said = [batch.warning for batch in batches if batch.warning]
    assert [line.split(",")[0] for line in said] == [
        f"{tmp_path}/{name}.jsonl: is the same file as {path}" for name in "bc"
    ]
    assert joined(batches).ids == ["1"] * 3


def test_a_folder_behind_a_link_is_read(tmp_path):
    write(tmp_path / "there/b.jsonl", [(1, "bir")])
    (tmp_path / "source").mkdir()
    (tmp_path / "source/link").symlink_to(tmp_path / "there")
    assert joined(read(tmp_path / "source")).ids == ["1"]


@pytest.mark.parametrize("name", ["a.jsonl", "folder"])
def test_a_link_to_nowhere_is_refused(tmp_path, name):
    write(tmp_path / "source/b.jsonl", [(1, "bir")])
    link = tmp_path / "source" / name
    link.symlink_to(tmp_path / "gone")
    for path in (tmp_path / "source", link):
        with refused(DataError, f"{link}: is a link to {tmp_path}/gone, which is not there", "put it there"):
            source_files(path)


def test_links_in_a_circle_are_refused(tmp_path):
    write(tmp_path / "source/b.jsonl", [(1, "bir")])
    (tmp_path / "source/deep").mkdir()
    (tmp_path / "source/deep/up").symlink_to(tmp_path / "source")
    with refused(DataError, f"{tmp_path}/source/deep/up: is a link to a folder above it", "remove"):
        source_files(tmp_path / "source")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "d.jsonl")
    (tmp_path / "d.jsonl").symlink_to(tmp_path / "c.jsonl")
    with refused(DataError, f"{tmp_path}/c.jsonl: cannot be read (Too many levels of symbolic links)"):
        source_files(tmp_path / "c.jsonl")


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    write(tmp_path / "b.jsonl", [(1, "bir")])
    os.mkfifo(tmp_path / "a.jsonl")
    for path in (tmp_path, tmp_path / "a.jsonl"):
        with refused(DataError, f"{tmp_path}/a.jsonl: is a pipe, no file or folder; expected a .jsonl"):
            source_files(path)
    with refused(DataError, "/dev/null: is a device, no file or folder"):
        source_files(Path("/dev/null"))


def test_a_folder_that_may_not_be_looked_into_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", [(1, "bir")])
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path):  # as for any user but root
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with refused(DataError, f"{tmp_path}/closed: cannot be read (Permission denied)", "allow it"):
        source_files(tmp_path)


# Whatever stands in a file


def mutated(content: bytes, random: Random) -> bytes:
    """A few bytes changed, put in, taken out or doubled."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(changed) + 1)
        some = random.choice([b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"{", random.randbytes(3)])
        end = place + random.choice([0, 0, 1, 5, 60])
        changed[place:end] = random.choice([some, b"", changed[place:end] * 2, some * 40])
    return bytes(changed) or b"\n"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_file_changed_at_random_is_read_the_same_from_everywhere_or_refused(tmp_path, small_batches, form):
    random = Random(form)
    path = write(tmp_path / f"a{form}", [(number, text_of(number)) for number in range(9)])
    suffix = path.suffixes[1] if len(path.suffixes) > 1 else ""
    packed = path.read_bytes()
    whole = packed if not suffix else {".gz": gzip.decompress, ".zst": zstandard.decompress}[suffix](packed)
    refusals: list[str] = []
    for number in range(MUTATIONS):
        # Half of them inside what is packed, half in the packed bytes.
        inside = not suffix or number % 2
        path.write_bytes(PACKERS[suffix](mutated(whole, random)) if inside else mutated(packed, random))
        try:
            check_resume(path, sample_by=random.choice(["document", "paragraph", "line"]))
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) < MUTATIONS
    assert [said for said in refusals if "\n" in said or not said.startswith(f"{path}: ")] == []


# What no document is


@pytest.mark.parametrize("packed", PACKERS)
def test_a_line_that_is_too_long_is_one_malformed_record_and_the_next_ones_are_read(
    packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "LONGEST", 100)
    lines = ['{"id": "a", "text": "bir"}', f'{{"id": "b", "text": "{"x" * 350}"}}', '{"id": "c", "text": "iki"}']
    file = tmp_path / f"a.jsonl{packed}"
    file.write_bytes(PACKERS[packed]("\n".join(lines).encode()))
    found = list(open_source(FileSource(path=str(file))).read())
    assert [text for records in found for text in records.texts] == ["bir", "iki"]
    assert [line for records in found for line in records.malformed] == [f"{file}:2: {TOO_LONG}"]


@pytest.mark.parametrize(("sample_by", "texts"), [("document", 0), ("paragraph", 1), ("line", 42)])
def test_a_plain_text_that_is_too_long_is_one_malformed_record(
    sample_by: str, texts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (records_module, local_files):
        monkeypatch.setattr(module, "LONGEST", 100)
    (tmp_path / "a.txt").write_text("on hərf\n" * 40 + "\nson\n")
    found = list(open_source(FileSource(path=str(tmp_path / "a.txt"), sample_by=sample_by, id_field=None)).read())
    assert sum(len(records.texts) for records in found) == texts
    assert sum(len(records.malformed) for records in found) == (sample_by != "line")


@pytest.mark.parametrize("value", ["[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101])
def test_a_line_that_is_nested_too_deep_is_malformed(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "bir", "id": {value}}}\n{{"text": "iki", "id": "b"}}\n')
    (records,) = open_source(FileSource(path=str(tmp_path / "a.jsonl"))).read()
    assert records.texts == ["iki"]
    assert "nested more than 100 levels deep" in records.malformed[0]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz", "a.jsonl.zst"])
def test_what_unpacks_to_more_than_text_does_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_FREELY", 1 << 20)
    line = "text\n" if "csv" in name else '{"text": "bir", "id": "a"}\n'
    packer = PACKERS[Path(name).suffix]
    (tmp_path / name).write_bytes(packer((line + "bir\n" * 10 if "csv" in name else line).encode() * 400_000))
    with refused(DataError, name, "unpacks to more than 200 times its size"):
        list(open_source(FileSource(path=str(tmp_path / name), id_field=None)).read())
