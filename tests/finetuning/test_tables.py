"""Every format gives the same rows, and every damage one line of error."""

import gzip
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused

from azneobert.errors import DataError
from azneobert.finetuning.examples import unlabelled
from azneobert.finetuning.tables import rows
from azneobert.task_settings import TaskSettings

CLASSES = TaskSettings()
WORDS = TaskSettings(kind="tokens")
EXAMPLES = [{"text": 'Qol, "bəli"', "label": "idman"}, {"text": "Seçki\nkeçirildi", "label": "siyasət"}]
TEXTS = {
    "a.jsonl": "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in EXAMPLES),
    "a.csv": 'text,label\n"Qol, ""bəli""",idman\n"Seçki\nkeçirildi",siyasət\n',
    "a.tsv": 'text\tlabel\n"Qol, ""bəli"""\tidman\n"Seçki\nkeçirildi"\tsiyasət\n',
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def contents(file, kind=CLASSES):
    return [row for _, row in rows(file, kind)]


@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["no BOM", "BOM"])
@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize(("name", "text"), TEXTS.items())
def test_every_text_format_gives_the_same_rows_packed_or_not(tmp_path, name, text, packed, bom):
    file = tmp_path / f"{name}{packed}"
    file.write_bytes(PACK[packed](f"{bom}{text}".encode()))
    assert contents(file) == EXAMPLES


def test_parquet_gives_the_same_rows(tmp_path):
    pq.write_table(pa.Table.from_pylist(EXAMPLES), tmp_path / "a.parquet", compression="zstd", row_group_size=1)
    found = list(rows(tmp_path / "a.parquet", CLASSES))
    assert [row for _, row in found] == EXAMPLES
    assert [where for where, _ in found] == [f"{tmp_path}/a.parquet:1", f"{tmp_path}/a.parquet:2"]


def test_a_row_is_named_by_the_line_that_it_begins_in(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\r\n\r\n"a\r\nb",x\r\nc,y\r\n', newline="")
    assert [where.rpartition(":")[2] for where, _ in rows(tmp_path / "a.csv", CLASSES)] == ["3", "5"]
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}')
    assert [where.rpartition(":")[2] for where, _ in rows(tmp_path / "a.jsonl", CLASSES)] == ["2", "4"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", "text,label\nok,x\na,b,c\n", (":3: 3 cells; expected 2",)),
        ("a.tsv", "text\tlabel\nok\tx\na\n", (":3: 1 cells; expected 2",)),
        ("a.csv", 'text,label\nok,x\n"never closed,x\nb,y\n', (":3: not csv (unexpected end of data); expected a",)),
        ("a.tsv", 'text\tlabel\n"Qol" dedi\tx\n', (":2: not tsv (", "expected after")),
        ("a.csv", "text,text\na,b\n", (":1: 2 columns are called",)),
        ("a.csv", "text,label\ra,b\r", (":1: not csv (",)),
        ("a.jsonl", '{"text": "a"}\n["a"]\n', (":2: is a list; expected a JSON object",)),
        ("a.jsonl", '{"text": "a"}\nnull\n', (":2: ", "not an object; expected a JSON object")),
        ("a.jsonl", '{"text": "a"}\n{"text": "a"\n', (":2: not JSON",)),
        ("a.jsonl", '{"text": ' + "[" * 5000 + "\n", (":1: not JSON (nested more than",)),
    ],
)
def test_a_line_that_is_no_row_is_refused_with_its_place(tmp_path, name, content, found):
    (tmp_path / name).write_text(content, newline="")
    with refused(DataError, f"{tmp_path}/{name}", *found):
        contents(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.conll"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1254"])
