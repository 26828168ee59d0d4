"""The hub's loader reads local files in each data set's own schema, through `datasets` itself."""

import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from refusals import refused

from azneobert.data import hub
from azneobert.data.records import Records
from azneobert.data.sources import open_source
from azneobert.errors import DataError
from azneobert.recipe import HubSource, load_recipe

zstd = zstandard.ZstdCompressor().compress


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """`datasets` leaves lock files where its cache is."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def recipe_source(project):
    """A source of the published recipe; only the place of its files is another."""

    def change(collection: str, **place) -> HubSource:
        source = load_recipe(project / "recipes" / "h200.yaml").data.sources[collection]
        assert source.dataset is not None
        assert place.keys() <= {"dataset", "data_files"}
        return HubSource(**source.model_dump() | {name: str(value) for name, value in place.items()})

    return change


def repository(folder: Path, configs: dict[str, dict[str, str]]) -> Path:
    """A data set's README.md, whose header says which files each split of each config holds."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {json.dumps(config)}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A data set", ""]))
    return folder


def write_parquet(path: Path, rows: list[dict], schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=4)


def texts(name: str, count: int) -> list[str]:
    return [f"{name} {number}-ci «mətn»\niki sətirdə" for number in range(count)]


def read(source: HubSource, position=None) -> list[Records]:
    return list(open_source(source).read(position))


def joined(batches: list[Records]) -> Records:
    return Records(*([item for batch in batches for item in getattr(batch, n)] for n in ("ids", "texts", "malformed")))


def content(batches: list[Records]) -> list[tuple]:
    """What must be the same when a reader goes on; the library words one position in several ways."""
    return [(batch.ids, batch.texts, batch.malformed, batch.bytes_read) for batch in batches]


def check(source: HubSource, monkeypatch, records: int = 3) -> Records:
    """All records; and from every position, after a trip through JSON, exactly what is left comes, cut alike.

    So it does after one batch at a time, each by a new reader at the last one's position.
    """
    whole = joined(read(source))
    monkeypatch.setattr(hub, "_BATCH_RECORDS", records)
    batches = read(source)
    assert len(batches) > 2
    for number, batch in enumerate(batches, 1):
        position = json.loads(json.dumps(batch.position))
        assert content(read(source, position)) == content(batches[number:])
    position, steps = None, []
    while batch := next(open_source(source).read(position), None):
        steps.append(batch)
        position = json.loads(json.dumps(batch.position))
    assert content(steps) == content(batches)
    assert joined(batches) == whole
    assert [batch.bytes_read for batch in batches] == sorted(batch.bytes_read for batch in batches)
    return whole


# FineWeb-2, Wikipedia, CulturaX: Parquet files in a repository on the hub

FINEWEB = pa.schema(
    [
        *((name, pa.string()) for name in ("text", "id", "dump", "url", "date", "file_path", "language")),
        ("language_score", pa.float64()),
        ("language_script", pa.string()),
        ("minhash_cluster_size", pa.int64()),
        ("top_langs", pa.string()),
    ]
)


def fineweb_row(identity: str, text: str) -> dict:
    return {
        "text": text,
        "id": f"<urn:uuid:{identity}>",
        "dump": "CC-MAIN-2014-42",
        "url": "https://example.az/1",
        "date": "2014-10-20T08:19:33Z",
        "file_path": "s3://commoncrawl/crawl-data/x.warc.gz",
        "language": "azj",
        "language_score": 0.99,
        "language_script": "Latn",
        "minhash_cluster_size": 3,
        "top_langs": '{"azj_Latn_score": 0.99}',
    }


@pytest.fixture
def fineweb(tmp_path):
    folder = tmp_path / "fineweb-2"
    kinds = {"azj_Latn": ("train", "test"), "azj_Latn_removed": ("train",), "tur_Latn": ("train", "test")}
    for config, splits in kinds.items():
        for split in splits:
            for shard in range(3):
                name = f"{config} {split} {shard}"
                rows = [fineweb_row(text, text) for text in texts(name, 5)]
                write_parquet(folder / f"data/{config}/{split}/000_0000{shard}.parquet", rows, FINEWEB)
    return repository(
        folder, {config: {split: f"data/{config}/{split}/*" for split in splits} for config, splits in kinds.items()}
    )


