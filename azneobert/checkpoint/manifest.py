"""What a universal checkpoint says of itself: manifest.json, read and checked without torch.

The manifest is written last. It holds the size and sha256 of every other file and its own sha256, so that one changed
bit in any file makes a damaged checkpoint and not another run.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from azneobert.errors import CheckpointError
from azneobert.files import open_within, read_json, sha256_of, sha256_of_json, write_json

FORMAT = "azneobert-universal"
FORMAT_VERSION = 3
_READABLE = (1, 2, 3)  # the first knew no buffers, the second neither segments nor a hash of its own
MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS = "weights.safetensors"
MOMENTS = ("exp_avg.safetensors", "exp_avg_sq.safetensors")
UNKNOWN = "unknown"
_MOST = 1 << 53  # a count stays below: some formats keep it as a float, which is exact up to here
_FILES_AT_ONCE = 3
_SHA256 = re.compile("[0-9a-f]{64}")


class UnreadableError(CheckpointError):
    """A checkpoint that cannot be read, damaged or not: it is kept, and nothing is trained over it."""


class NewerFormatError(UnreadableError):
    """A checkpoint that a later version of this program wrote."""


@dataclass(frozen=True)
class Skipped:
    """The samples that a rewound run has left out, and why."""

    first_sample: int
    samples: int
    why: str

    @classmethod
    def read(cls, content: dict[str, Any]) -> Skipped:
        """Read it from the content of a manifest."""
        skipped = cls(**content)
        if not (isinstance(skipped.first_sample, int) and isinstance(skipped.samples, int)):
            raise ValueError("segments: skipped: numbers of samples expected")
        if not isinstance(skipped.why, str):
            raise ValueError("segments: skipped: a reason expected")
        return skipped


@dataclass(frozen=True)
class Segment:
    """What trained the steps after `from_step`: commit, code, versions, engine, world, container image, settings.

    `settings` is the fingerprint of the run's identity, which changes only if a person insisted. `skipped` is what a
    rewound run has left out at the start of the segment.
    """

    from_step: int
    git_commit: str = UNKNOWN
    git_dirty: bool | None = None
    code_sha256: str = UNKNOWN
    versions: dict[str, str] = field(default_factory=dict)
    engine: str = UNKNOWN
    world_size: int | None = None
    image: str | None = None
    settings: str = UNKNOWN
    skipped: Skipped | None = None

    @classmethod
    def read(cls, content: dict[str, Any]) -> Segment:
        """A segment as a manifest holds it; what it does not hold is unknown."""
        known = {each.name for each in fields(cls)}
        segment = cls(**{key: value for key, value in content.items() if key in known})
        if segment.skipped is not None:
            segment = replace(segment, skipped=Skipped.read(content["skipped"]))
        for key, kind in _SEGMENT_TYPES.items():
            if not isinstance(getattr(segment, key), kind):
                raise ValueError(f"segments: {key} is of another type")
        return segment

    def continues(self, before: Segment) -> bool:
        """Whether nothing has changed since the segment before but the step."""
        return replace(self, from_step=before.from_step, skipped=before.skipped) == before


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. `identity` is compared on resume, key by key; `lineage` and `segments` record the rest.

    `segments` are the run's history, oldest first. `moments` is whether the optimizer's moments are there.
    """

    phase: str
    step: int
    samples: int
    tokens: int
    recipe_name: str
    recipe: dict[str, Any]
    identity: dict[str, Any]
    lineage: dict[str, Any]
    schedule: dict[str, Any]
    stream: dict[str, Any]
    segments: tuple[Segment, ...] = ()
    moments: bool = True
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def last_segment(self) -> Segment:
        """What trained the last steps; nothing is known for an imported checkpoint."""
        return self.segments[-1] if self.segments else Segment(0)


