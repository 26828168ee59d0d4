"""Pull a version into a new folder: its encoder, or its universal checkpoint, with every file's hash verified.

Until all files are there, they stand in a folder beside the new one. An interrupted pull continues from that folder:
whole files are not fetched again.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from azneobert.checkpoint.manifest import MANIFEST, MOMENTS, read_manifest, write_manifest
from azneobert.errors import RegistryError
from azneobert.files import sha256_file
from azneobert.locks import FileLock
from azneobert.mlflow_place import check_place, tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.recipe import Tracking
from azneobert.registry.contents import VERSION_MANIFEST, Contents, Files, read_contents, unknown_files
from azneobert.registry.golden import GOLDEN, check_ids
from azneobert.registry.stored import Advance, Stored
from azneobert.registry.versions import DIGEST_TAG, Version, find_version, place_of

Expect = Callable[[int], Advance]  # takes the bytes to come; its result is told the bytes that have come

_FILES_AT_ONCE = 3
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ROOM = 1 << 20  # bytes, beside those of the files
_RESTORE = "; use `azneobert registry relocate` if the project was moved or copied, or `azneobert registry restore`"


def in_silence(size: int) -> Advance:
    """An `Expect` that shows nothing."""
    return lambda done: None


def pull(uri: str, target: Path, tracking: Tracking, expect: Expect = in_silence) -> Path:
    """Pull the encoder of a version into the new folder `target`, with every file's hash and its golden ids verified.

    Raises:
        RegistryError: the URI names nothing, MLflow does not answer, the project was moved or copied since, a file
            is missing or was changed, its golden ids differ here, or `target` is in the way.
    """
    with _on_its_way(uri, target, tracking) as (version, partial):
        encoder, contents = _contents(uri, version, partial, tracking)
        _fetch_all(uri, encoder, contents.files, partial, expect)
        if GOLDEN in contents.files:
            check_ids(uri, partial)
    return target


def pull_checkpoint(
    uri: str, target: Path, tracking: Tracking, expect: Expect = in_silence, *, moments: bool = True
) -> Path:
    """Pull the universal checkpoint of a version into the new folder `target`, with every file's hash verified.

    Without `moments`, two thirds of the bytes are not fetched, and the manifest says that there are no moments.

    Raises:
        RegistryError: as `pull`; or moments are asked for, and there are none.
        CheckpointError: what was registered as a checkpoint is not one.
    """
    with _on_its_way(uri, target, tracking, "-checkpoint" if moments else "-weights") as (version, partial):
        _, contents = _contents(uri, version, partial / ".version", tracking)
        with mlflow_errors(tracking_uri(tracking)):
            stored = Stored(place_of(mlflow_client(tracking), version, contents), tracking)
        if not _sizes(uri, stored):
            raise RegistryError(f"{uri}: its checkpoint is not at {stored.location}{_RESTORE}")
        if stored.fetch(MANIFEST, partial / MANIFEST) != contents.checkpoint_sha256:
            raise _RefusedError(f"{uri}: its checkpoint is not the one that was registered; do not use it")
        manifest = read_manifest(partial)
        if moments and not manifest.moments:
            raise RegistryError(f"{uri}: was registered without moments; use --no-moments")
        files = {name: stated for name, stated in manifest.files.items() if moments or name not in MOMENTS}
        _fetch_all(uri, stored, files, partial, expect)
        if not moments and manifest.moments:
            write_manifest(partial, replace(manifest, moments=False), files)
        shutil.rmtree(partial / ".version")
    return target


@contextmanager
def _on_its_way(uri: str, target: Path, tracking: Tracking, what: str = "") -> Iterator[tuple[Version, Path]]:
    """The version, and the folder that becomes `target` at the end.

    The folder stays for the next pull if the disk, the network or a person ended this one. It is removed if the content
    was refused.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RegistryError(f"{target}: is there already and not an empty folder; name a new one")
    check_place(tracking)
    version = find_version(uri, tracking)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = version.tags.get(DIGEST_TAG, "unknown")[:12]
    partial = target.parent / f".{target.name}.pull-{digest}{what}"
    lock = FileLock(partial.with_name(f"{partial.name}.lock"))
    if not lock.acquire():
        raise RegistryError(f"{target}: another process is pulling {uri} there; wait for it")
    try:
        partial.mkdir(exist_ok=True)
        yield version, partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        with suppress(OSError):
            partial.rmdir()  # succeeds only if nothing has come
        raise RegistryError(
            f"{error.filename or target}: {error.strerror}; free room on the disk, then the same command goes on"
        ) from None
    except _RefusedError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except RegistryError:
        if not any(file.name != VERSION_MANIFEST for file in partial.rglob("*") if file.is_file()):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        lock.release()


class _RefusedError(RegistryError):
    """What the store holds is not what was registered."""


def _contents(uri: str, version: Version, folder: Path, tracking: Tracking) -> tuple[Stored, Contents]:
    """Where a version's encoder is, and what its manifest states, which is fetched into `folder`."""
    with mlflow_errors(tracking_uri(tracking)):
        encoder = Stored(place_of(mlflow_client(tracking), version), tracking)
    found = _sizes(uri, encoder)
    if not found:
        raise RegistryError(f"{uri}: its artifacts are not at {encoder.location}{_RESTORE}")
    if VERSION_MANIFEST in found:
        encoder.fetch(VERSION_MANIFEST, folder / VERSION_MANIFEST)
    try:
        contents = read_contents(uri, folder, version.tags.get(DIGEST_TAG))
    except RegistryError as error:
        raise _RefusedError(str(error)) from None
    if unknown := unknown_files(contents, set(found)):
        raise _RefusedError(f"{uri}: holds {unknown[0]}, which its manifest does not name; do not use this version")
    return encoder, contents


def _sizes(uri: str, stored: Stored) -> dict[str, int | None]:
    try:
        return stored.sizes()
    except ValueError as error:
        raise _RefusedError(f"{uri}: {error}; do not use this version") from None


def _fetch_all(uri: str, stored: Stored, files: Files, partial: Path, expect: Expect) -> None:
    """Fetch the files that are not whole yet, some at a time, the largest first."""
    if missing := sorted(files.keys() - _sizes(uri, stored).keys()):
        raise _RefusedError(f"{uri}: {missing[0]} is missing in the store; use `azneobert registry restore`")
    wanted = {name: stated for name, stated in files.items() if not _is_whole(partial / name, stated)}
    size, free = sum(stated["size"] for stated in wanted.values()), shutil.disk_usage(partial).free
    if free < size + _ROOM:
        raise OSError(errno.ENOSPC, f"{size / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free", str(partial.parent))
    advance = expect(size)

    def fetch(name: str) -> None:
        try:
            found = stored.fetch(name, partial / name, advance)
        except ValueError as error:
            raise _RefusedError(f"{uri}: {name} {error}; do not use this version") from None
        if found != (expected := wanted[name]["sha256"]):
            raise _RefusedError(
                f"{uri}: {name}: sha256 {found[:12]} found, {expected[:12]} expected: changed in the store; "
                "use `azneobert registry restore`, or another version"
            )

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        fetching = [pool.submit(fetch, name) for name in sorted(wanted, key=lambda name: -wanted[name]["size"])]
        try:
            for each in fetching:
                each.result()
        finally:
            for each in fetching:
                each.cancel()


def _is_whole(file: Path, stated: dict[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == stated["size"] and sha256_file(file) == stated["sha256"]
