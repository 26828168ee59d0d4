import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from refusals import refused

from azneobert.data import documents, ingest, local_files
from azneobert.data.cleaning import CleaningReport
from azneobert.errors import DataError
from azneobert.recipe import Cleaning, FileSource, HubSource, Source

CLEANING = Cleaning(min_words=3, max_malformed=0.1, validation_fraction=0.3)
WORDS = ["Xəzər", "dənizi", "şəhər", "küçə", "gözəl", "böyük", "ölkə", "kənd", "məktəb", "yol", "mədəniyyət", "xalq"]
# Parts of about four documents, read two at a time.
SMALL = {"ingest.PART_CHARACTERS": 1000, "local_files._BATCH_DOCUMENTS": 2, "hub._BATCH_RECORDS": 2}


@pytest.fixture
def small_parts(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(f"azneobert.data.{name}", value)


def prose(number: int) -> str:
    return f"{number}-ci sənəd: " + " ".join(random.Random(number).choices(WORDS, k=40))


def write_source(folder: Path, shards: int = 3, documents_each: int = 7) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        numbers = range(shard * documents_each, (shard + 1) * documents_each)
        lines = [json.dumps({"id": f"d{number}", "text": prose(number)}) for number in numbers]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(source: Path | Source, place: Path, cleaning: Cleaning = CLEANING, code: str = "") -> CleaningReport:
    chosen = source if isinstance(source, FileSource | HubSource) else FileSource(path=str(source))
    return ingest.ingest(chosen, cleaning, place / "documents", place / "partial", code=code)


def files(place: Path) -> dict[str, str]:
    """What an ingest left, by name: the hashes of its files."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((place / "documents").iterdir())
    }


def kept(place: Path) -> list[dict]:
    parts = documents.parts(place / "documents")
    return [row for part in parts for row in documents.pq.read_table(part).to_pylist()]


def stop(source: Path | Source, place: Path, monkeypatch, after: int | None) -> None:
    """An ingest that stops, as by Ctrl-C, when it has written so many parts, or all."""
    real = ingest._save_part

    def save(partial, state, part):
        real(partial, state, part)
        if state.finished if after is None else state.parts == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_save_part", save)
        with pytest.raises(KeyboardInterrupt):
            run(source, place)


def spoil(path: Path) -> None:
    """Make a file unreadable so that its reader cannot tell from its name, size or date."""
    stat = path.stat()
    path.write_bytes(b"\xff" * (stat.st_size - 1) + b"\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# What comes out


def test_every_record_is_counted_as_kept_or_by_why_it_goes(tmp_path):
    (tmp_path / "source").mkdir()
    rows = [
        {"id": 1, "text": prose(1)},
        {"id": 2, "text": prose(2)},
        {"id": 3, "text": "  "},
        {"id": 4, "text": None},
        {"id": 5, "text": "Salam dünya"},
        {"id": 6, "text": "Столица Азербайджана Баку расположена на берегу моря"},
        {"id": 7, "text": "Baku, the capital of Azerbaijan, is the largest city"},
    ]
    lines = [json.dumps(row) for row in rows]
    path = tmp_path / "source/a.jsonl"
    path.write_text("\n".join([lines[0], "{", *lines[1:]]) + "\n")
    report = run(path, tmp_path, CLEANING.model_copy(update={"max_malformed": 0.2}))
    assert (report.documents, report.kept) == (8, 2)
    assert report.dropped == {"malformed": 1, "empty": 2, "short": 1, "language": 2}
    assert report.first_malformed.startswith(f"{path}:2: not JSON")
    rows_kept = kept(tmp_path)
    assert [(row["id"], row["text"]) for row in rows_kept] == [("1", prose(1)), ("2", prose(2))]
    assert report.characters == sum(len(row["text"]) for row in rows_kept)
    assert report.words == sum(row["words"] for row in rows_kept) == sum(len(prose(n).split()) for n in (1, 2))
    assert report.validation == sum(row["validation"] for row in rows_kept)


def test_the_documents_come_in_parts_that_together_hold_all_in_order(tmp_path, small_parts):
    report = run(write_source(tmp_path / "source"), tmp_path)
    parts = documents.parts(tmp_path / "documents")
    assert len(parts) > 3
    assert list(files(tmp_path)) == [f"part-{number:05}.parquet" for number in range(len(parts))]
    assert [row["id"] for row in kept(tmp_path)] == [f"d{number}" for number in range(21)]
    assert report.kept == sum(map(documents.count_documents, parts)) == 21
    assert 0 < report.validation < 21


def test_nothing_is_left_of_what_was_unfinished(tmp_path, small_parts):
    run(write_source(tmp_path / "source"), tmp_path)
    assert not (tmp_path / "partial").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents", "source"]


def test_the_parts_do_not_depend_on_how_the_source_is_packed(tmp_path, small_parts):
    plain = write_source(tmp_path / "plain")
    packed = tmp_path / "packed"
    packed.mkdir()
    for path in plain.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert asdict(run(plain, tmp_path / "1")) == asdict(run(packed, tmp_path / "2"))
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_an_ingest_writes_the_same_bytes_each_time(tmp_path, small_parts):
    source = write_source(tmp_path / "source")
    assert asdict(run(source, tmp_path / "1")) == asdict(run(source, tmp_path / "2"))
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_another_source_beside_it_never_moves_a_document_across_the_split(tmp_path, small_parts):
    source = write_source(tmp_path / "source", shards=4)
    run(source, tmp_path / "1")
    before = {row["text"]: row["validation"] for row in kept(tmp_path / "1")}
    lines = [json.dumps({"id": f"o{number}", "text": prose(number)}) for number in range(100, 130)]
    (source / "!first.jsonl").write_text("\n".join(lines) + "\n")
    run(source, tmp_path / "2")
    after = {row["text"]: row["validation"] for row in kept(tmp_path / "2")}
    assert len(after) == len(before) + 30
    assert before == {text: after[text] for text in before}
    assert set(before.values()) == {True, False}


def test_a_document_stands_on_the_same_side_in_every_collection(tmp_path, small_parts):
    first, second = write_source(tmp_path / "a", shards=3), write_source(tmp_path / "b", shards=5)
    run(first, tmp_path / "1")
    run(second, tmp_path / "2")
    sides = {row["text"]: row["validation"] for row in kept(tmp_path / "2")}
    assert all(sides[row["text"]] == row["validation"] for row in kept(tmp_path / "1"))


# Malformed records


def write_malformed(path: Path, good: int, bad: int) -> Path:
    lines = [json.dumps({"id": number, "text": prose(number)}) for number in range(good)]
    path.write_text("\n".join([*lines, *["{"] * bad]) + "\n")
    return path


def test_a_tolerated_share_of_malformed_records_is_counted_and_the_first_named(tmp_path):
    path = write_malformed(tmp_path / "a.jsonl", good=18, bad=2)
    report = run(path, tmp_path)
    assert (report.documents, report.kept, report.dropped["malformed"]) == (20, 18, 2)
    assert report.first_malformed.startswith(f"{path}:19: not JSON")


def test_a_larger_share_is_refused_at_the_end(tmp_path):
    path = write_malformed(tmp_path / "a.jsonl", good=17, bad=3)
    with refused(DataError, f"{path}:18: not JSON", "3 of 20", "max_malformed (10.0%)", "mend the source"):
        run(path, tmp_path)
    assert not (tmp_path / "documents").exists()


def test_a_source_that_is_clearly_broken_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_SURE_AFTER", 20)
    monkeypatch.setattr(local_files, "_BATCH_DOCUMENTS", 4)
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" * 1000)
    with refused(DataError, f"{path}:1: not JSON", "4 of 4 records", "max_malformed"):
        run(path, tmp_path)


def test_a_few_malformed_records_at_the_start_are_no_reason_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_SURE_AFTER", 20)
    monkeypatch.setattr(local_files, "_BATCH_DOCUMENTS", 2)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"id": number, "text": prose(number)}) for number in range(30)]
    path.write_text("\n".join(["{", "{", *lines]))
    assert run(path, tmp_path).dropped["malformed"] == 2


def test_a_source_of_which_nothing_stays_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "Salam"}\n{"id": 2, "text": ""}\n')
    for _ in range(2):
        with refused(DataError, f"{path}: none of 2 documents stay", "1 short", "1 empty"):
            run(path, tmp_path)
    assert not (tmp_path / "documents").exists()


def test_what_is_wrong_with_a_damaged_file_in_the_middle_is_said_and_what_came_before_is_kept(
    tmp_path, small_parts, monkeypatch
):
    source = write_source(tmp_path / "source")
    (source / "1.jsonl").unlink()
    (source / "1.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with refused(DataError, f"{source}/1.jsonl.gz: damaged gzip file", "fetch it again"):
        run(source, tmp_path)
    assert (tmp_path / "partial/part-00000.parquet").exists()
    assert not (tmp_path / "documents").exists()


# A target that is already there


def test_documents_that_are_already_there_are_replaced_only_at_the_end(tmp_path, small_parts, monkeypatch):
    run(write_source(tmp_path / "old", shards=1), tmp_path)
    before = files(tmp_path)
    source = write_source(tmp_path / "source")
    stop(source, tmp_path, monkeypatch, after=2)
    assert files(tmp_path) == before
    run(source, tmp_path)
    assert [row["id"] for row in kept(tmp_path)] == [f"d{number}" for number in range(21)]


def test_a_refused_source_leaves_the_documents_that_are_there(tmp_path):
    run(write_source(tmp_path / "source"), tmp_path)
    before = files(tmp_path)
    with refused(DataError, "max_malformed"):
        run(write_malformed(tmp_path / "a.jsonl", good=2, bad=3), tmp_path)
    assert files(tmp_path) == before


# Going on


@pytest.mark.parametrize("parts", [1, 3])
def test_what_was_read_is_not_read_again(tmp_path, small_parts, monkeypatch, parts):
    source = write_source(tmp_path / "source", shards=5, documents_each=4)
    report = run(source, tmp_path / "whole")
    place = tmp_path / "stopped"
    stop(source, place, monkeypatch, after=parts)
    position = json.loads((place / "partial/state.json").read_text())["position"]
    assert position["file"] >= parts - 1
    for shard in range(position["file"]):
        spoil(source / f"{shard}.jsonl")
    lines = (source / f"{position['file']}.jsonl").read_bytes()
    spoil(source / f"{position['file']}.jsonl")
    with (source / f"{position['file']}.jsonl").open("r+b") as file:  # its first records are read, the others not
        stat = os.fstat(file.fileno())
        file.seek(position["offset"])
        file.write(lines[position["offset"] :])
    os.utime(source / f"{position['file']}.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert asdict(run(source, place)) == asdict(report)
    assert files(place) == files(tmp_path / "whole")


def test_a_complete_ingest_that_was_not_yet_put_in_its_place_reads_nothing_again(tmp_path, small_parts, monkeypatch):
    source = write_source(tmp_path / "source")
    report = run(source, tmp_path / "whole")
    place = tmp_path / "stopped"
    stop(source, place, monkeypatch, after=None)
    assert json.loads((place / "partial/state.json").read_text())["finished"]
    for path in source.iterdir():
        spoil(path)
    assert asdict(run(source, place)) == asdict(report)
    assert files(place) == files(tmp_path / "whole")


@pytest.mark.parametrize("change", ["cleaning", "source", "more files", "touched", "part size", "code"])
def test_other_settings_files_or_code_start_anew(tmp_path, small_parts, monkeypatch, change):
    folder = write_source(tmp_path / "source")
    stop(folder, tmp_path / "1", monkeypatch, after=2)
    source, cleaning, code = FileSource(path=str(folder)), CLEANING, ""
    if change == "cleaning":
        cleaning = CLEANING.model_copy(update={"validation_fraction": 0.6})
    elif change == "source":
        source = FileSource(path=str(folder), id_field=None)
    elif change == "more files":
        write_source(folder, shards=4)
    elif change == "touched":
        (folder / "0.jsonl").write_text(json.dumps({"id": "new", "text": prose(99)}))
    elif change == "part size":
        monkeypatch.setattr(ingest, "PART_CHARACTERS", 1500)
    else:
        code = "other"
    assert asdict(run(source, tmp_path / "1", cleaning, code)) == asdict(run(source, tmp_path / "2", cleaning, code))
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_after_a_refusal_a_larger_tolerated_share_goes_on_where_it_was(tmp_path, small_parts):
    source = write_source(tmp_path / "source")
    (source / "2.jsonl").write_text("{\n" * 5)
    with refused(DataError, f"{source}/2.jsonl:1", "max_malformed"):
        run(source, tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "partial").glob("part-*")}
    assert written
    spoil(source / "0.jsonl")
    report = run(source, tmp_path, CLEANING.model_copy(update={"max_malformed": 0.5}))
    assert (report.kept, report.dropped["malformed"]) == (14, 5)
    assert report.first_malformed.startswith(f"{source}/2.jsonl:1: not JSON")
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "documents").iterdir()}
    assert again.items() >= written.items()


@pytest.mark.parametrize("state", ["", "{", "[]", "7", '{"fingerprint": "x"}', '{"report": {"more": 1}}', "\x00"])
def test_an_unreadable_state_starts_anew(tmp_path, small_parts, monkeypatch, state):
    source = write_source(tmp_path / "source")
    stop(source, tmp_path, monkeypatch, after=1)
    (tmp_path / "partial/state.json").write_text(state)
    run(source, tmp_path)
    assert [row["id"] for row in kept(tmp_path)] == [f"d{number}" for number in range(21)]


def test_what_else_lies_among_the_unfinished_parts_does_not_come_into_the_documents(tmp_path, small_parts, monkeypatch):
    source = write_source(tmp_path / "source")
    run(source, tmp_path / "whole")
    place = tmp_path / "stopped"
    stop(source, place, monkeypatch, after=1)
    for name in (".part-00001.parquet.partial", "part-00001.parquet", "part-00077.parquet", ".state.json"):
        (place / "partial" / name).write_bytes(b"half")
    run(source, place)
    assert files(place) == files(tmp_path / "whole")


def test_a_part_that_is_gone_is_not_passed_over(tmp_path, small_parts, monkeypatch):
    # Regression: state.json is believed, so the documents of that part are lost without a word.
    source = write_source(tmp_path / "source")
    report = run(source, tmp_path / "whole")
    place = tmp_path / "stopped"
    stop(source, place, monkeypatch, after=2)
    (place / "partial/part-00000.parquet").unlink()
    assert asdict(run(source, place)) == asdict(report)
    assert files(place) == files(tmp_path / "whole")


# Killed

# Forks a child for every moment at which the file system changes; SIGKILL takes the child just before that change.
KILLER = """
import json, os, shutil, signal, sys
from pathlib import Path
place, source, cleaning, small, hub, step = json.loads(sys.argv[1])
import azneobert.data.hub, azneobert.data.ingest, azneobert.data.letters, azneobert.data.sources
if hub:
    import datasets
    datasets.config.HF_DATASETS_CACHE = place + "/cache"
from azneobert.data.ingest import ingest
from azneobert.recipe import Cleaning, FileSource, HubSource
for name, value in small.items():
    module, name = name.split(".")
    setattr(getattr(azneobert.data, module), name, value)
# What is slow the first time is done before the forks.
azneobert.data.letters.letter_counts(["a"])
source = (FileSource if "path" in source else HubSource)(**source)
for _ in azneobert.data.sources.open_source(source).read():
    pass

def killed(moment):
    folder = Path(place) / str(moment)
    child = os.fork()
    if child == 0:
        seen = 0
        def count(event, arguments):
            nonlocal seen
            if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
                return
            if not str(arguments[0]).startswith(str(folder)) or event == "open" and arguments[1] in ("r", "rb"):
                return
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        ingest(source, Cleaning(**cleaning), folder / "documents", folder / "partial")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL

moment = 1
while killed(moment):
    moment += step
print(moment)
"""


def kill_at_every_moment(source: Source, place: Path, step: int) -> list[Path]:
    """The places of ingests each of which was killed at another moment, from the first change to the last."""
    arguments = [str(place), source.model_dump(mode="json"), CLEANING.model_dump(mode="json"), SMALL]
    said = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps([*arguments, isinstance(source, HubSource), step])],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert said.returncode == 0, said.stderr
    return [place / str(moment) for moment in range(1, int(said.stdout), step)]


def check_killed(source: Source, tmp_path: Path, step: int = 1) -> None:
    report = run(source, tmp_path / "whole")
    assert len(files(tmp_path / "whole")) > 2
    places = kill_at_every_moment(source, tmp_path, step)
    assert len(places) > 12 // step
    for place in places:
        assert asdict(run(source, place)) == asdict(report), place
        assert files(place) == files(tmp_path / "whole"), place
        assert not (place / "partial").exists()


@pytest.mark.long
def test_killed_at_any_moment_and_run_again_it_ends_with_the_same_bytes(tmp_path, small_parts):
    check_killed(FileSource(path=str(write_source(tmp_path / "source", shards=2, documents_each=5))), tmp_path)


@pytest.mark.long
def test_a_stream_killed_at_any_moment_and_run_again_ends_with_the_same_bytes(tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    shards = sorted(write_source(tmp_path / "source", shards=2, documents_each=5).iterdir())
    check_killed(HubSource(dataset="json", data_files=tuple(map(str, shards))), tmp_path, step=3)


def test_killed_from_outside_again_and_again_it_ends_with_the_same_bytes(tmp_path, small_parts):
    source = write_source(tmp_path / "source", shards=12)
    report = run(source, tmp_path / "whole")
    place = tmp_path / "killed"
    state = place / "partial/state.json"
    for kills in range(1, 3):
        child = subprocess.Popen([sys.executable, "-c", SLOW, str(source), str(place), json.dumps(SMALL)])
        deadline = time.monotonic() + 60
        while not (state.exists() and json.loads(state.read_text())["parts"] >= 5 * kills):
            assert child.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.005)
        child.kill()
        assert child.wait(60) == -signal.SIGKILL
    assert not (place / "documents").exists()
    assert asdict(run(source, place)) == asdict(report)
    assert files(place) == files(tmp_path / "whole")


# As the stage runs it, but with time enough between two parts to be killed there.
SLOW = f"""
import json, sys, time
from pathlib import Path
from azneobert.data import hub, ingest, local_files
from azneobert.recipe import Cleaning, FileSource, HubSource
for name, value in json.loads(sys.argv[3]).items():
    module, name = name.split(".")
    setattr(globals()[module], name, value)
write = ingest.write_part
ingest.write_part = lambda *arguments: (time.sleep(0.03), write(*arguments))
place = Path(sys.argv[2])
cleaning = Cleaning(**{CLEANING.model_dump()!r})
ingest.ingest(FileSource(path=sys.argv[1]), cleaning, place / "documents", place / "partial")
"""


# Nothing in it


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_a_source_of_blank_lines_is_refused_for_what_it_holds(tmp_path, name):
    path = tmp_path / name
    path.write_text("\n  \n\n")
    for _ in range(2):
        with refused(DataError, f"{path}: holds no record: 3 blank lines", "`path`"):
            run(path, tmp_path)
    (tmp_path / "source").mkdir()
    for number in range(3):
        (tmp_path / "source" / f"{number}{name}").write_text("\n")
    with refused(DataError, f"{tmp_path}/source/0{name}: holds no record: 1 blank lines (and 2 files more)"):
        run(tmp_path / "source", tmp_path)


def test_blank_files_beside_good_ones_are_named_and_the_first_few_only(tmp_path, capsys):
    source = write_source(tmp_path / "source")
    report = run(source, tmp_path / "1")
    assert capsys.readouterr().out == ""
    for number in range(7):
        (source / f"blank{number}.jsonl").write_text("\n\n")
    assert asdict(run(source, tmp_path / "2")) == asdict(report)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"warning: {source}/blank0.jsonl: holds no record: 2 blank lines"
    assert [len(said), said[-1]] == [6, f"warning: {source}: 7 such warnings in all, the first 5 are shown"]


def test_a_source_in_another_encoding_is_refused_in_one_line(tmp_path):
    for encoding, said in (("utf-16", "is UTF-16"), ("cp1254", "looks like cp1254")):
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes("görüş işıq küçə ağac\n".replace("ə", "e").encode(encoding))
        with refused(DataError, f"{path}: ", said, "iconv", "1 of 1 records"):
            run(path, tmp_path)


# What is kept beside the documents: examples, and the lines that repeat from part to part


def write_mixed(folder: Path) -> Path:
    """Documents of which some are of another language, some hold HTML, and all but those share a line."""
    folder.mkdir()
    with (folder / "0.jsonl").open("w") as file:
        for number in range(30):
            text = f"{prose(number)}\nBütün hüquqlar qorunur\n{prose(number + 100)}"
            if number % 5 == 3:
                text = f"Это документ на русском языке номер {number}"
            if number % 7 == 2:
                text = f"<p>{text}</p>"
            file.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")
    return folder


def test_what_a_report_shows_and_drops_is_the_same_after_an_interruption(tmp_path, small_parts, monkeypatch):
    source = write_mixed(tmp_path / "source")
    chosen = CLEANING.model_copy(update={"repeated_lines": "drop", "line_copies": 3, "html": "strip"})
    report = run(source, tmp_path / "whole", chosen)
    parts = len(files(tmp_path / "whole"))
    assert parts > 4
    assert report.html == 4
    assert report.lines["repeated"] == 24 - 3
    assert [example[:3] for example in report.examples["language"]] == ["d3:", "d8:", "d13"]
    assert report.examples["lines"] == ["in 24 documents: Bütün hüquqlar qorunur"]
    assert sum("Bütün hüquqlar" in row["text"] for row in kept(tmp_path / "whole")) == 3
    for after in range(1, parts):
        place = tmp_path / f"stopped-{after}"
        stop_with(source, place, chosen, monkeypatch, after)
        assert asdict(run(source, place, chosen)) == asdict(report)
        assert files(place) == files(tmp_path / "whole")


def stop_with(source: Path, place: Path, cleaning: Cleaning, monkeypatch, after: int) -> None:
    real = ingest._save_part

    def save(partial, state, part):
        real(partial, state, part)
        if state.parts == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_save_part", save)
        with pytest.raises(KeyboardInterrupt):
            run(source, place, cleaning)


def test_where_nothing_stays_the_first_reason_is_shown(tmp_path):
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps({"id": "d1", "text": "Not a word of it is Azerbaijani"}) + "\n")
    with refused(DataError, "none of 1 documents stay", "d1: Not a word", "0.0% of its letters are among əƏ"):
        run(source, tmp_path)
