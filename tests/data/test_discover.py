"""What a folder of collections is taken for."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from refusals import refused

from azneobert.data.discover import describe, discover, first_records, language_of, sample_texts
from azneobert.data.sources import open_source
from azneobert.errors import DataError
from azneobert.recipe import FileSource

LONG = "Xəzər dənizi dünyanın ən böyük qapalı su hövzəsidir və sahilində şəhərlər var. "


def rows(field="text", number=3, **more):
    return [{"id": f"d{n}", field: f"{LONG} {n}", "title": "Qısa", **more} for n in range(number)]


def write_jsonl(file, records, compress=lambda raw: raw):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(compress("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()))


def write_csv(file, records):
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, list(records[0]))
    table.writeheader()
    table.writerows(records)
    file.write_bytes(gzip.compress(text.getvalue().encode()) if file.suffix == ".gz" else text.getvalue().encode())


def write_parquet(file, records):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), file)


@pytest.fixture
def corpus(tmp_path):
    """Five formats in five collections, a labelled task, and what is neither."""
    write_jsonl(tmp_path / "Xəbərlər 2023/a.jsonl.zst", rows(), zstandard.compress)
    write_csv(tmp_path / "forum/a.csv", rows("body"))
    write_csv(tmp_path / "forum/deep/b.csv.gz", rows("body"))
    write_parquet(tmp_path / "qanun.parquet", [{"doc": {"az": LONG, "en": "Short."}, "n": 1}])
    (tmp_path / "kitab").mkdir()
    (tmp_path / "kitab/one.txt").write_text(LONG)
    (tmp_path / "dump.txt").write_text(f"{LONG}\n\n" * 20_000)
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"topics/{split}.jsonl", [{"text": LONG, "label": "a"}])
    (tmp_path / "README.md").write_text("no source")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_folder_of_collections_is_read_as_a_person_would(corpus):
    found = discover(corpus)
    assert found.files == {
        "dump": FileSource(path=f"{corpus}/dump.txt", sample_by="paragraph"),
        "forum": FileSource(path=f"{corpus}/forum", text_field="body", id_field="id"),
        "kitab": FileSource(path=f"{corpus}/kitab", sample_by="document"),
        "qanun": FileSource(path=f"{corpus}/qanun.parquet", text_field="doc.az", id_field=None),
        "xeberler_2023": FileSource(path=f"{corpus}/Xəbərlər 2023", text_field="text", id_field="id"),
    }
    assert found.tasks == {"topics": f"{corpus}/topics"}
    assert [line.split(": ")[0] for line in found.passed_over] == [f"{corpus}/README.md"]


def test_what_was_found_can_be_read(corpus):
    for source in discover(corpus).files.values():
        texts = [text for records in open_source(source).read() for text in records.texts]
        assert texts
        assert all(text.strip().startswith(LONG.strip()) for text in texts)


def test_two_places_of_one_name_get_two_names(tmp_path):
    for name in ("News.jsonl", "news.jsonl", "news"):
        write_jsonl(tmp_path / name / "a.jsonl" if name == "news" else tmp_path / name, rows())
    assert list(discover(tmp_path).files) == ["news", "news_2", "news_3"]


def test_a_usual_name_goes_before_a_longer_text(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows("content", description=LONG * 9))
    assert describe(tmp_path / "a.jsonl").text_field == "content"


def test_without_one_it_is_the_longest_that_most_records_have(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [*rows("oxu", number=9), {"id": "x", "oxu": LONG, "rare": LONG * 99}])
    assert describe(tmp_path / "a.jsonl").text_field == "oxu"


def test_files_without_a_common_field_are_no_collection(tmp_path):
    write_jsonl(tmp_path / "c/a.jsonl", [{"oxu": LONG}])
    write_jsonl(tmp_path / "c/b.jsonl", [{"yaz": LONG}])
    with refused(DataError, f"{tmp_path}/c: no field of text that all its files have", "a collection of its own"):
        describe(tmp_path / "c")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.csv.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz"])
def test_a_damaged_file_stops_nothing(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\xff{not any of them")
    assert all(isinstance(record, dict) for record in first_records(tmp_path / name))


@pytest.mark.parametrize("content", [None, "file", "empty"])
def test_no_folder_or_none_with_a_collection_is_refused(tmp_path, content):
    place = tmp_path / "corpus"
    if content == "file":
        place.write_text("x")
    elif content == "empty":
        place.mkdir()
    with refused(DataError, f"{place}: no ", "collection"):
        discover(place)


def test_the_first_texts_of_a_source_tell_its_language(corpus):
    assert all(text.startswith("Xəzər") for text in sample_texts(discover(corpus).files["forum"]))
    assert len(sample_texts(discover(corpus).files["kitab"])) == 1


def test_of_two_translations_it_is_the_one_in_a_known_language(tmp_path):
    pair = {
        "translation": {"az": "Şəhər dəniz sahilində yerləşir.", "en": "The city lies on the shore of the Caspian."}
    }
    write_jsonl(tmp_path / "a.jsonl", [pair] * 5)
    assert describe(tmp_path / "a.jsonl").text_field == "translation.az"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (LONG, "azeri_latin"),
        ("Şehir deniz kıyısında, ışıklı caddeleri ve geniş bahçeleri olan yaşlı bir yerdir.", "turkish"),
        ("Город лежит на берегу Каспийского моря.", "any"),
        ("12345", "any"),
    ],
)
def test_the_language_is_told_by_the_first_texts(tmp_path, text, language):
    write_jsonl(tmp_path / "a.jsonl", [{"text": text}] * 5)
    assert discover(tmp_path).language == language
    assert language_of([]) == "any"
