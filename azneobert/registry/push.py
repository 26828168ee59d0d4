"""Turn a checkpoint into a version: a model that MLflow shows and loads, and the training state in a second folder.

The encoder is a LoggedModel of the run that trained it; the version names the LoggedModel as its source. The universal
checkpoint is a folder among the run's artifacts. Both are stored whole before the version exists.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azneobert.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from azneobert.errors import RegistryError
from azneobert.files import sha256_file
from azneobert.layout import HELD_OUT_FIGURE
from azneobert.mlflow_place import check_place, tracking_uri
from azneobert.mlflow_store import (
    ensure_experiment,
    find_run,
    mlflow_client,
    mlflow_errors,
    uploading,
)
from azneobert.recipe import Recipe, Tracking
from azneobert.registry.assemble import assemble, check_evaluated, checkpoint_to_store
from azneobert.registry.contents import VERSION_MANIFEST, Contents, read_contents
from azneobert.registry.corpus import Counts
from azneobert.registry.new_version import Model, create_version, ensure_model, has_sizes
from azneobert.registry.stored import Stored
from azneobert.registry.versions import (
    DIGEST_TAG,
    EVALUATED,
    HELD_OUT_TAG,
    RECIPE_TAG,
    TOKENIZER_TAG,
    Version,
    checkpoint_place,
    list_versions,
    place_of,
    version_of,
)
from azneobert.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_SCRATCH = "azneobert-push-"


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
    golden: Path | None = None,
    counts: Counts | None = None,
) -> Version:
    """Register a universal checkpoint and point aliases at it. Pushing the same content again finds the same version.

    If the files of a version are missing or damaged in the store, they are stored again.

    `figures` (held-out results by name), `pictures` and `counts` (of the collections of the training) go into the model
    card. `run_id` is the MLflow run to use if the store does not have the run that the checkpoint names. An alias
    leaves a version of another recipe only with `force`. `expected` is the sha256 that the version's manifest must
    have. `golden` is a file that keeps the golden ids and logits of this content.

    Raises:
        RegistryError: MLflow does not answer, the project was moved or copied since, an alias would leave another
            recipe's version, the figures are of other weights, or the content is not the one that is expected.
        CheckpointError: the checkpoint is missing or damaged.
    """
    check_place(recipe.tracking)
    if not force:
        _check_aliases(recipe, aliases)
    with scratch_folder(Path(tempfile.gettempdir()), _SCRATCH) as scratch:
        stored, manifest = checkpoint_to_store(checkpoint, scratch, with_moments=recipe.registry.with_moments)
        check_evaluated(checkpoint, manifest, figures)
        folder = scratch / "version"
        assemble(stored, recipe, figures, pictures, folder, golden, counts)
        digest = sha256_file(folder / VERSION_MANIFEST)
        if expected not in (None, digest):
            raise RegistryError(
                f"{checkpoint}: makes another version ({digest[:12]}) than the one that was registered "
                f"({expected[:12]}), since the recipe or the code has changed; use `dvc repro register`"
            )
        tracking, name = recipe.tracking, recipe.registry.name
        with mlflow_errors(tracking_uri(tracking)):
            client = mlflow_client(tracking)
            ensure_model(client, name, "Azerbaijani NeoBERT encoder")
            pushed = _Pushed(client, tracking, name, digest, folder, stored, manifest, figures)
            number = pushed.find_whole()
            if number is None:
                number = pushed.create(_run_of(client, tracking, manifest, run_id))
            for alias in aliases:
                client.set_registered_model_alias(name, alias, str(number))
            return version_of(client, name, str(number))


def is_whole(version: Version, tracking: Tracking) -> bool:
    """Whether the store has a version's files, by their names and sizes and the manifests' content.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        return not _missing(mlflow_client(tracking), tracking, version)


