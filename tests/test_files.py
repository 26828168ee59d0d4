"""Files: hashed, written whole, locked, and opened only if they are files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from azneobert.errors import AzNeoBertError
from azneobert.files import (
    copy_regular,
    open_regular,
    open_within,
    parse_json,
    read_bounded,
    read_json,
    sha256_file,
    sync,
    write_json,
)


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


def test_a_file_without_an_end_is_read_as_far_as_it_may_be() -> None:
    with pytest.raises(ValueError, match="bytes found, at most 10 expected"):
        read_bounded(Path("/proc/self/smaps"), 10)  # whose size is 0, by what the system says


def test_a_name_leads_to_a_file_of_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("content")
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "link").symlink_to("inner/file")
    (tmp_path / "reached by a link").symlink_to(folder)
    with open_within(tmp_path / "reached by a link", "inner/file") as file:
        assert file.read() == b"content"
    for name in (
        "../secret",
        "inner/../../secret",
        f"{tmp_path}/secret",
        "elsewhere/secret",
        "link",
        "a\0b",
        "",
        "inner",
    ):
        with pytest.raises((ValueError, NotADirectoryError)):
            open_within(folder, name)
    copy_regular(folder / "inner" / "file", folder / "copy")
    assert (folder / "copy").read_text() == "content"
    with pytest.raises(ValueError, match="a link"):
        copy_regular(folder / "link", folder / "second")


def test_a_link_into_dvc_s_cache_is_followed_and_to_a_link_there_is_not(tmp_path: Path) -> None:
    item = tmp_path / "files" / "md5" / "ab" / ("0" * 30)
    item.parent.mkdir(parents=True)
    item.write_text("{}")
    (tmp_path / "out.json").symlink_to(item)
    assert read_json(tmp_path / "out.json") == {}
    item.unlink()
    item.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        read_json(tmp_path / "out.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 101 + b"]" * 101, "nested more than 100 levels deep"),
        (b'{"a":' * 100_000, "nested more than 100 levels deep"),
        (b"[NaN]", "NaN is no JSON"),
        (b"[-Infinity]", "-Infinity is no JSON"),
        (b"[1e999]", "1e999 is beyond"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'"\xff"', "not UTF-8"),
        (b"[" + b"9" * 5000 + b"]", "integer string conversion"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_json_is_said_in_one_line(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_json(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100 + b"]" * 100,
        b'"' + b"[" * 200 + b'"',
        b'["\\"' + b"[" * 200 + b'"]',
        b"[[],[]," * 60 + b"0" + b"]" * 60,
    ],
)
def test_brackets_in_a_string_are_no_levels(content: bytes) -> None:
    assert parse_json(content) == json.loads(content)


def test_the_depth_of_what_never_closes_a_string_is_soon_known() -> None:
    began = time.monotonic()
    for content in (b'"' + b'\\"' * 4_000_000, b'["' * 2_000_000, b"[]," * 2_000_000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(content)
    assert time.monotonic() - began < 5


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AzNeoBertError, match=r"figures\.json: eval\.losses\.1, nan, is not finite"):
        write_json(tmp_path / "figures.json", {"eval": {"losses": [1.0, float("nan")]}})
    assert not (tmp_path / "figures.json").exists()