def test_fineweb_is_read_without_its_test_split_and_what_was_removed(fineweb, recipe_source, monkeypatch):
    records = check(recipe_source("fineweb2", dataset=fineweb), monkeypatch)
    assert records.texts == [text for shard in range(3) for text in texts(f"azj_Latn train {shard}", 5)]
    assert records.ids == [f"<urn:uuid:{text}>" for text in records.texts]
    assert records.malformed == []


def test_another_split_is_read_where_the_recipe_asks_for_it(fineweb):
    records = joined(read(HubSource(dataset=str(fineweb), config="azj_Latn", split="test")))
    assert records.texts == [text for shard in range(3) for text in texts(f"azj_Latn test {shard}", 5)]


def test_wikipedia_is_read(tmp_path, recipe_source, monkeypatch):
    for config, name in (("20231101.az", "Azərbaycan"), ("20231101.azb", "آذربایجان")):
        rows = [
            {"id": str(number), "url": f"https://az.wikipedia.org/wiki/{number}", "title": "Başlıq", "text": text}
            for number, text in enumerate(texts(name, 11))
        ]
        write_parquet(tmp_path / config / "train-00000-of-00001.parquet", rows)
    repository(tmp_path, {name: {"train": f"{name}/train-*"} for name in ("20231101.azb", "20231101.az")})
    records = check(recipe_source("wikipedia", dataset=tmp_path), monkeypatch)
    assert records.texts == texts("Azərbaycan", 11)
    assert records.ids == [str(number) for number in range(11)]


def test_culturax_which_has_no_ids_is_read(tmp_path, recipe_source, monkeypatch):
    for shard in range(2):
        rows = [
            {"text": text, "timestamp": "2021/01/19 02:35:48", "url": "https://example.az", "source": "mC4"}
            for text in texts(f"az {shard}", 7)
        ]
        write_parquet(tmp_path / f"az/az_part_0000{shard}.parquet", rows)
    repository(tmp_path, {"az": {"train": "az/*.parquet"}})
    source = recipe_source("culturax", dataset=tmp_path)
    records = check(source, monkeypatch)
    assert records.texts == [*texts("az 0", 7), *texts("az 1", 7)]
    assert records.ids == [f"{tmp_path} az:{number}" for number in range(1, 15)]


