"""What a version consists of, by its manifest.json: the encoder's files, and the checkpoint that goes with it.

The manifest names the checkpoint by the sha256 of the checkpoint's own manifest.json, which lists the hashes of its
files. The checkpoint lies apart from the encoder, so that loading the encoder does not fetch the optimizer's moments.
Versions of the first format hold the checkpoint in their folder ``checkpoint/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from azneobert.checkpoint.manifest import MANIFEST, verify_files
from azneobert.errors import CheckpointError, RegistryError
from azneobert.files import read_json, sha256_file

VERSION_MANIFEST = "manifest.json"
FORMAT_VERSION = 2
INNER_CHECKPOINT = "checkpoint"  # where versions of format 1 have it
_ADDED = {"registered_model_meta"}  # by MLflow's own loaders

Files = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Contents:
    """The files of a version's encoder by name, each with `sha256` and `size`; and what is known of its checkpoint.

    `checkpoint_sha256` is that of the checkpoint's manifest.json. `inner` are the checkpoint's files, by their names in
    the checkpoint, if the version itself holds them.
    """

    files: Files
    checkpoint_sha256: str
    inner: Files | None = None

    @property
    def size(self) -> int:
        """Bytes of the encoder's files."""
        return sum(stated["size"] for stated in self.files.values())


def read_contents(uri: str, folder: Path, manifest_sha256: str | None = None) -> Contents:
    """What the manifest.json in a folder states; `uri` names the version in errors.

    Raises:
        RegistryError: it is missing, not of this project, not the one of that sha256, of a newer format, or names a
            path outside the folder.
    """
    try:
        content = read_json(folder / VERSION_MANIFEST)
        format_version = content.get("format_version", 1)
        files = {
            str(name): {"sha256": str(f["sha256"]), "size": int(f["size"])} for name, f in content["files"].items()
        }
        checkpoint = str(content["checkpoint"]["manifest_sha256"]) if "checkpoint" in content else ""
        if not files:
            raise ValueError("no files")
    except (AttributeError, OSError, KeyError, TypeError, ValueError):
        raise RegistryError(f"{uri}: has no readable manifest.json; use a version that `azneobert` made") from None
    if not isinstance(format_version, int) or format_version > FORMAT_VERSION:
        raise RegistryError(
            f"{uri}: of format {format_version}, this program knows {FORMAT_VERSION}; update this program"
        )
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.isprintable():
            raise RegistryError(f"{uri}: its manifest names {name}, which leaves the folder; do not use this version")
    if manifest_sha256 and sha256_file(folder / VERSION_MANIFEST) != manifest_sha256:
        raise RegistryError(f"{uri}: its manifest.json is not the one that was registered; do not use this version")
    within = f"{INNER_CHECKPOINT}/"
    inner = {name.removeprefix(within): stated for name, stated in files.items() if name.startswith(within)}
    if not inner:
        return Contents(files, checkpoint)
    own = {name: stated for name, stated in files.items() if not name.startswith(within)}
    return Contents(own, str(inner[MANIFEST]["sha256"]) if MANIFEST in inner else "", inner)


def unknown_files(contents: Contents, found: set[str]) -> list[str]:
    """The names in `found` that the manifest does not list."""
    inner = {f"{INNER_CHECKPOINT}/{name}" for name in contents.inner or ()}
    return sorted(found - contents.files.keys() - inner - {VERSION_MANIFEST} - _ADDED)


def verify_version(uri: str, folder: Path, manifest_sha256: str | None = None) -> Contents:
    """Check every file of a pulled version against its manifest. Returns what the manifest states.

    Raises:
        RegistryError: a file is missing, changed or not in the manifest, or as `read_contents`.
    """
    contents = read_contents(uri, folder, manifest_sha256)
    entries = (entry for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir())
    if unknown := unknown_files(contents, {entry.relative_to(folder).as_posix() for entry in entries}):
        raise RegistryError(f"{uri}: holds {unknown[0]}, which its manifest does not name; do not use this version")
    try:
        verify_files(folder, contents.files)
    except CheckpointError as error:
        raise RegistryError(f"{uri}: {error}") from None
    return contents
