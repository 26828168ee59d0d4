"""Files: hashed, written whole, locked, and opened only if they are files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from azneobert.files import open_regular, read_bounded, sha256_file, sync, write_json


def test_a_file_s_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_json_appears_whole_in_a_folder_that_was_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "numbers.json"
    write_json(file, {"ə": [1, 2.5]})
    sync(file)
    sync(file.parent)
    assert json.loads(file.read_text(encoding="utf-8")) == {"ə": [1, 2.5]}
    assert "ə" in file.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(file, {"not": object()})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ə": [1, 2.5]}, "what was there stays"


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"
    for name in ("link", "device", "pipe", "."):
        with pytest.raises(ValueError, match="is not a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes found, at most 4 expected"):
        read_bounded(tmp_path / "file", 4)