def test_a_null_text_is_no_error_and_a_number_is_a_malformed_record(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", [{"id": 1, "text": None}, {"id": 2, "text": "salam"}])
    records = joined(read(HubSource(dataset="parquet", data_files=str(tmp_path / "a.parquet"))))
    assert (records.ids, records.texts) == (["1", "2"], [None, "salam"])
    records = joined(read(HubSource(dataset="parquet", data_files=str(tmp_path / "a.parquet"), text_field="id")))
    assert len(records.malformed) == 2
    assert "field 'id' is int, not a string" in records.malformed[0]


# CC-100 and NLLB: what the scripts give, and the files that the scripts read


def test_the_rows_of_the_script_of_cc100_are_read(tmp_path, monkeypatch):
    lines = ["Birinci sətir\n", "ikinci sətir\n", "\n", "Başqa sənəd\n", "\n", "\n", "son\n"]
    write_parquet(tmp_path / "az.parquet", [{"id": str(n), "text": line} for n, line in enumerate(lines)])
    repository(tmp_path, {"az": {"train": "az.parquet"}})
    records = check(HubSource(dataset=str(tmp_path), config="az"), monkeypatch, records=2)
    assert records.texts == lines
    assert records.ids == [str(number) for number in range(7)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_file_of_cc100_is_read_a_paragraph_at_a_time(tmp_path, recipe_source, monkeypatch, newline):
    paragraphs = [f"{number}-ci sənəd\nikinci sətir" for number in range(9)]
    content = ("\n\n".join(paragraphs[:5]) + "\n\n\n\n" + "\n\n".join(paragraphs[5:]) + "\n").replace("\n", newline)
    (tmp_path / "az.txt.xz").write_bytes(lzma.compress(content.encode()))
    records = check(recipe_source("cc100", data_files=tmp_path / "az.txt.xz"), monkeypatch)
    assert [text.strip() for text in records.texts] == paragraphs
    assert len(set(records.ids)) == 9


def test_a_paragraph_over_the_end_of_a_block_stays_whole(tmp_path, recipe_source, monkeypatch):
    paragraphs = [f"{number}-ci sənəd\n{'söz ' * number}son" for number in range(30)]
    (tmp_path / "az.txt.xz").write_bytes(lzma.compress("\n\n".join(paragraphs).encode()))
    source = recipe_source("cc100", data_files=tmp_path / "az.txt.xz")
    source = source.model_copy(update={"options": source.options | {"chunksize": 50}})
    assert check(source, monkeypatch, records=4).texts == paragraphs


def test_the_rows_of_the_script_of_nllb_are_read(tmp_path, monkeypatch):
    rows = [
        {
            "translation": {"azj_Latn": text, "eng_Latn": "text"},
            "laser_score": 1.1,
            "source_sentence_lid": 0.9,
            "target_sentence_lid": 1.0,
            "source_sentence_source": "crawl-data/x.warc.gz",
            "source_sentence_url": "https://example.az",
            "target_sentence_source": "crawl-data/y.warc.gz",
            "target_sentence_url": "https://example.com",
        }
        for text in texts("az", 10)
    ]
    write_parquet(tmp_path / "a.parquet", rows)
    repository(tmp_path, {"azj_Latn-eng_Latn": {"train": "a.parquet"}})
    source = HubSource(
        dataset=str(tmp_path), config="azj_Latn-eng_Latn", text_field="translation.azj_Latn", id_field=None
    )
    assert check(source, monkeypatch).texts == texts("az", 10)


def test_the_file_of_nllb_is_read_as_it_stands(tmp_path, recipe_source, monkeypatch):
    sentences = ['Bir "dırnaq', "NA", '"bütöv"', '"', "#5 üç", "12", "null", "", "söz, vergül", "it's \\t"]
    rows = [f'{text}\tEnglish "{n}\t1.1\tazj\teng\tcrawl\thttps://a\tcc\thttps://b' for n, text in enumerate(sentences)]
    (tmp_path / "azj_Latn-eng_Latn.gz").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    records = check(recipe_source("nllb", data_files=tmp_path / "azj_Latn-eng_Latn.gz"), monkeypatch)
    assert records.texts == sentences
    assert records.malformed == []


def test_a_line_of_nllb_that_was_cut_or_has_too_much_does_not_end_the_stream(tmp_path, recipe_source):
    rows = [
        "Birinci\tFirst\t1.1\tazj\teng\tc\thttps://a\tcc\thttps://b",
        "Kəsilmiş",
        "Üçüncü" + "\tx" * 12,
        "Son\tLast",
    ]
    (tmp_path / "a.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    records = joined(read(recipe_source("nllb", data_files=tmp_path / "a.gz")))
    assert records.texts == ["Birinci", "Kəsilmiş", "Üçüncü", "Son"]


# HPLT 3: lines of JSON on the project's own server


def hplt_row(identity: str, text: str, **more) -> dict:
    return {
        "f": "./path.warc.gz",
        "o": 578687,
        "s": 6030,
        "rs": 18890,
        "u": "https://example.az/1",
        "c": "text/html",
        "ts": "2021-01-19T02:35:48Z",
        "de": "utf-8",
        "crawl_id": "wide00017",
        "lang": ["azj_Latn", "tur_Latn"],
        "prob": [0.99, 0.01],
        "text": text,
        "xml": "<doc/>",
        "html_lang": ["az"],
        "cluster_size": 2,
        "seg_langs": ["azj_Latn", "azj_Latn"],
        "id": identity,
        "filter": "keep",
        "pii": [[1, 9]],
        "doc_scores": [8.5, 10, 9.1],
        "web-register": {"MT": 0.1, "NA": 0.8},
    } | more


def hplt_lines(name: str, count: int, **more) -> list[str]:
    return [
        json.dumps(hplt_row(f"{name}-{n}", t, **more), ensure_ascii=False) for n, t in enumerate(texts(name, count))
    ]


@pytest.fixture
def hplt(tmp_path):
    def write(*shards: list[str | bytes]) -> Path:
        paths = []
        for number, lines in enumerate(shards, 1):
            paths.append(tmp_path / f"10_{number}.jsonl.zst")
            raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
            paths[-1].write_bytes(zstd(raw))
        (tmp_path / "azj_Latn.map").write_text("".join(f"{path}\n" for path in paths) + "\n")
        return tmp_path / "azj_Latn.map"

    return write


def test_hplt_is_read_over_shards_of_different_keys_and_a_broken_line(hplt, recipe_source, monkeypatch):
    later = [json.loads(line) for line in hplt_lines("iki", 6, extra={"new": [1]}, pii=None, cluster_size="2")]
    for row in later:
        del row["web-register"]
    lines = [json.dumps(row) for row in later]
    lines[3] = lines[3][:40]
    source = recipe_source("hplt3", data_files=hplt(hplt_lines("bir", 7), lines, hplt_lines("üç", 4)))
    records = check(source, monkeypatch)
    expected = [text for name, n in (("bir", 7), ("iki", 6), ("üç", 4)) for text in texts(name, n)]
    assert records.texts == [text for text in expected if not text.startswith("iki 3")]
    assert records.ids[:8] == [*(f"bir-{number}" for number in range(7)), "iki-0"]
    (said,) = records.malformed
    assert said.startswith(f"json {source.data_files}:11: not JSON")


def test_characters_that_some_readers_take_for_line_ends_stay_inside_a_record(hplt, recipe_source):
    lines = [json.dumps(hplt_row("1", "a\x85b\u2028c\x0bd"), ensure_ascii=False), *hplt_lines("iki", 1)]
    records = joined(read(recipe_source("hplt3", data_files=hplt(lines))))
    assert records.texts == ["a\x85b\u2028c\x0bd", *texts("iki", 1)]


def test_half_of_a_surrogate_pair_in_a_line_is_no_error(hplt, recipe_source):
    lines = ['{"id": "1", "text": "\\ud83d"}', *hplt_lines("iki", 1)]
    assert joined(read(recipe_source("hplt3", data_files=hplt(lines)))).texts == ["\ud83d", *texts("iki", 1)]


def test_shards_of_several_frames_are_read_to_the_last(tmp_path, hplt, recipe_source):
    lines = hplt_lines("bir", 9)
    listed = hplt([])
    (tmp_path / "10_1.jsonl.zst").write_bytes(b"".join(zstd(f"{line}\n".encode()) for line in lines))
    assert joined(read(recipe_source("hplt3", data_files=listed))).texts == texts("bir", 9)


def test_blank_lines_and_a_byte_order_mark_are_no_malformed_records(hplt, recipe_source):
    # Regression: "" is no space to `parse_json`, and json.loads refuses the mark.
    lines = ["\ufeff" + hplt_lines("bir", 1)[0], "", " ", *hplt_lines("iki", 1)]
    records = joined(read(recipe_source("hplt3", data_files=hplt(lines))))
    assert records.malformed == []
    assert records.texts == [*texts("bir", 1), *texts("iki", 1)]


def test_a_line_that_is_not_utf8_is_refused_in_one_line(hplt, recipe_source):
    # `datasets` passes `encoding_errors` on for plain local files only, so such a line cannot be counted and left out.
    source = recipe_source("hplt3", data_files=hplt([*hplt_lines("bir", 2), b'{"id": "x", "text": "\xff"}']))
    with refused(DataError, "azj_Latn.map", "can't decode byte 0xff"):
        read(source)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_shard_is_refused_and_not_taken_for_a_short_one(tmp_path, hplt, recipe_source, share):
    # Regression: python-zstandard says nothing, and the rest of the shard is lost without a word.
    listed = hplt([json.dumps(hplt_row(str(n), os.urandom(100).hex())) for n in range(2000)], hplt_lines("iki", 3))
    shard = tmp_path / "10_1.jsonl.zst"
    shard.write_bytes(shard.read_bytes()[: int(shard.stat().st_size * share)])
    with refused(DataError, str(listed)):
        read(recipe_source("hplt3", data_files=listed))


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress)])
def test_other_truncated_files_are_refused_too(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack("\n".join(hplt_lines("bir", 300)).encode())[:-20])
    with refused(DataError, f"{tmp_path}/{name}", "Compressed file ended"):
        read(HubSource(dataset="json", data_files=str(tmp_path / name)))


