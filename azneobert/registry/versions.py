"""Registered versions: all of a model, or the one that a URI names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from azneobert.errors import RegistryError
from azneobert.mlflow_place import tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.recipe import Tracking
from azneobert.registry.contents import INNER_CHECKPOINT, Contents

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "azneobert.manifest_sha256"
RECIPE_TAG = "azneobert.recipe"
TOKENIZER_TAG = "azneobert.tokenizer_sha256"
HELD_OUT_TAG = "azneobert.held_out_sha256"
EVALUATED = {"loss": "eval/loss", "accuracy": "eval/accuracy"}  # name of tag and metric: the figure of a report
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
_SOURCE = re.compile(r"runs:/(?P<run_id>[^/]+)/(?P<place>.+)")
_MODEL = re.compile(r"models:/(?P<model_id>m-[0-9a-f]+)")


@dataclass(frozen=True)
class Version:
    """A registered version, as `list_versions` and `push` report it.

    `model_id` is the LoggedModel that holds its encoder; versions of the first format have none.
    """

    name: str
    number: int
    aliases: tuple[str, ...]
    run_id: str
    tags: dict[str, str]
    source: str = ""

    @property
    def model_id(self) -> str | None:
        """The LoggedModel that is its source."""
        match = _MODEL.fullmatch(self.source)
        return match["model_id"] if match else None

    @property
    def uri(self) -> str:
        """The URI under which MLflow and this project find it."""
        return f"models:/{self.name}/{self.number}"


def list_models(tracking: Tracking) -> list[str]:
    """The names of the registered models.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        return sorted(model.name for model in mlflow_client(tracking).search_registered_models())


def list_versions(tracking: Tracking, name: str) -> list[Version]:
    """Every version of a registered model, oldest first; none where the model is not registered.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        found = client.search_model_versions(f"name = '{name}'")
        return sorted((version_of(client, name, v.version) for v in found), key=lambda version: version.number)


def find_digest(tracking: Tracking, name: str, digest: str) -> Version | None:
    """The version whose manifest has this sha256.

    Raises:
        RegistryError: MLflow does not answer.
    """
    return next((v for v in list_versions(tracking, name) if v.tags.get(DIGEST_TAG) == digest), None)


def free_aliases(tracking: Tracking, name: str, aliases: list[str]) -> list[str]:
    """Those of the aliases that no version has yet.

    Raises:
        RegistryError: MLflow does not answer.
    """
    taken = {alias for version in list_versions(tracking, name) for alias in version.aliases}
    return [alias for alias in aliases if alias not in taken]


def find_version(uri: str, tracking: Tracking) -> Version:
    """The version that a URI names.

    Raises:
        RegistryError: the URI has another form, or names a model, alias or version that is not there.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise RegistryError(
            f"{uri}: not a registry URI; expected one as models:/azneobert@phase2 or models:/azneobert/1"
        )
    versions = list_versions(tracking, match["name"])
    for version in versions:
        if match["alias"] in version.aliases or match["number"] == str(version.number):
            return version
    known = [f"@{alias}" for version in versions for alias in version.aliases] + [f"/{v.number}" for v in versions]
    if not known:
        raise RegistryError(f"{uri}: not in {tracking_uri(tracking)}, which has no model {match['name']}; register one")
    raise RegistryError(
        f"{uri}: not in {tracking_uri(tracking)}, {match['name']} has {', '.join(known)}; use one of them"
    )


def place_of(client: MlflowClient, version: Version, contents: Contents | None = None) -> str:
    """Where MLflow keeps a version's encoder: a folder of this machine, or an address on a server's storage.

    With the version's `contents`, it is the place of the checkpoint instead.
    """
    if contents is not None:
        if contents.inner is not None:
            return f"{place_of(client, version)}/{INNER_CHECKPOINT}"
        place = checkpoint_place(contents.checkpoint_sha256)
        return f"{client.get_run(version.run_id).info.artifact_uri}/{place}"
    if version.model_id is not None:
        return str(client.get_logged_model(version.model_id).artifact_location)
    source = client.get_model_version_download_uri(version.name, str(version.number))
    if (within := run_and_place(source)) is None:
        return source
    run_id, place = within
    return f"{client.get_run(run_id).info.artifact_uri}/{place}"


def checkpoint_place(manifest_sha256: str) -> str:
    """The folder of a checkpoint among its run's artifacts. Each has its own, so no later checkpoint can change it."""
    return f"checkpoint-{manifest_sha256[:12]}"


def run_and_place(source: str) -> tuple[str, str] | None:
    """The run of a version's source, and the folder among its artifacts; None where it is not of that kind."""
    match = _SOURCE.fullmatch(source)
    return (match["run_id"], match["place"]) if match else None


def version_of(client: MlflowClient, name: str, number: str) -> Version:
    """One version as MLflow has it now."""
    found = client.get_model_version(name, number)
    run_id, source = found.run_id or "", found.source or ""
    return Version(name, int(found.version), tuple(found.aliases), run_id, dict(found.tags), source)
