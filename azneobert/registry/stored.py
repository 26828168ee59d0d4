"""A folder in MLflow's artifact store: of this machine's file systems, of a server, or of an object store."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.files import open_within, sha256_file
from azneobert.mlflow_place import path_of, store_uri, tracking_uri
from azneobert.mlflow_store import mlflow_errors
from azneobert.recipe import Tracking
from azneobert.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

_CHUNK = 4 << 20
_FULL = "No space left on device"
Advance = Callable[[int], None]  # is told how many more bytes have come


@dataclass(frozen=True)
class Stored:
    """A folder by its location: a path or a ``file:`` URI of this machine, or an address of the store's."""

    location: str
    tracking: Tracking

    def sizes(self) -> dict[str, int | None]:
        """The bytes of each file by its name in the folder; empty if there is no such folder.

        Raises:
            RegistryError: the store does not answer.
            ValueError: an entry of the folder is neither a file nor a folder, such as a link.
        """
        folder = path_of(self.location)
        if folder is None:
            with mlflow_errors(tracking_uri(self.tracking)):
                return dict(_listed(self._repository(), None))
        found: dict[str, int | None] = {}
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                entry = Path(parent, name)
                status = entry.lstat()
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                    raise ValueError(f"{entry} is not a regular file")
                if stat.S_ISREG(status.st_mode):
                    found[entry.relative_to(folder).as_posix()] = status.st_size
        return found

    def fetch(self, name: str, target: Path, advance: Advance = lambda size: None) -> str:
        """Fetch a file of the folder to `target`, which is replaced. Returns the sha256 of the fetched file.

        Raises:
            RegistryError: the store does not answer, or refuses.
            OSError, ValueError: the file is missing or no regular one, or `target` cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = path_of(self.location)
        if folder is not None:
            return _copy_hashed(folder, name, target, advance)
        with scratch_folder(target.parent, ".fetch-") as scratch:
            try:
                Path(self._repository().download_artifacts(name, dst_path=str(scratch))).replace(target)
            except Exception as error:
                if _FULL in str(error):  # MLflow's error does not name the disk
                    raise OSError(errno.ENOSPC, _FULL, str(target)) from None
                with mlflow_errors(tracking_uri(self.tracking)):
                    raise
        advance(target.stat().st_size)
        return sha256_file(target)

    def remove(self) -> None:
        """Remove the folder and what it holds."""
        self._repository().delete_artifacts()

    def _repository(self) -> ArtifactRepository:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self.location, store_uri(self.tracking))


def _copy_hashed(folder: Path, name: str, target: Path, advance: Advance) -> str:
    """Copy and hash in one reading. A second thread hashes, since hashing takes as long as writing."""
    digest = hashlib.sha256()
    with open_within(folder, name) as source, target.open("wb") as copy, ThreadPoolExecutor(1) as thread:
        hashing = thread.submit(digest.update, b"")
        while chunk := source.read(_CHUNK):
            hashing.result()
            hashing = thread.submit(digest.update, chunk)
            copy.write(chunk)
            advance(len(chunk))
        hashing.result()
    return digest.hexdigest()


def _listed(repository: ArtifactRepository, within: str | None) -> list[tuple[str, int | None]]:
    found = []
    for entry in repository.list_artifacts(within):
        found += _listed(repository, entry.path) if entry.is_dir else [(entry.path, entry.file_size)]
    return found