def test_several_files_and_lists_of_files_are_read_in_order(tmp_path, hplt):
    listed = hplt(hplt_lines("iki", 2), hplt_lines("üç", 2))
    (tmp_path / "first.jsonl").write_text("\n".join(hplt_lines("bir", 2)))
    source = HubSource(dataset="json", data_files=(str(tmp_path / "first.jsonl"), str(listed)))
    assert joined(read(source)).ids == ["bir-0", "bir-1", "iki-0", "iki-1", "üç-0", "üç-1"]


# The state


def test_the_state_is_the_same_for_the_same_files_and_changes_with_the_list(hplt, recipe_source):
    source = recipe_source("hplt3", data_files=hplt(hplt_lines("bir", 2)))
    first = open_source(source).state()
    assert json.loads(json.dumps(first)) == first == open_source(source).state()
    hplt(hplt_lines("bir", 2), hplt_lines("iki", 2))
    assert open_source(source).state() != first


def test_the_state_changes_with_the_options_and_the_files_of_a_repository(fineweb, recipe_source):
    source = recipe_source("fineweb2", dataset=fineweb)
    first = open_source(source).state()
    assert open_source(source.model_copy(update={"options": {"batch_size": 2}})).state() != first
    (fineweb / "data/azj_Latn/train/000_00001.parquet").rename(fineweb / "data/azj_Latn/train/000_00009.parquet")
    assert open_source(source).state() != first


