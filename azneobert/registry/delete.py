"""Delete a version from the registry, with its model and the files that no other version needs."""

from __future__ import annotations

from azneobert.errors import RegistryError
from azneobert.mlflow_place import check_place, tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.recipe import Tracking
from azneobert.registry.stored import Stored
from azneobert.registry.versions import Version, find_version, list_versions, place_of


def delete(uri: str, tracking: Tracking, *, force: bool = False) -> Version:
    """Delete a version and the files of its encoder; the checkpoint stays among the artifacts of its run.

    For a version of the first format all files stay there, since they belong to the run.

    Raises:
        RegistryError: an alias points at it, and `force` is not given; the URI names nothing; MLflow does not answer.
    """
    check_place(tracking)
    version = find_version(uri, tracking)
    if version.aliases and not force:
        aliases = ", ".join(f"@{alias}" for alias in version.aliases)
        raise RegistryError(f"{version.uri}: is {aliases}; move that alias first, or use --force")
    others = [v for v in list_versions(tracking, version.name) if v.number != version.number]
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        shared = any(other.source == version.source for other in others)
        place = place_of(client, version)
        client.delete_model_version(version.name, str(version.number))
        if not shared and version.model_id is not None:
            Stored(place, tracking).remove()
            client.delete_logged_model(version.model_id)
    return version
