"""A checkpoint becomes a version: one folder, put into MLflow and pointed at by aliases."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azneobert.checkpoint.finite import check_finite
from azneobert.checkpoint.manifest import Manifest
from azneobert.checkpoint.universal import all_weights, copy_without_moments, read_checkpoint
from azneobert.errors import RegistryError
from azneobert.files import read_json, sha256_file, write_json
from azneobert.mlflow_place import check_place, store_uri, tracking_uri
from azneobert.mlflow_store import ensure_experiment, find_run, mlflow_client, mlflow_errors, uploading
from azneobert.model.export import export_transformers
from azneobert.recipe import Recipe, Tracking
from azneobert.registry.card import model_card
from azneobert.registry.versions import DIGEST_TAG, RECIPE_TAG, Version, list_versions, run_and_place, version_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def push(
    checkpoint: Path,
    recipe: Recipe,
    figures: dict[str, Any],
    pictures: list[Path],
    aliases: list[str],
    run_id: str | None = None,
    *,
    force: bool = False,
    expected: str | None = None,
) -> Version:
    """Register a universal checkpoint and point aliases at it. Pushing the same content again finds the same version.

    A version whose files are gone from the store, or damaged there, gets them again.

    `figures` (held-out results by name) and `pictures` go into the model card. `run_id` is the MLflow run
    where the store does not have the one that the checkpoint names. An alias leaves a version that another recipe has
    registered with `force` alone. `expected` is the sha256 that the version's manifest must have.

    Raises:
        RegistryError: MLflow does not answer, the project was moved or copied since, an alias would leave another
            recipe's version, or the content is not the one that is expected.
        CheckpointError: the checkpoint is missing or damaged.
    """
    check_place(recipe.tracking)
    if not force:
        _check_aliases(recipe, aliases)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "version"
        manifest = assemble(checkpoint, recipe, figures, pictures, folder)
        digest = sha256_file(folder / "manifest.json")
        if expected not in (None, digest):
            raise RegistryError(
                f"{checkpoint}: makes another version ({digest[:12]}) than the one that was registered "
                f"({expected[:12]}); the recipe or the code has changed since: use `dvc repro register`"
            )
        tracking, name = recipe.tracking, recipe.registry.name
        with mlflow_errors(tracking_uri(tracking)):
            client = mlflow_client(tracking)
            _ensure_model(client, name)
            number = _find_whole(client, tracking, name, digest, folder)
            if number is None:
                run = _run_of(client, tracking, manifest, run_id)
                number = _create(client, name, run, folder, manifest, digest)
            for alias in aliases:
                client.set_registered_model_alias(name, alias, str(number))
            return version_of(client, name, str(number))


def assemble(checkpoint: Path, recipe: Recipe, figures: dict[str, Any], pictures: list[Path], folder: Path) -> Manifest:
    """Make the folder of a version."""
    state, manifest = read_checkpoint(checkpoint, moments=False)
    check_finite(state, checkpoint)
    tokenizer, language = checkpoint / "tokenizer.json", recipe.data.cleaning.language
    export_transformers(all_weights(state), recipe.model, tokenizer, folder, language)
    target = folder / "checkpoint"
    target.mkdir()
    if recipe.registry.with_moments:
        shutil.copytree(checkpoint, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
    else:
        manifest = copy_without_moments(checkpoint, target)
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
    write_json(folder / "manifest.json", content)
    return manifest


def _check_aliases(recipe: Recipe, aliases: list[str]) -> None:
    for version in list_versions(recipe.tracking, recipe.registry.name):
        owner = version.tags.get(RECIPE_TAG, "unknown")
        if owner != recipe.name and (taken := sorted(set(aliases) & set(version.aliases))):
            raise RegistryError(
                f"models:/{version.name}@{taken[0]} is {version.uri} of recipe {owner}, this is recipe {recipe.name}; "
                "use another registry.name, or move it with `python pipelines/register.py --force`"
            )


def _ensure_model(client: MlflowClient, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Azerbaijani NeoBERT encoder")


def _find_whole(client: MlflowClient, tracking: Tracking, name: str, digest: str, folder: Path) -> int | None:
    """The version of this content, its files in their place; None where there is none that can have them."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'")
    for version in sorted(found, key=lambda version: int(version.version)):
        run_id, place = run_and_place(version.source or "") or ("", "")
        if not run_id:
            continue
        if _is_whole(client, tracking, run_id, place, digest):
            return int(version.version)
        if find_run(client, run_id) is not None:
            log.warning("models:/%s/%s: its files are not whole in the store; put there again", name, version.version)
            with uploading():
                client.log_artifacts(run_id, str(folder), place)
            return int(version.version)
    return None


def is_whole(version: Version, tracking: Tracking) -> bool:
    """Whether the store has a version's files, by their names and sizes and the manifest's content.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        source = client.get_model_version(version.name, str(version.number)).source or ""
        within = run_and_place(source)
        return within is not None and _is_whole(client, tracking, *within, version.tags.get(DIGEST_TAG, ""))


def _is_whole(client: MlflowClient, tracking: Tracking, run_id: str, place: str, digest: str) -> bool:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        found = dict(_sizes(client, run_id, place))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run is not there any more
            return False
        raise
    manifest = f"{place}/manifest.json"
    if manifest not in found:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(
            download_artifacts(
                run_id=run_id, artifact_path=manifest, dst_path=scratch, tracking_uri=store_uri(tracking)
            )
        )
        if sha256_file(file) != digest:
            return False
        stated = read_json(file)["files"]
    return all(found.get(f"{place}/{name}") == entry["size"] for name, entry in stated.items())


def _sizes(client: MlflowClient, run_id: str, place: str) -> Iterator[tuple[str, int | None]]:
    for entry in client.list_artifacts(run_id, place):
        if entry.is_dir:
            yield from _sizes(client, run_id, entry.path)
        else:
            yield entry.path, entry.file_size


def _run_of(client: MlflowClient, tracking: Tracking, manifest: Manifest, run_id: str | None) -> str:
    """The run that trained the checkpoint, or one made for the version where the store has none of it."""
    for candidate in (manifest.lineage.get("mlflow_run_id"), run_id):
        if candidate and find_run(client, candidate) is not None:
            return candidate
    run = client.create_run(ensure_experiment(client, tracking), run_name=f"register-{manifest.phase}")
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def _create(client: MlflowClient, name: str, run_id: str, folder: Path, manifest: Manifest, digest: str) -> int:
    place = f"version-{digest[:12]}"  # its own place in the run, so that no later version can change it
    with uploading():
        client.log_artifacts(run_id, str(folder), place)
    # What has structure stands in the version's own checkpoint and model card: a tag is a line.
    lineage = {k: str(v) for k, v in manifest.lineage.items() if not isinstance(v, dict | list)}
    lineage |= {
        "git_commit": manifest.last_segment.git_commit,
        "phase": manifest.phase,
        "step": str(manifest.step),
        "tokens": str(manifest.tokens),
    }
    lineage |= {"recipe": manifest.recipe_name, "tokenizer_sha256": manifest.identity["tokenizer"]}
    tags = {f"azneobert.{key}": value for key, value in lineage.items()} | {DIGEST_TAG: digest}
    created = client.create_model_version(name, source=f"runs:/{run_id}/{place}", run_id=run_id, tags=tags)
    return int(created.version)
