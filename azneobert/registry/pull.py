"""A version comes back into a new folder, every file's hash verified."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path, PurePosixPath

from azneobert.checkpoint.manifest import verify_files
from azneobert.errors import CheckpointError, RegistryError
from azneobert.files import read_json, sha256_file
from azneobert.mlflow_place import check_place, path_of, store_uri, tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.recipe import Tracking
from azneobert.registry.versions import DIGEST_TAG, Version, find_version, place_of, run_and_place


def pull(uri: str, target: Path, tracking: Tracking) -> Path:
    """Bring a version into the new folder `target`, every file's hash verified.

    Raises:
        RegistryError: the URI names nothing, MLflow does not answer, the project was moved or copied since, a file
            is missing or was changed, or `target` is in the way.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RegistryError(f"{target}: is there already and not an empty folder; name a new one")
    check_place(tracking)
    version = find_version(uri, tracking)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as scratch:
        folder = _download(version, Path(scratch), tracking)
        verify_version(uri, folder, version.tags.get(DIGEST_TAG))
        if target.exists():
            target.rmdir()
        folder.rename(target)
    return target


def _download(version: Version, scratch: Path, tracking: Tracking) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with mlflow_errors(tracking_uri(tracking)):
        client, store = mlflow_client(tracking), store_uri(tracking)
        place = place_of(client, version)
        source = client.get_model_version_download_uri(version.name, str(version.number))
        _check_plain(version, place)
        try:
            if within := run_and_place(source):  # MLflow itself would look for the run in the store of its environment
                run_id, path = within
                folder = download_artifacts(
                    run_id=run_id, artifact_path=path, dst_path=str(scratch), tracking_uri=store
                )
            else:
                folder = download_artifacts(version.uri, dst_path=str(scratch), tracking_uri=store)
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            folder = ""
    pulled = Path(folder or scratch / "none")
    if not pulled.is_dir() or not any(pulled.iterdir()):
        raise RegistryError(
            f"{version.uri}: its artifacts are not at {place}; use `azneobert registry relocate` if the project was "
            "moved or copied, or `azneobert registry restore`"
        )
    return pulled


def _check_plain(version: Version, place: str) -> None:
    """See to it that a folder of this machine holds files and folders alone: MLflow follows links and reads devices."""
    folder = path_of(place)
    for parent, folders, files in os.walk(folder) if folder is not None else ():
        for name in (*folders, *files):
            entry = Path(parent, name)
            mode = entry.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise RegistryError(f"{version.uri}: {entry} is not a regular file; do not use this version")


def verify_version(uri: str, folder: Path, manifest_sha256: str | None = None) -> None:
    """Check every file of a pulled version against its manifest.

    Raises:
        RegistryError: a file is missing or changed, or the manifest names a path outside the folder.
    """
    try:
        files = read_json(folder / "manifest.json")["files"]
        files = {name: {"sha256": stated["sha256"], "size": stated["size"]} for name, stated in files.items()}
    except (AttributeError, OSError, KeyError, TypeError, ValueError):
        raise RegistryError(f"{uri}: has no readable manifest.json; it was not made by `azneobert`") from None
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.isprintable():
            raise RegistryError(f"{uri}: its manifest names {name}, which leaves the folder; do not use this version")
    if manifest_sha256 and sha256_file(folder / "manifest.json") != manifest_sha256:
        raise RegistryError(f"{uri}: its manifest.json is not the one that was registered; do not use this version")
    entries = (entry for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir())
    found = {entry.relative_to(folder).as_posix() for entry in entries}
    if unknown := sorted(found - files.keys() - {"manifest.json"}):
        raise RegistryError(f"{uri}: holds {unknown[0]}, which its manifest does not name; do not use this version")
    try:
        verify_files(folder, files)
    except CheckpointError as error:
        raise RegistryError(f"{uri}: {error}") from None