_TYPES = {
    **dict.fromkeys(("phase", "recipe_name"), str),
    **dict.fromkeys(("step", "samples", "tokens"), int),
    **dict.fromkeys(("recipe", "identity", "lineage", "schedule", "stream", "files"), dict),
    "moments": bool,
}
_SEGMENT_TYPES: dict[str, Any] = {
    "from_step": int,
    **dict.fromkeys(("git_commit", "code_sha256", "engine", "settings"), str),
    "versions": dict,
    "git_dirty": bool | None,
    "world_size": int | None,
    "image": str | None,
}


def write_manifest(folder: Path, manifest: Manifest, files: dict[str, dict[str, Any]]) -> str:
    """Write the manifest of the files in a folder; returns its sha256."""
    complete = replace(manifest, files=dict(sorted(files.items())), format_version=FORMAT_VERSION)
    content = json.loads(json.dumps(asdict(complete)))  # as it will be read
    digest = sha256_of_json(content)
    write_json(folder / MANIFEST, content | {"sha256": digest})
    return digest


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, checked against its own hash; no other file is opened.

    Raises:
        UnreadableError: a later version of this program wrote it, or the disk or its permissions refuse.
        CheckpointError: it is missing or damaged.
    """
    file = folder / MANIFEST
    try:
        content = read_json(file)
        version = content["format_version"]
        if content["format"] == FORMAT and isinstance(version, int) and version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{file}: format {version}, this program reads {FORMAT} up to {FORMAT_VERSION}; "
                "use the version of the program that wrote it, or move it away"
            )
        if content["format"] != FORMAT or version not in _READABLE:
            raise ValueError(f"it is {content['format']!r} {version!r}, expected {FORMAT} {_READABLE}")
        return _checked(content)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder}: no whole checkpoint there, {MANIFEST} is missing; use another checkpoint"
        ) from None
    except OSError as error:
        raise _unreadable(file, error) from None
    # Any error that a flipped bit can cause in a parser or in its result.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged manifest ({_one_line(error)}); use another checkpoint") from None


def _checked(content: dict[str, Any]) -> Manifest:
    stated = content.pop("sha256", None)
    # Formats 1 and 2 had no hash; a manifest with a hash is of format 3, whatever number it states.
    if (stated is not None or content["format_version"] >= 3) and stated != sha256_of_json(content):
        raise ValueError("its content does not have the sha256 that it states")
    segments = content.pop("segments", None)
    for key, kind in _TYPES.items():
        if not isinstance(content.get(key, True if key == "moments" else None), kind):
            raise ValueError(f"{key}: {kind.__name__} expected")
    for name, entry in content["files"].items():
        if name in ("", ".", "..") or "/" in name or not name.isprintable():
            raise ValueError(f"files: {name!r} is not the name of a file in the folder")
        if not (_SHA256.fullmatch(entry["sha256"]) and isinstance(entry["size"], int)):
            raise ValueError(f"files.{name}: sha256 and size expected")
    for key in ("step", "samples", "tokens"):
        if not 0 <= content[key] < _MOST:
            raise ValueError(f"{key}: a count expected")
    if missing := _mandatory(content.get("moments", True)) - content["files"].keys():
        raise ValueError(f"files: {sorted(missing)[0]} is not listed")
    if content["stream"].get("sample_index", content["samples"]) != content["samples"]:
        raise ValueError("samples and stream.sample_index differ")
    history = [_first_segment(content["lineage"])] if segments is None else [Segment.read(each) for each in segments]
    return Manifest(**content, segments=tuple(history))


def _mandatory(moments: bool) -> set[str]:
    return {WEIGHTS, STATE, *(MOMENTS if moments else ())}


def _first_segment(lineage: dict[str, Any]) -> Segment:
    """What formats 1 and 2 recorded for a whole run, in its lineage."""
    engine = lineage.get("engine") or {}
    # If git did not answer, they recorded no commit, and a clean tree.
    known = {key: value for key, value in lineage.items() if key != "engine" and value not in (None, "")}
    if "git_commit" not in known:
        known.pop("git_dirty", None)
    return Segment.read(
        {**known, "from_step": 0, "engine": engine.get("name", UNKNOWN), "world_size": engine.get("world_size")}
    )


def verify_checkpoint(folder: Path, *, moments: bool = True) -> Manifest:
    """Check that every file of a checkpoint has the size and the hash that its manifest states; returns the manifest.

    Without `moments` their files, two thirds of the checkpoint, are not read.

    Raises:
        UnreadableError: the disk or its permissions refuse.
        CheckpointError: naming the file, and what was expected and found.
    """
    manifest = read_manifest(folder)
    unread = () if moments else MOMENTS
    verify_files(folder, {name: stated for name, stated in manifest.files.items() if name not in unread})
    _agree(folder, manifest)
    return manifest


def verify_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check files against the sizes and sha256 that a manifest states.

    Raises:
        UnreadableError: the disk or its permissions refuse.
        CheckpointError: naming the first file that differs.
    """
    verify_sizes(folder, files)

    def digest(name: str) -> str:
        try:
            with open_within(folder, name) as file:
                return sha256_of(file)
        except OSError as error:
            raise _unreadable(folder / name, error) from None
        except ValueError as error:
            raise CheckpointError(f"{folder / name}: {error}; use another checkpoint") from None

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        hashes = list(pool.map(digest, files))
    for (name, stated), found in zip(files.items(), hashes, strict=True):
        if found != stated["sha256"]:
            raise CheckpointError(
                f"{folder / name}: changed (sha256 {found[:12]} found, {stated['sha256'][:12]} expected); "
                "use another checkpoint"
            )


