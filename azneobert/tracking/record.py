"""``run.json``: all that is needed to make a run in MLflow, describe it and end it, at once or later."""

from __future__ import annotations

import getpass
import json
import logging
import secrets
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from azneobert.recipe import Tracking
from azneobert.tracking.damage import FULL, keep_damaged

log = logging.getLogger(__name__)

RUNNING = "RUNNING"
_STATUSES = (RUNNING, "FINISHED", "KILLED", "FAILED")
RECORD = "run.json"
FINETUNING = "finetuning"  # the group of the runs that fine-tune
_unwritten: dict[Path, Record] = {}  # what this process would have written to a disk that is full
_writing = threading.Lock()  # the thread that delivers and the one that trains both change the record


@dataclass(frozen=True)
class RunInfo:
    """The name and the description of a run.

    `tags` are few and short; structured data are artifacts: JSON documents by file name. `identity` is what makes this
    run different from another; MLflow is not told. Runs of a `group` go to an experiment of their own.
    """

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""
    artifacts: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] | None = None
    group: str = ""


@dataclass(frozen=True)
class Record:
    """A run as its folder knows it. Times are in milliseconds since 1970.

    `run_id` is None while MLflow has not answered yet. `status` is what the run is to have in MLflow; None, of older
    folders, leaves MLflow's as it is. `settled` says that MLflow has the description, and the end if there is one.
    `naming` says under which names its points went to MLflow; None means the older names. `key` identifies the run in
    any store: it travels with what the run leaves.
    """

    info: RunInfo
    key: str | None = None
    run_id: str | None = None
    status: str | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    described: bool = False
    settled: bool = False
    naming: int | None = None
    user: str = "unknown"
    source: str = "azneobert"


def open_record(folder: Path, info: RunInfo) -> Record:
    """Note that a process begins the run or goes on with it: it is running, under this description."""
    former = repaired_record(folder)
    now = time.time_ns() // 1_000_000
    opened = former if former is not None else Record(info, started_ms=now)
    opened = replace(opened, key=opened.key or new_key())
    told = former is not None and former.described and described_alike(former.info, info)
    opened = replace(opened, info=info, status=RUNNING, ended_ms=None, described=told, settled=False)
    if former is None or former.started_ms is None:
        opened = replace(opened, started_ms=now)
    return write_record(folder, replace(opened, user=_user(), source=Path(sys.argv[0]).name or "azneobert"))


def tracking_of(info: RunInfo, tracking: Tracking) -> Tracking:
    """Where a run is recorded: in the recipe's experiment, or in its group's beside it."""
    return tracking.model_copy(update={"experiment": f"{tracking.experiment}-{info.group}"}) if info.group else tracking


def new_key() -> str:
    """A key that no other run has."""
    return secrets.token_hex(16)


def described_alike(a: RunInfo, b: RunInfo) -> bool:
    """Whether MLflow is told the same of both."""
    return replace(a, identity=None) == replace(b, identity=None)


def read_record(folder: Path) -> Record | None:
    """The record of a tracking folder; None if there is none, or if it cannot be read."""
    if folder in _unwritten:
        return _unwritten[folder]
    try:
        return _parse((folder / RECORD).read_bytes(), folder)
    except (OSError, ValueError, RecursionError):
        return None


def read_run_id(folder: Path) -> str | None:
    """The MLflow run of a tracking folder, or None while MLflow has not answered yet."""
    record = read_record(folder)
    return record.run_id if record else None


def repaired_record(folder: Path) -> Record | None:
    """The record; one that cannot be read is set aside, and None is returned."""
    file = folder / RECORD
    record = read_record(folder)
    if record is None and file.exists():
        keep_damaged(file, "is no record of a run", "a new MLflow run gets every point")
        file.unlink()
    return record


def update_record(folder: Path, **changes: Any) -> Record:
    """Change some fields of the record that is there."""
    with _writing:
        record = read_record(folder)
        return _write(folder, replace(record or Record(RunInfo(folder.as_posix())), **changes))


def write_record(folder: Path, record: Record) -> Record:
    """Put the record in its place, whole or not at all; returns it."""
    with _writing:
        return _write(folder, record)


def _write(folder: Path, record: Record) -> Record:
    content = asdict(record)
    content = json.loads(json.dumps(content.pop("info") | content, default=str))  # as it will be read
    partial = folder / f"{RECORD}.partial"
    try:
        whole = content | {"crc": _checksum(content)}
        partial.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(folder / RECORD)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        if error.errno not in FULL:
            raise
        if folder not in _unwritten:
            log.warning("%s: cannot be written (%s); the run goes on without", folder / RECORD, error.strerror)
        _unwritten[folder] = record
    else:
        _unwritten.pop(folder, None)
    return record


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _parse(content: bytes, folder: Path) -> Record:
    """A record, also an older one, which held only `run_id` and `described`. ValueError if it is neither."""
    read = json.loads(content)
    if not isinstance(read, dict) or "run_id" not in read:
        raise ValueError("not a record")
    if "crc" in read and read.pop("crc") != _checksum(read):
        raise ValueError("its checksum does not match")
    found: dict[str, Any] = {"name": folder.as_posix(), "described": True} | read
    info = RunInfo(**{f.name: found[f.name] for f in fields(RunInfo) if f.name in found})
    record = Record(info, **{f.name: found[f.name] for f in fields(Record) if f.name in found})
    texts = (info.name, info.description, info.group, record.user, record.source)
    dictionaries = (info.params, info.tags)
    numbers = (record.started_ms, record.ended_ms, record.naming)
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(isinstance(dictionary, dict) for dictionary in (*dictionaries, info.artifacts, info.identity or {}))
        or not all(isinstance(number, int | None) for number in numbers)
        or not all(isinstance(identity, str | None) for identity in (record.run_id, record.key))
        or record.status not in (None, *_STATUSES)
    ):
        raise ValueError("not a record")
    return record


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"
