"""One collection's source -> cleaned documents, a part at a time, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from azneobert.data.cleaning import EXAMPLES, CleaningReport, clean
from azneobert.data.documents import Documents, part_name, write_part
from azneobert.data.lines import RepeatedLines
from azneobert.data.progress import Progress
from azneobert.data.records import Position, SourceReader
from azneobert.data.sources import open_source
from azneobert.errors import DataError
from azneobert.files import read_json, sync
from azneobert.recipe import Cleaning, Source

PART_CHARACTERS = 8 << 20  # so small that the cores which tokenize parts finish at about the same time
_SURE_AFTER = 10_000  # records after which a share of malformed ones says that the source is broken
_WARNINGS = 5
_LARGEST_STATE = 256 << 20  # bytes, with the lines that many documents share


@dataclass
class _State:
    """The progress of an ingest: the content of state.json, which is written after the last part that it counts."""

    fingerprint: str
    parts: int = 0
    position: Position | None = None
    finished: bool = False
    report: CleaningReport = field(default_factory=CleaningReport)
    lines: RepeatedLines = field(default_factory=RepeatedLines)


def ingest(source: Source, cleaning: Cleaning, target: Path, partial: Path, *, code: str = "") -> CleaningReport:
    """Read a source, clean it, and leave its documents in the folder `target`; `partial` holds what is unfinished.

    A killed ingest continues after its last whole part and produces the same bytes, if the source, the settings and
    `code` (a hash of everything else that decides the result) are unchanged.

    Raises:
        DataError: the source cannot be read, too many of its records are malformed, or no document stays.
    """
    reader = open_source(source)
    state = _resume(partial, _fingerprint(source, cleaning, reader, code))
    with Progress(target.name, reader.size) as progress:
        progress.advance_to(state.report.documents, None)
        if not state.finished:
            _read_on(reader, source, cleaning, partial, state, progress)
    (partial / "state.json").unlink()
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)
    return state.report


def _read_on(
    reader: SourceReader, source: Source, cleaning: Cleaning, partial: Path, state: _State, progress: Progress
) -> None:
    part = Documents()
    characters = warned = 0
    blank: list[str] = []
    for records in reader.read(state.position):
        if records.warning:
            warned += 1
            blank += [records.warning] * records.blank
            if warned <= _WARNINGS:
                progress.say(f"warning: {records.warning}")
        documents = clean(records, cleaning, state.report, state.lines)
        _check_malformed(source, cleaning, state.report, last=False)
        for column, more in vars(documents).items():
            getattr(part, column).extend(more)
        characters += sum(map(len, documents.texts))
        state.position = records.position
        progress.advance_to(state.report.documents, records.bytes_read)
        if characters >= PART_CHARACTERS:
            _save_part(partial, state, part)
            part, characters = Documents(), 0
    _check_malformed(source, cleaning, state.report, last=True)
    sampled = cleaning.repeated_lines == "report"
    if found := state.lines.most_frequent(cleaning.line_copies, sampled, EXAMPLES):
        state.report.examples["lines"] = found
    _check_kept(source, state.report, blank)
    if warned > _WARNINGS:
        progress.say(f"warning: {source.name}: {warned:,} such warnings in all, the first {_WARNINGS} are shown")
    state.finished = True
    _save_part(partial, state, part)


def _save_part(partial: Path, state: _State, part: Documents) -> None:
    if len(part):
        write_part(partial, state.parts, part)
        state.parts += 1
    state.lines.end_part()
    fresh = partial / ".state.json"
    fresh.write_text(json.dumps(asdict(state)), encoding="utf-8")
    sync(fresh)
    fresh.replace(partial / "state.json")


def _resume(partial: Path, fingerprint: str) -> _State:
    """The state to go on from: the one in the folder if it is of the same work, else a new one in an empty folder."""
    try:
        saved = read_json(partial / "state.json", _LARGEST_STATE)
        report, lines = CleaningReport(**saved["report"]), RepeatedLines(**saved["lines"])
        state = _State(**saved | {"report": report, "lines": lines})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        state = None
    whole = state is not None and all((partial / part_name(n)).exists() for n in range(state.parts))
    if state is None or not whole or state.fingerprint != fingerprint:
        shutil.rmtree(partial, ignore_errors=True)
        state = _State(fingerprint)
    partial.mkdir(parents=True, exist_ok=True)
    for leftover in partial.iterdir():  # a part that state.json does not count yet is written again
        known = {"state.json", *map(part_name, range(state.parts))}
        if leftover.name not in known:
            leftover.unlink()
    return state


def _fingerprint(source: Source, cleaning: Cleaning, reader: SourceReader, code: str) -> str:
    # The tolerated share of malformed records decides only whether there is a result, not what it is.
    settings = cleaning.model_dump(mode="json", exclude={"max_malformed"})
    parts = [source.model_dump(mode="json"), settings, reader.state(), PART_CHARACTERS, code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_malformed(source: Source, cleaning: Cleaning, report: CleaningReport, *, last: bool) -> None:
    """Refuse a source if more than the tolerated share of its records cannot be read."""
    allowed = cleaning.max_malformed * (report.documents if last else max(report.documents, _SURE_AFTER))
    if report.dropped["malformed"] > allowed:
        raise DataError(
            f"{report.first_malformed}; {report.dropped['malformed']} of {report.documents} records of {source.name} "
            f"cannot be read, more than data.cleaning.max_malformed ({cleaning.max_malformed:.1%}); mend the source"
        )


def _check_kept(source: Source, report: CleaningReport, blank: list[str]) -> None:
    """Refuse a source if no document is kept; `blank` names its files that hold no text."""
    if report.kept:
        return
    if blank and report.documents == report.dropped["empty"]:
        more = f" (and {len(blank) - 1:,} files more)" if len(blank) > 1 else ""
        raise DataError(f"{blank[0]}{more}; put documents there, or change `path`")
    if not report.documents:
        raise DataError(f"{source.name}: holds no record; expected documents")
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items() if count)
    first = "".join(f"; {kind}: {examples[0]}" for kind, examples in report.examples.items())
    raise DataError(
        f"{source.name}: none of {report.documents:,} documents stay (dropped: {dropped}{first}); mend the source, or "
        "change data.cleaning"
    )
