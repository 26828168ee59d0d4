"""The MLflow store of a recipe: its client, its experiment, and its errors in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.errors import RegistryError
from azneobert.recipe import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def tracking_uri(tracking: Tracking) -> str:
    """The MLflow store: the environment's MLFLOW_TRACKING_URI, or the recipe's."""
    return os.environ.get("MLFLOW_TRACKING_URI", tracking.mlflow_uri)


def mlflow_client(tracking: Tracking) -> MlflowClient:
    """A client of the recipe's store that gives up on a dead server in seconds, not minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line at each try, all through an outage
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    # Not mlflow.set_tracking_uri: it writes to the environment, which would then decide for every other recipe.
    return MlflowClient(tracking_uri(tracking))


def ensure_experiment(client: MlflowClient, tracking: Tracking) -> str:
    """The id of the recipe's experiment, which is made if it is not there."""
    found = client.get_experiment_by_name(tracking.experiment)
    if found is None:
        return client.create_experiment(tracking.experiment)
    if found.lifecycle_stage == "deleted":
        raise RegistryError(
            f"MLflow at {tracking_uri(tracking)}: experiment {tracking.experiment} is deleted; use `mlflow experiments "
            f"restore -x {found.experiment_id}`, or another name in tracking.experiment"
        )
    return found.experiment_id


def is_fresh_store(tracking: Tracking) -> bool:
    """Whether the store is a file of this project in which its experiment has never been made.

    Raises:
        RegistryError: MLflow does not answer.
    """
    if not tracking_uri(tracking).startswith("sqlite:"):
        return False
    with mlflow_errors(tracking_uri(tracking)):
        return mlflow_client(tracking).get_experiment_by_name(tracking.experiment) is None


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run; None where the store does not know it, or has it among the deleted ones."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def check_store(tracking: Tracking) -> None:
    """Ask the store for something small.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        mlflow_client(tracking).search_experiments(max_results=1)


def attach_files(tracking: Tracking, run_id: str, files: list[Path]) -> None:
    """Attach files to a run.

    Raises:
        RegistryError: MLflow does not answer.
    """
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        for file in files:
            client.log_artifact(run_id, str(file))


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and its transport raise into one line that names the store."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # MLflow passes on the errors of SQLAlchemy, requests and the file system alike
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise RegistryError(f"MLflow at {uri}: {first_line[:300]}") from error
