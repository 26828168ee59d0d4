"""What training reads is compared with what its stages wrote; what is damaged is named, and nothing goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from stores import write_store

from azneobert.data import integrity
from azneobert.data.integrity import Verification
from azneobert.data.rows import plan_rows, write_plan
from azneobert.data.store import TokenStore, read_meta, write_meta
from azneobert.errors import DataError
from azneobert.yaml_files import write_yaml

FILES = [
    *(f"store/{name}" for name in ("tokens.npy", "offsets.npy", "meta.json")),
    *(f"rows/{name}" for name in ("store.npy", "start.npy", "length.npy", "row_offsets.npy", "meta.json")),
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store and a plan in ./data, and no cache of a user but one of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AZNEOBERT_CACHE", str(tmp_path / "cache"))
    write_store(tmp_path / "data/store", [range(5, 5 + size) for size in (3, 70, 12, 1, 31)], vocab_size=100)
    write_plan(plan_rows({"only": TokenStore.open(tmp_path / "data/store")}, 32, 1), tmp_path / "data/rows")
    return tmp_path / "data"


def verify(data: Path) -> None:
    Verification([data / "store"], [data / "rows"]).require()


@pytest.mark.parametrize("name", FILES)
def test_a_flip_anywhere_is_one_line_that_names_the_place(name: str, data: Path) -> None:
    verify(data)
    file = data / name
    whole = file.read_bytes()
    for place in range(128 if name.endswith(".npy") else 2, len(whole) - 2, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        if name.endswith(".json") and damaged.split() == whole.split():
            continue
        file.write_bytes(damaged)
        with refused(DataError, str(file.parent), "azneobert cache check"):
            verify(data)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line(name: str, data: Path) -> None:
    (data / name).unlink()
    with refused(DataError, str(data / name.split("/")[0])):
        verify(data)


def test_what_has_been_read_is_not_read_again_within_a_day_unless_it_is_touched(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "_STAMPED_BYTES", 0)
    read: list[Path] = []
    monkeypatch.setattr(integrity, "sha256_file", lambda file: read.append(file) or hash_of(file))
    verify(data)
    verify(data)
    assert sorted(file.name for file in read) == ["offsets.npy", "tokens.npy"]
    stamps = list((data.parent / "cache/verified").iterdir())
    assert len(stamps) == 3
    os.utime(data / "store/tokens.npy")
    verify(data)
    assert [file.name for file in read[2:]] == ["tokens.npy"]
    for stamp in (data.parent / "cache/verified").iterdir():  # below the file system a disk loses bits in silence
        os.utime(stamp, (time.time() - 2 * 24 * 3600,) * 2)
    verify(data)
    assert len(read) == 5
    state = (data / "store/tokens.npy").stat()
    with (data / "store/tokens.npy").open("r+b") as file:  # a change that puts the time back is seen all the same
        file.seek(200)
        file.write(b"\7")
    os.utime(data / "store/tokens.npy", ns=(state.st_atime_ns, state.st_mtime_ns))
    with refused(DataError, "tokens.npy: a byte has changed"):
        verify(data)


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_without_a_place_for_stamps_everything_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_STAMPED_BYTES", 0)
    (data.parent / "cache").write_bytes(b"")
    verify(data)
    with (data / "store/offsets.npy").open("r+b") as file:
        file.seek(140)
        file.write(b"\7")
    with refused(DataError, "offsets.npy: a byte has changed"):
        verify(data)


def test_data_that_agree_with_themselves_and_not_with_dvc_lock_are_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path("data/store")
    content = [{"md5": hashlib.md5(f.read_bytes()).hexdigest(), "relpath": f.name} for f in sorted(place.iterdir())]
    listed = json.dumps(content).encode()
    md5 = hashlib.md5(listed).hexdigest() + ".dir"
    stored = Path("dvc-cache/files/md5") / md5[:2] / md5[2:]
    stored.parent.mkdir(parents=True)
    stored.write_bytes(listed)
    write_yaml(Path("dvc.lock"), {"stages": {"tokens": {"outs": [{"path": "data/store", "md5": md5}]}}})
    monkeypatch.setattr(integrity, "cache_folder", lambda: Path("dvc-cache"))
    Verification([place], []).require()
    former = read_meta(place / "meta.json", 1, "")
    shutil.rmtree(place)
    write_store(place, [np.arange(5, 9)], vocab_size=100)
    with refused(DataError, "data/store/meta.json", "expected by dvc.lock", "stage tokens"):
        Verification([place], []).require()
    write_meta(place / "meta.json", former)
    with refused(DataError, "data/store/offsets.npy: a byte has changed"):
        Verification([place], []).require()


def test_a_dvc_lock_that_cannot_be_read_is_said_and_stops_no_run(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("dvc.lock").write_bytes(b"stages: [")
    verify(data)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("the data are not compared with dvc.lock: dvc.lock: damaged")
    assert "\n" not in said