def test_the_state_changes_with_the_content_of_a_file(hplt, recipe_source):
    # Regression: only the names count, so another file of that name on a server would be gone on with.
    source = recipe_source("hplt3", data_files=hplt(hplt_lines("bir", 2)))
    first = open_source(source).state()
    shard = Path(hplt(hplt_lines("bir", 3))).with_name("10_1.jsonl.zst")
    os.utime(shard, (1, 1))
    assert open_source(source).state() != first


# What is refused


def test_an_unknown_config_is_refused_with_those_there_are(fineweb):
    with refused(DataError, f"{fineweb} az:", "azj_Latn", "tur_Latn", "correct", "`config`"):
        open_source(HubSource(dataset=str(fineweb), config="az"))


def test_a_config_that_is_needed_is_asked_for(fineweb):
    with refused(DataError, f"{fineweb}:", "azj_Latn", "tur_Latn", "`config`"):
        open_source(HubSource(dataset=str(fineweb)))


def test_an_unknown_split_is_refused_with_those_there_are(fineweb):
    with refused(DataError, f"{fineweb} azj_Latn: no split 'validation'; expected one of train, test"):
        open_source(HubSource(dataset=str(fineweb), config="azj_Latn", split="validation"))


def test_a_missing_folder_or_file_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path}/none:", "correct `dataset`"):
        open_source(HubSource(dataset=str(tmp_path / "none")))
    for name in ("none.jsonl", "none.map"):
        with refused(DataError, f"json {tmp_path}/{name}:", "`data_files`"):
            open_source(HubSource(dataset="json", data_files=str(tmp_path / name)))


def test_a_list_of_no_files_is_refused(tmp_path):
    # Regression: is read as a source without a record.
    (tmp_path / "none.map").write_text("\n")
    with refused(DataError, f"{tmp_path}/none.map", "`data_files`"):
        read(HubSource(dataset="json", data_files=str(tmp_path / "none.map")))


@pytest.mark.parametrize("collection", ["wikipedia", "fineweb2", "culturax"])
def test_a_hub_that_does_not_answer_is_said_so(collection, recipe_source, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = recipe_source(collection)
    with refused(DataError, f"{source.dataset} {source.config}:", "the hub does not answer", "HF_HUB_OFFLINE is set"):
        open_source(source)


@pytest.mark.parametrize("builder", ["json", "csv", "text", "parquet"])
def test_a_reader_of_files_without_files_is_refused(builder):
    with refused(DataError, f"{builder}: `data_files` is missing", f"name the files that {builder} shall read"):
        open_source(HubSource(dataset=builder))


def test_an_unknown_option_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,salam\n")
    with refused(DataError, f"csv {tmp_path}/a.csv:", "delimeter", "`options`"):
        open_source(HubSource(dataset="csv", data_files=str(tmp_path / "a.csv"), options={"delimeter": ";"}))


def test_a_missing_field_is_a_malformed_record_that_names_those_there_are(fineweb):
    records = joined(read(HubSource(dataset=str(fineweb), config="azj_Latn", text_field="content")))
    assert len(records.malformed) == 15
    assert records.malformed[0].startswith(f"{fineweb} azj_Latn:1: no field 'content', found date, dump")


def test_a_damaged_parquet_file_is_refused(fineweb, recipe_source):
    path = fineweb / "data/azj_Latn/train/000_00001.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with refused(DataError, f"{fineweb} azj_Latn:", "Parquet"):
        read(recipe_source("fineweb2", dataset=fineweb))
