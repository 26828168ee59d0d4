"""The MLflow model registry: push a checkpoint as a version, find it by alias, pull it with every hash verified.

A version is one folder: the transformers export at its top, so that `from_pretrained` takes it as it is; the universal
checkpoint in ``checkpoint/``; ``README.md``, the model card; and ``manifest.json``, the hash of every other file.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from azneobert.checkpoint.manifest import Manifest, verify_files
from azneobert.checkpoint.universal import all_weights, read_checkpoint
from azneobert.errors import CheckpointError, RegistryError
from azneobert.files import sha256_file
from azneobert.model.export import export_transformers
from azneobert.model_card import model_card
from azneobert.recipe import Recipe, Tracking
from azneobert.tracking import ensure_experiment, mlflow_client, mlflow_errors, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MOMENTS = ("exp_avg.safetensors", "exp_avg_sq.safetensors")
_DIGEST_TAG = "azneobert.manifest_sha256"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")


@dataclass(frozen=True)
class Version:
    """A registered version, as `list_versions` and `push` report it."""

    name: str
    number: int
    aliases: tuple[str, ...]
    run_id: str
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """The URI under which MLflow and this project find it."""
        return f"models:/{self.name}/{self.number}"


def push(
    checkpoint: Path, recipe: Recipe, figures: dict[str, Any], pictures: list[Path], aliases: list[str]
) -> Version:
    """Register a universal checkpoint and point aliases at it. Pushing the same content again finds the same version.

    `figures` (held-out results by name) and `pictures` go into the model card.

    Raises:
        RegistryError: MLflow does not answer.
        CheckpointError: the checkpoint is missing or damaged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "version"
        manifest = assemble(checkpoint, recipe, figures, pictures, folder)
        digest = sha256_file(folder / "manifest.json")
        tracking, name = recipe.tracking, recipe.registry.name
        with mlflow_errors(tracking_uri(tracking)):
            client = mlflow_client(tracking)
            _ensure_model(client, name)
            number = _find(client, name, digest) or _create(client, tracking, name, folder, manifest, digest)
            for alias in aliases:
                client.set_registered_model_alias(name, alias, str(number))
            return _version(client, name, str(number))


def assemble(checkpoint: Path, recipe: Recipe, figures: dict[str, Any], pictures: list[Path], folder: Path) -> Manifest:
    """Make the folder of a version."""
    state, manifest = read_checkpoint(checkpoint, moments=False)
    export_transformers(all_weights(state), recipe.model, checkpoint / "tokenizer.json", folder)
    target = folder / "checkpoint"
    target.mkdir()
    for file in checkpoint.iterdir():
        if recipe.registry.with_moments or file.name not in _MOMENTS:
            shutil.copyfile(file, target / file.name)
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
    card = model_card(recipe, manifest, figures, [picture.name for picture in pictures])
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = {
        file.relative_to(folder).as_posix(): {"sha256": sha256_file(file), "size": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    content = {"format": "azneobert-version", "format_version": 1, "phase": manifest.phase, "files": files}
    (folder / "manifest.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return manifest


def list_versions(tracking: Tracking, name: str) -> list[Version]:
    """Every version of a registered model, oldest first; none where the model is not registered.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        found = client.search_model_versions(f"name = '{name}'")
        return sorted((_version(client, name, v.version) for v in found), key=lambda version: version.number)


def pull(uri: str, target: Path, tracking: Tracking) -> Path:
    """Bring a version into the new folder `target`, every file's hash verified.

    Raises:
        RegistryError: the URI names nothing, MLflow does not answer, a file was changed, or `target` is in the way.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RegistryError(f"{target}: is there already and not an empty folder; name a new one")
    version = find_version(uri, tracking)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as scratch:
        with mlflow_errors(tracking_uri(tracking)):
            from mlflow.artifacts import download_artifacts

            folder = Path(download_artifacts(uri, dst_path=scratch, tracking_uri=tracking_uri(tracking)))
        verify_version(uri, folder, version.tags.get(_DIGEST_TAG))
        if target.exists():
            target.rmdir()
        folder.rename(target)
    return target


def find_version(uri: str, tracking: Tracking) -> Version:
    """The version that a URI names.

    Raises:
        RegistryError: the URI has another form, or names a model, alias or version that is not there.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise RegistryError(f"{uri}: not a registry URI; models:/azneobert@phase2 or models:/azneobert/1 would do")
    versions = list_versions(tracking, match["name"])
    for version in versions:
        if match["alias"] in version.aliases or match["number"] == str(version.number):
            return version
    known = [f"@{alias}" for version in versions for alias in version.aliases] + [f"/{v.number}" for v in versions]
    there = f"{match['name']} has {', '.join(known)}" if known else f"no model {match['name']} is registered"
    raise RegistryError(f"{uri}: not in {tracking_uri(tracking)}: {there}")


def verify_version(uri: str, folder: Path, manifest_sha256: str | None = None) -> None:
    """Check every file of a pulled version against its manifest.

    Raises:
        RegistryError: a file is missing or changed, or the manifest names a path outside the folder.
    """
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        files = {name: {"sha256": stated["sha256"], "size": stated["size"]} for name, stated in files.items()}
    except (AttributeError, OSError, KeyError, TypeError, ValueError):
        raise RegistryError(f"{uri}: has no readable manifest.json; it was not made by `azneobert`") from None
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise RegistryError(f"{uri}: its manifest names {name}, which leaves the folder; do not use this version")
    if manifest_sha256 and sha256_file(folder / "manifest.json") != manifest_sha256:
        raise RegistryError(f"{uri}: its manifest.json is not the one that was registered; do not use this version")
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    if unknown := sorted(found - files.keys() - {"manifest.json"}):
        raise RegistryError(f"{uri}: holds {unknown[0]}, which its manifest does not name; do not use this version")
    try:
        verify_files(folder, files)
    except CheckpointError as error:
        raise RegistryError(f"{uri}: {error}") from None


def _ensure_model(client: MlflowClient, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Azerbaijani NeoBERT encoder")


def _find(client: MlflowClient, name: str, digest: str) -> int | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{_DIGEST_TAG}` = '{digest}'")
    return int(found[0].version) if found else None


def _create(client: MlflowClient, tracking: Tracking, name: str, folder: Path, manifest: Manifest, digest: str) -> int:
    run_id = manifest.lineage.get("mlflow_run_id") or ""
    if not run_id or not _run_exists(client, run_id):
        run = client.create_run(ensure_experiment(client, tracking), run_name=f"register-{manifest.phase}")
        run_id = run.info.run_id
        client.set_terminated(run_id)
    place = f"version-{digest[:12]}"  # its own place in the run, so that no later version can change it
    client.log_artifacts(run_id, str(folder), place)
    lineage = {k: json.dumps(v) if isinstance(v, dict) else str(v) for k, v in manifest.lineage.items()}
    lineage |= {"phase": manifest.phase, "step": str(manifest.step), "tokens": str(manifest.tokens)}
    lineage |= {"recipe": manifest.recipe_name, "tokenizer_sha256": manifest.identity["tokenizer"]}
    tags = {f"azneobert.{key}": value for key, value in lineage.items()} | {_DIGEST_TAG: digest}
    created = client.create_model_version(name, source=f"runs:/{run_id}/{place}", run_id=run_id, tags=tags)
    return int(created.version)


def _run_exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException:
        return False
    return True


def _version(client: MlflowClient, name: str, number: str) -> Version:
    found = client.get_model_version(name, number)
    return Version(name, int(found.version), tuple(found.aliases), found.run_id or "", dict(found.tags))