def verify_sizes(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check that files are there, regular and of the sizes that a manifest states. Their content is not read.

    Raises:
        UnreadableError: the disk or its permissions refuse.
        CheckpointError: naming the first file that differs.
    """
    for name, stated in files.items():
        file = folder / name
        try:
            with open_within(folder, name) as opened:
                size = os.fstat(opened.fileno()).st_size
        except FileNotFoundError:
            raise CheckpointError(f"{file}: is missing; use another checkpoint") from None
        except OSError as error:
            raise _unreadable(file, error) from None
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}; use another checkpoint") from None
        if size != stated["size"]:
            raise CheckpointError(
                f"{file}: truncated ({size} bytes found, {stated['size']} expected); use another checkpoint"
            )


def read_state(folder: Path) -> dict[str, Any]:
    """The content of state.json.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        state: dict[str, Any] = read_json(folder / STATE)
        optimizer = state["optimizer"]
        if not (isinstance(optimizer["step"], int) and 0 <= optimizer["step"] < _MOST):
            raise ValueError("optimizer.step: a count expected")
        if not _is_list_of(dict, optimizer["groups"]) or not all(
            _is_list_of(str, group["names"]) for group in optimizer["groups"]
        ):
            raise ValueError("optimizer.groups: names of tensors expected in each")
        if not _is_list_of(str, list(state["tied"].values())):
            raise ValueError("tied: names by names expected")
        _check_guard(state.get("guard", {}))
        return state
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / STATE}: cannot be read ({_one_line(error)}); use another checkpoint"
        ) from None


def _check_guard(guard: dict[str, Any]) -> None:
    if guard == {}:
        return
    losses, norms = guard["losses"], guard["log_norms"]
    if not (_is_list_of(float, losses) and _is_list_of(float, norms) and len(losses) == len(norms)):
        raise ValueError("guard: as many losses as log_norms expected")
    if not (isinstance(guard["in_a_row"], int) and 0 <= guard["in_a_row"] < _MOST):
        raise ValueError("guard.in_a_row: a count expected")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _agree(folder: Path, manifest: Manifest) -> None:
    state = read_state(folder)
    for key in ("schedule", "stream"):
        if state.get(key) != getattr(manifest, key):
            raise CheckpointError(f"{folder}: {MANIFEST} and {STATE} do not agree on {key}; use another checkpoint")


def _unreadable(file: Path, error: OSError) -> UnreadableError:
    reason = error.strerror or _one_line(error)
    return UnreadableError(f"{file}: cannot be read ({reason}); see to that, or move the checkpoint away")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
