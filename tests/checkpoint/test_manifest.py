"""One bit that is not as it was written makes a damaged checkpoint, never another run; formats before are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from toy import CheckpointMaker

from azneobert.checkpoint import manifest as manifest_module
from azneobert.checkpoint.manifest import (
    MANIFEST,
    MOMENTS,
    NewerFormatError,
    Segment,
    UnreadableError,
    read_manifest,
    verify_checkpoint,
    write_manifest,
)
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.errors import CheckpointError


@pytest.fixture
def maker(toy_corpus: Path) -> CheckpointMaker:
    return CheckpointMaker(toy_corpus / "tokenizer.json")


@pytest.fixture
def folder(maker: CheckpointMaker, tmp_path: Path) -> Path:
    return maker.publish(CheckpointFolder(tmp_path, 9), 7)


def content_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def put(folder: Path, content: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(content))


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a manifest by hand, its hash left as it was."""
    put(folder, content_of(folder) | changes)


def as_format(folder: Path, version: int) -> dict[str, Any]:
    """Make a manifest what that format had: no segments and no hash, but a lineage that names code and engine."""
    content = content_of(folder)
    for key in ("sha256", "segments", "moments"):
        del content[key]
    content["format_version"] = version
    content["lineage"] = {
        "git_commit": "abc",
        "git_dirty": True,
        "code_sha256": "def",
        "versions": {"torch": "2.11.0"},
        "engine": {"name": "zero2", "world_size": 8},
        "mlflow_run_id": "f00",
        "started_from": None,
    }
    put(folder, content)
    return content


@pytest.mark.parametrize("version", [1, 2])
def test_the_formats_before_are_read_and_their_lineage_is_the_first_segment(version: int, folder: Path) -> None:
    content = as_format(folder, version)
    manifest = verify_checkpoint(folder)
    assert manifest.format_version == version
    assert manifest.lineage == content["lineage"]
    assert manifest.moments
    assert manifest.segments == (Segment(0, "abc", True, "def", {"torch": "2.11.0"}, "zero2", 8),)


def test_a_commit_that_git_did_not_tell_the_formats_before_is_unknown_and_not_clean(folder: Path) -> None:
    content = as_format(folder, 2)
    content["lineage"] |= {"git_commit": "", "git_dirty": False, "code_sha256": None, "engine": None}
    put(folder, content)
    assert read_manifest(folder).segments == (Segment(0, versions={"torch": "2.11.0"}),)


def test_the_first_format_had_neither_buffers_nor_a_scheduler(folder: Path) -> None:
    from azneobert.checkpoint.universal import read_checkpoint

    content = as_format(folder, 1)
    state = json.loads((folder / "state.json").read_text())
    del state["scheduler"]
    (folder / "state.json").write_text(json.dumps(state | {"buffers": {}}))
    (folder / "buffers.safetensors").unlink()
    del content["files"]["buffers.safetensors"]
    written = (folder / "state.json").read_bytes()
    content["files"]["state.json"] = {"sha256": hashlib.sha256(written).hexdigest(), "size": len(written)}
    put(folder, content)
    found, _ = read_checkpoint(folder)
    assert (found.buffers, found.scheduler) == ({}, None)


def test_segments_come_back_as_they_were_written(maker: CheckpointMaker, folder: Path) -> None:
    manifest = read_manifest(folder)
    history = (Segment(0, "abc", False, "one", {"torch": "2"}, "plain", 1), Segment(5, engine="zero2", world_size=2))
    write_manifest(folder, replace(manifest, segments=history), manifest.files)
    assert read_manifest(folder).segments == history
    assert history[0].continues(replace(history[0], from_step=99))
    assert not history[0].continues(replace(history[0], world_size=2))
    assert Segment.read({"from_step": 3, "mood": "of a later program"}) == Segment(3)


@pytest.mark.parametrize("wrong", [{"from_step": "7"}, {"versions": None}, {"git_commit": 7}, {"code_sha256": []}])
def test_a_segment_of_wrong_types_is_a_damaged_manifest(wrong: dict[str, Any], folder: Path) -> None:
    manifest = read_manifest(folder)
    bad: Any = Segment(**{"from_step": 0, **wrong})
    write_manifest(folder, replace(manifest, segments=(bad,)), manifest.files)
    with refused(CheckpointError, "damaged manifest", next(iter(wrong))):
        read_manifest(folder)


# Damage