class _Pushed:
    """A version about to be registered, and its store."""

    def __init__(
        self,
        client: MlflowClient,
        tracking: Tracking,
        name: str,
        digest: str,
        folder: Path,
        checkpoint: Path,
        manifest: Manifest,
        figures: dict[str, Any],
    ):
        self._client, self._tracking, self._name, self._digest = client, tracking, name, digest
        self._folder, self._checkpoint, self._manifest, self._figures = folder, checkpoint, manifest, figures

    def find_whole(self) -> int | None:
        """The version of this content, with its files whole in the store; None if no version can have them."""
        query = f"name = '{self._name}' and tags.`{DIGEST_TAG}` = '{self._digest}'"
        for found in sorted(self._client.search_model_versions(query), key=lambda version: int(version.version)):
            version = version_of(self._client, self._name, found.version)
            missing = _missing(self._client, self._tracking, version)
            if not missing:
                return version.number
            if version.model_id is None or not self._can_hold(version.run_id, version.model_id):
                continue  # there is no place for the files
            log.warning("%s: its %s is not whole in the store; put there again", version.uri, " and ".join(missing))
            with uploading():
                if "encoder" in missing:
                    self._client.log_model_artifacts(version.model_id, str(self._folder))
                if "checkpoint" in missing:
                    self._put_checkpoint(version.run_id)
            return version.number
        return None

    def _can_hold(self, run_id: str, model_id: str) -> bool:
        """Whether the run and the model to which a version's files belong still exist."""
        from mlflow.exceptions import MlflowException

        try:
            return find_run(self._client, run_id) is not None and bool(self._client.get_logged_model(model_id))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def create(self, run_id: str) -> int:
        """Put both parts into the store, then make the version."""
        manifest = self._manifest
        model = Model(
            folder=self._folder,
            name=self._name,
            called=f"{self._name}-{manifest.phase}",
            kind="encoder",
            params={key: str(value) for key, value in manifest.identity["model"].items()},
            metrics={f"version/{k}": self._figures[f] for k, f in EVALUATED.items() if f in self._figures},
            step=manifest.step,
            tags=self._tags(),
        )
        with uploading():
            self._put_checkpoint(run_id)
            return create_version(self._client, self._tracking, model, run_id)

    def _put_checkpoint(self, run_id: str) -> None:
        self._client.log_artifacts(run_id, str(self._checkpoint), checkpoint_place(self._checkpoint_digest()))

    def _checkpoint_digest(self) -> str:
        return sha256_file(self._checkpoint / MANIFEST)

    def _tags(self) -> dict[str, str]:
        manifest, figures = self._manifest, self._figures
        told = {
            "phase": manifest.phase,
            "step": str(manifest.step),
            "tokens": str(manifest.tokens),
            "git_commit": manifest.last_segment.git_commit,
        }
        tags = {f"azneobert.{key}": value for key, value in told.items() if value}
        tags |= {RECIPE_TAG: manifest.recipe_name, TOKENIZER_TAG: manifest.identity["tokenizer"]}
        tags |= {f"azneobert.{key}": str(figures[figure]) for key, figure in EVALUATED.items() if figure in figures}
        return tags | ({HELD_OUT_TAG: figures[HELD_OUT_FIGURE]} if HELD_OUT_FIGURE in figures else {})


def _check_aliases(recipe: Recipe, aliases: list[str]) -> None:
    for version in list_versions(recipe.tracking, recipe.registry.name):
        owner = version.tags.get(RECIPE_TAG, "unknown")
        if owner != recipe.name and (taken := sorted(set(aliases) & set(version.aliases))):
            raise RegistryError(
                f"models:/{version.name}@{taken[0]}: is {version.uri} of recipe {owner}, this is recipe {recipe.name}; "
                "use another registry.name, or move it with `python pipelines/register.py --force`"
            )


def _missing(client: MlflowClient, tracking: Tracking, version: Version) -> list[str]:
    """Which parts of a version, `encoder` and `checkpoint`, are not whole in the store."""
    from mlflow.exceptions import MlflowException

    try:
        encoder = Stored(place_of(client, version), tracking)
        with tempfile.TemporaryDirectory() as scratch:
            contents = _stated(encoder, version, Path(scratch))
            if contents is None or not has_sizes(encoder, {name: f["size"] for name, f in contents.files.items()}):
                return ["encoder", "checkpoint"]
            if contents.inner is not None:
                return (
                    []
                    if has_sizes(encoder, {f"checkpoint/{n}": f["size"] for n, f in contents.inner.items()})
                    else ["checkpoint"]
                )
            checkpoint = Stored(place_of(client, version, contents), tracking)
            return [] if _has_checkpoint(checkpoint, contents, Path(scratch) / MANIFEST) else ["checkpoint"]
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run or the model is not there any more
            return ["encoder", "checkpoint"]
        raise
    except ValueError:  # no regular files
        return ["encoder", "checkpoint"]


def _stated(encoder: Stored, version: Version, scratch: Path) -> Contents | None:
    try:
        encoder.fetch(VERSION_MANIFEST, scratch / VERSION_MANIFEST)
        return read_contents(version.uri, scratch, version.tags.get(DIGEST_TAG, ""))
    except (OSError, RegistryError, ValueError):
        return None


def _has_checkpoint(checkpoint: Stored, contents: Contents, scratch: Path) -> bool:
    try:
        if checkpoint.fetch(MANIFEST, scratch) != contents.checkpoint_sha256:
            return False
    except (OSError, ValueError):
        return False
    return has_sizes(checkpoint, {name: stated["size"] for name, stated in read_manifest(scratch.parent).files.items()})


def _run_of(client: MlflowClient, tracking: Tracking, manifest: Manifest, run_id: str | None) -> str:
    """The run that trained the checkpoint, or a new run for the version if the store has no such run."""
    for candidate in (manifest.lineage.get("mlflow_run_id"), run_id):
        if candidate and find_run(client, candidate) is not None:
            return candidate
    run = client.create_run(ensure_experiment(client, tracking), run_name=f"register-{manifest.phase}")
    client.set_terminated(run.info.run_id)
    return run.info.run_id
