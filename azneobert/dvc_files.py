"""What DVC keeps in files, read without DVC: which outputs dvc.lock names, and which objects of the cache they are.

An object's place in a cache or a remote is its md5: `files/md5/ab/cdef...`. A folder is an object too, a JSON list of
its files, whose md5 ends in `.dir`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from azneobert.errors import DataError
from azneobert.files import parse_json, read_bounded
from azneobert.yaml_files import read_yaml

LOCK = Path("dvc.lock")
_LARGEST_LOCK = 64 << 20  # bytes; that of the sample has 80,000
_LARGEST_FOLDER = 256 << 20


@dataclass(frozen=True)
class Output:
    """An output that dvc.lock names: the stage that makes it, its path, its md5."""

    stage: str
    path: str
    md5: str


def locked_outputs(lock: Path = LOCK) -> list[Output]:
    """The outputs that dvc.lock names, of any recipe.

    Raises:
        DataError: there is no dvc.lock, or it cannot be read.
    """
    try:
        stages = read_yaml(lock, _LARGEST_LOCK)["stages"]
        return [
            Output(name, str(out["path"]), str(out["md5"]))
            for name, stage in stages.items()
            for out in stage.get("outs", [])
        ]
    except FileNotFoundError:
        raise DataError(f"{lock}: no such file; bring it with `git checkout {lock}`, or use `dvc repro`") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{lock}: damaged ({first_line}); bring it back with `git checkout {lock}`") from None


def outputs_of(recipe: str) -> list[Output]:
    """The outputs that dvc.lock names of a recipe.

    Raises:
        DataError: there is no dvc.lock, it cannot be read, or it holds none of this recipe.
    """
    all_outputs = locked_outputs()
    outputs = [output for output in all_outputs if output.path.startswith(f"outputs/{recipe}/")]
    if not outputs:
        others = sorted({output.path.split("/")[1] for output in all_outputs if output.path.startswith("outputs/")})
        raise DataError(
            f"dvc.lock: holds no output of recipe {recipe}, but of {', '.join(others) or 'none'}; use "
            "`azneobert recipe use NAME`, or `dvc repro` to make them"
        )
    return outputs


def object_path(cache: Path, md5: str) -> Path:
    """Where a cache keeps an object."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def cached_object(cache: Path, md5: str) -> bytes | None:
    """The content of a small object of a cache, such as a folder's list; None if the cache does not have it."""
    try:
        return read_bounded(object_path(cache, md5), _LARGEST_FOLDER)
    except FileNotFoundError:
        return None


def objects_of(output: Output, content: bytes | None) -> dict[str, str]:
    """The md5 of each object that an output needs, by the path it is for.

    `content` is that of the output's own object, if it is a folder's list; without it, only that object is known.

    Raises:
        DataError: the list is damaged.
    """
    objects = {output.path: output.md5}
    if output.md5.endswith(".dir") and content is not None:
        try:
            objects |= {f"{output.path}/{entry['relpath']}": str(entry["md5"]) for entry in parse_json(content)}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            place = object_path(Path(), output.md5)
            raise DataError(
                f"{output.path}: {place} in DVC's cache is no list of a folder's files ({error}); delete it and use "
                "`azneobert remote pull`"
            ) from None
    return objects


def cache_folder() -> Path:
    """The cache of this project, as DVC says: its own, or one that several share.

    Raises:
        DataError: DVC does not say.
    """
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        said = next(iter(done.stderr.strip().splitlines()), "nothing")
        raise DataError(f"`dvc cache dir`: said {said}, not a folder; run this in a DVC project")
    return Path(done.stdout.strip())


def damaged_objects(cache: Path, hashes: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Read objects of a cache, several at a time; yields each md5, and whether the bytes have another one.

    Objects that the cache does not have are not damaged.
    """

    def is_damaged(md5: str) -> tuple[str, bool]:
        try:
            with object_path(cache, md5).open("rb") as file:
                return md5, hashlib.file_digest(file, "md5").hexdigest() != md5.removesuffix(".dir")
        except FileNotFoundError:
            return md5, False

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as readers:  # hashing lets other threads run
        yield from readers.map(is_damaged, hashes)


def set_object_aside(cache: Path, md5: str) -> Path:
    """Move an object of the cache to `damaged/` in the cache; returns its new path."""
    aside = cache / "damaged" / md5
    aside.parent.mkdir(parents=True, exist_ok=True)
    return object_path(cache, md5).replace(aside)