def is_refused(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return True
    return False


def test_one_bit_in_whatever_byte_of_the_manifest_is_a_damaged_checkpoint(folder: Path) -> None:
    whole = (folder / MANIFEST).read_bytes()
    assert len(whole) > 1000
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        (folder / MANIFEST).write_bytes(content)
        if not is_refused(folder):  # white space between the tokens may change: it says nothing
            assert json.loads(bytes(content)) == json.loads(whole), place


@pytest.mark.parametrize("key", ["sample_index", "first_sample"])
@pytest.mark.parametrize("version", [2, 3])
def test_another_sample_index_than_the_one_that_was_saved_is_refused(version: int, key: str, folder: Path) -> None:
    if version == 2:
        as_format(folder, 2)
    content = content_of(folder)
    content["stream"][key] += 4000
    content["samples"] = content["stream"]["sample_index"]
    put(folder, content)
    with pytest.raises(CheckpointError):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"format": "azneobert-universal"}', "\x00", '{"format_version": 3}']
)
def test_what_is_no_manifest_is_a_damaged_one_in_one_line(text: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(text)
    with refused(CheckpointError, str(folder / MANIFEST), "damaged manifest", "use another checkpoint"):
        read_manifest(folder)


def test_a_pipe_in_the_place_of_the_manifest_is_not_waited_for(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with refused(CheckpointError, MANIFEST, "is not a regular file"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../tokenizer.json", "/etc/passwd", "a/b", "..", "", "\x1b[2J"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name: str, folder: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, manifest, manifest.files | {name: {"sha256": "0" * 64, "size": 1}})
    with refused(CheckpointError, "damaged manifest", "is not the name of a file in the folder"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", *MOMENTS])
def test_a_manifest_that_does_not_list_what_every_checkpoint_has_is_refused(name: str, folder: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, manifest, {n: stated for n, stated in manifest.files.items() if n != name})
    with refused(CheckpointError, "damaged manifest", name, "is not listed"):
        read_manifest(folder)


@pytest.mark.parametrize("sha256", ["0" * 63, "\x1b" * 64, 7, None])
def test_a_hash_that_is_none_is_a_damaged_manifest(sha256: Any, folder: Path) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, manifest, manifest.files | {"weights.safetensors": {"sha256": sha256, "size": 1}})
    with refused(CheckpointError, "damaged manifest"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.safetensors", "tokenizer.json"])
def test_a_link_to_a_file_elsewhere_is_refused(name: str, folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    with refused(CheckpointError, name, "is not a regular file"):
        verify_checkpoint(folder)


def test_a_link_into_the_cache_that_outputs_are_links_to_is_followed(folder: Path) -> None:
    cached = folder.parent / "cache" / "files" / "md5" / "0a" / ("1b" * 15)
    cached.parent.mkdir(parents=True)
    (folder / "state.json").rename(cached)
    (folder / "state.json").symlink_to(cached)
    assert verify_checkpoint(folder).step == 7
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(Path("..") / cached.relative_to(folder.parent))
    assert verify_checkpoint(folder).step == 7


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name: str, folder: Path) -> None:
    from azneobert.checkpoint.universal import open_checkpoint

    (folder / name).unlink()
    os.mkfifo(folder / name)
    with refused(CheckpointError, name, "is not a regular file"):
        verify_checkpoint(folder)
    with refused(CheckpointError, name, "is not a regular file"):
        open_checkpoint(folder)


def test_a_checkpoint_under_another_step_s_name_is_passed_over(
    maker: CheckpointMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = CheckpointFolder(tmp_path, 9)
    whole = maker.publish(checkpoints, 3)
    maker.publish(checkpoints, 5).rename(tmp_path / "step-00000009")
    newest = checkpoints.latest()
    assert newest is not None
    assert newest[0] == whole
    assert "its manifest is of step 5" in caplog.text


# Formats to come


def test_a_newer_format_is_refused_saying_what_is_read(folder: Path) -> None:
    edit(folder, format_version=4, shards=8)
    with refused(NewerFormatError, MANIFEST, "format 4", "up to 3", "use the version"):
        read_manifest(folder)


def test_a_folder_of_another_program_is_refused(folder: Path) -> None:
    edit(folder, format="someone-elses")
    with refused(CheckpointError, "someone-elses"):
        read_manifest(folder)


def test_nothing_of_a_newer_format_is_removed_and_nothing_is_trained_over_it(
    maker: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoints = CheckpointFolder(tmp_path, 1)
    newer = [maker.publish(CheckpointFolder(tmp_path, 9), step) for step in (2, 4, 8)]
    for each in newer:
        edit(each, format_version=4)
    with refused(NewerFormatError, "step-00000008", "format 4"):
        checkpoints.latest()
    maker.publish(checkpoints, 5)
    maker.publish(checkpoints, 6)
    assert [path.name for path in checkpoints.steps()] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    maker.publish(CheckpointFolder(tmp_path, 9), 7)
    assert [path.name for path in checkpoints.prune()] == ["step-00000006"]
    assert [path.name for path in checkpoints.steps()] == [f"step-{step:08d}" for step in (2, 4, 7, 8)]


def test_a_checkpoint_of_a_newer_format_is_not_replaced_by_one_of_the_same_step(
    maker: CheckpointMaker, folder: Path
) -> None:
    edit(folder, format_version=4)
    before = (folder / MANIFEST).read_bytes()
    with refused(CheckpointError, str(folder), "is there, and stays"):
        maker.publish(CheckpointFolder(folder.parent, 1), 7)
    assert (folder / MANIFEST).read_bytes() == before


# Disks that refuse


def test_what_cannot_be_read_is_kept_and_nothing_is_trained_over_it(
    maker: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = CheckpointFolder(tmp_path, 1)
    for step in (3, 6):
        maker.publish(CheckpointFolder(tmp_path, 9), step)
    read = manifest_module.read_json

    def failing(path: Path) -> Any:
        if path.parent.name == "step-00000006":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(manifest_module, "read_json", failing)
    with refused(UnreadableError, "step-00000006", "Input/output error", "move the checkpoint away"):
        checkpoints.latest()
    maker.publish(checkpoints, 5)
    assert [path.name for path in checkpoints.steps()] == ["step-00000005", "step-00000006"]
    assert checkpoints.prune() == []


def test_a_file_that_fails_while_it_is_read_is_kept(
    maker: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = CheckpointFolder(tmp_path, 1)
    for step in (3, 6):
        maker.publish(CheckpointFolder(tmp_path, 9), step)
    digest = manifest_module.sha256_of

    def failing(file: BufferedReader) -> str:
        if Path(f"/proc/self/fd/{file.fileno()}").readlink().parent.name == "step-00000006":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(file)

    monkeypatch.setattr(manifest_module, "sha256_of", failing)
    with refused(UnreadableError, "step-00000006", "Input/output error"):
        checkpoints.latest()
    assert checkpoints.prune() == []
    assert [path.name for path in checkpoints.steps()] == ["step-00000003", "step-00000006"]