def test_another_encoding_is_named(tmp_path, name, encoding):
    text = {"a.jsonl": '{"text": "Şəhər çox gözəldir"}', "a.csv": "text\nŞəhər çox gözəl", "a.conll": "Şəhər\tO"}
    line = text.get(name, "text\tlabel\nŞəhər\tgözəl").replace("ə", "e")
    (tmp_path / name).write_bytes(f"{line}\n".encode(encoding))
    with refused(DataError, f"{tmp_path}/{name}", "UTF-16" if encoding != "cp1254" else "cp1254", "iconv"):
        contents(tmp_path / name, WORDS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.conll"])
def test_one_line_that_is_not_utf8_is_refused_with_its_place(tmp_path, name):
    good = {"a.jsonl": '{"tokens": "ə"}', "a.conll": "ə\tO"}.get(name, "tokens\nə")
    (tmp_path / name).write_bytes(f"{good}\n".encode() * 30 + b"\xff\n")
    line = 61 if name in ("a.csv", "a.tsv") else 31
    with refused(DataError, f"{tmp_path}/{name}:{line}: not UTF-8"):
        contents(tmp_path / name, WORDS)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.conll"])
def test_a_damaged_packed_file_is_refused(tmp_path, name, packed):
    words = random.Random(1).choices(["Bakı", "şəhər", "Gəncə", "Kür"], k=4000)
    good = "".join(f'{{"tokens": "{word}"}}\n' if name == "a.jsonl" else f"{word}\n" for word in words)
    whole = PACK[packed](good.encode())
    (tmp_path / f"{name}{packed}").write_bytes(whole[: len(whole) // 2])
    with refused(DataError, f"{tmp_path}/{name}{packed}: damaged", "fetch it again"):
        contents(tmp_path / f"{name}{packed}", WORDS)
    (tmp_path / f"{name}{packed}").write_bytes(b"no archive at all")
    with refused(DataError, f"{tmp_path}/{name}{packed}: damaged"):
        contents(tmp_path / f"{name}{packed}", WORDS)


def test_what_unpacks_without_end_is_refused(tmp_path):
    (tmp_path / "a.csv.zst").write_bytes(PACK[".zst"](b"text\n" + (b" " * 999_999 + b"\n") * 80))
    with refused(DataError, "a.csv.zst: damaged", "unpacks to more than"):
        contents(tmp_path / "a.csv.zst")


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"PAR1" + bytes(100), lambda data: b""])
def test_damaged_parquet_is_refused(tmp_path, damage):
    pq.write_table(pa.Table.from_pylist(EXAMPLES), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(damage((tmp_path / "a.parquet").read_bytes()))
    with refused(DataError, f"{tmp_path}/a.parquet: damaged parquet"):
        contents(tmp_path / "a.parquet")


def test_parquet_that_has_lost_rows_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 300}), tmp_path / "a.parquet", row_group_size=100)
    whole = (tmp_path / "a.parquet").read_bytes()
    before, rows_300, after = whole.rpartition(b"\xd8\x04")  # as its end has them: a varint of Thrift
    assert rows_300
    (tmp_path / "a.parquet").write_bytes(before + b"\xf8\x04" + after)
    with refused(DataError, f"{tmp_path}/a.parquet: 300 rows, its end says 316; fetch it again"):
        contents(tmp_path / "a.parquet")


def test_a_value_of_parquet_that_python_has_not_is_refused(tmp_path):
    dates = pa.array([1 << 40], pa.timestamp("s"))
    pq.write_table(pa.table({"text": ["a"], "read": dates}), tmp_path / "a.parquet")
    with refused(DataError, "a.parquet: a value in rows 1 to 1", "leave out its column"):
        contents(tmp_path / "a.parquet")


def test_a_file_of_another_format_names_those_that_would_do(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with refused(DataError, f"{tmp_path}/a.xlsx", "expected one of .jsonl, .csv, .tsv", ".parquet"):
        contents(tmp_path / "a.xlsx")
    (tmp_path / "a.conll").write_text("Bakı\tB-LOC\n")
    with refused(DataError, "a.conll: is of no format of classification"):
        contents(tmp_path / "a.conll")
    with refused(DataError, f"{tmp_path}/none.csv: no such file"):
        contents(tmp_path / "none.csv")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with refused(DataError, f"{tmp_path}/a.jsonl: is no regular file"):
        contents(tmp_path / "a.jsonl")


def test_a_cell_may_be_longer_than_the_csv_module_s_own_limit(tmp_path):
    (tmp_path / "a.csv").write_text(f"text\n{'a' * 200_000}\n")
    assert [len(row["text"]) for row in contents(tmp_path / "a.csv")] == [200_000]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.conll", "a.conllu", "a.parquet", "a.csv.gz"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=80),
        st.text('tokens[]{}:,"\t\r\n# 01-.O\0ə\ud800', max_size=60).map(lambda t: t.encode(errors="surrogatepass")),
        st.text('a"\t\r\n,', max_size=40).map(lambda text: f"tokens\n{text}".encode()),
    )
)
def test_whatever_stands_in_a_file_it_is_read_or_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    said = ""
    try:
        assert all(unlabelled(where, record, WORDS).text for where, record in rows(tmp_path / name, WORDS))
    except DataError as error:
        said = str(error)
    assert not said or said.startswith(f"{tmp_path}/{name}")
