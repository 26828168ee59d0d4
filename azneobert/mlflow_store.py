"""The MLflow store of a recipe: its tables, its client, its experiment, and its errors in one line."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.errors import RegistryError
from azneobert.files import write_whole
from azneobert.locks import FileLock
from azneobert.mlflow_answers import bound_answers
from azneobert.mlflow_place import (
    ARTIFACTS,
    check_place,
    database_file,
    location_of,
    schema_of,
    sqlite_errors,
    store_uri,
    tracking_uri,
)
from azneobert.recipe import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run


_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_SECONDS_TO_ANSWER = "10"
_SECONDS_TO_STORE = "600"
_SECONDS_TO_MAKE = 60.0  # for a database, which another process may be making


def _prepare_database(tracking: Tracking) -> None:
    """Make the database if it is not there, in one process at a time, or check that this MLflow can use it."""
    database = database_file(tracking)
    if database is None:
        return
    with sqlite_errors(tracking, database):
        if schema_of(database) is None:
            database.parent.mkdir(parents=True, exist_ok=True)
            with _locked_if_possible(database.parent):
                if schema_of(database) is None:
                    _make_database(database, store_uri(tracking))
        _check_schema(tracking, database, schema_of(database))


def _make_database(database: Path, uri: str) -> None:
    """Make MLflow's tables. A new file appears whole: no other program sees half of them."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts = location_of(database.parent / ARTIFACTS)  # MLflow would take the current folder's
    if database.exists() and database.stat().st_size:
        SqlAlchemyStore(uri, artifacts)
        return
    with tempfile.TemporaryDirectory() as scratch:
        made = SqlAlchemyStore(f"sqlite:///{scratch}/mlflow.db", artifacts)
        made.engine.dispose()
        write_whole(database, Path(scratch, "mlflow.db").read_bytes())


def _check_schema(tracking: Tracking, database: Path, found: str | None) -> None:
    from mlflow.version import VERSION

    newest, known = _schemas()
    if found in (None, newest):
        return
    if found in known:
        raise RegistryError(
            f"{tracking_uri(tracking)}: made by an older MLflow than {VERSION}, which is installed; copy {database} "
            f"first, then use `mlflow db upgrade {shlex.quote(store_uri(tracking))}`"
        )
    raise RegistryError(
        f"{tracking_uri(tracking)}: made by a newer MLflow than {VERSION}, which is installed; "
        "use `pip install -U mlflow`, or another file in tracking.mlflow_uri"
    )


@cache
def _schemas() -> tuple[str, frozenset[str]]:
    """The version of the tables that the installed MLflow works with, and all that it knows."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    script = ScriptDirectory.from_config(_get_alembic_config(db_url=""))
    return script.get_heads()[0], frozenset(step.revision for step in script.walk_revisions())


@contextmanager
def _locked_if_possible(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; where the file system has no locks, the work goes on without one."""
    lock = FileLock(folder)
    try:
        with suppress(OSError):
            lock.acquire(lambda: None, _SECONDS_TO_MAKE)
        yield
    finally:
        lock.release()


# Its client


def mlflow_is_installed() -> bool:
    """Whether there is an MLflow to import: a machine that only trains need not have one."""
    return importlib.util.find_spec("mlflow") is not None


def mlflow_client(tracking: Tracking) -> MlflowClient:
    """A client of the recipe's store that gives up on a dead server in seconds, not minutes.

    Raises:
        RegistryError: the store is a file that this MLflow cannot use, or MLflow is not installed.
    """
    if not mlflow_is_installed():
        raise RegistryError(
            f"{tracking_uri(tracking)}: MLflow is not installed here; use `make setup`, or a machine that has it"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault(_TIMEOUT, _SECONDS_TO_ANSWER)
    from mlflow import MlflowClient

    bound_answers()
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line at each try, all through an outage
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.artifact.artifact_repo").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of each error that it raises
    _prepare_database(tracking)
    # Not mlflow.set_tracking_uri: it writes to the environment, which would then decide for every other recipe.
    return MlflowClient(store_uri(tracking))


@contextmanager
def as_default_store(tracking: Tracking) -> Iterator[None]:
    """Make the recipe's store the one that MLflow takes from the environment, for functions that use no client."""
    name = "MLFLOW_TRACKING_URI"
    former = os.environ.get(name)
    os.environ[name] = store_uri(tracking)
    try:
        yield
    finally:
        if former is None:
            del os.environ[name]
        else:
            os.environ[name] = former


@contextmanager
def uploading() -> Iterator[None]:
    """Allow more time for an answer while files go up: a server that has received a large file must first store it."""
    former = os.environ.get(_TIMEOUT)
    if former == _SECONDS_TO_ANSWER:  # not a person's own
        os.environ[_TIMEOUT] = _SECONDS_TO_STORE
    try:
        yield
    finally:
        if former is not None:
            os.environ[_TIMEOUT] = former


def ensure_experiment(client: MlflowClient, tracking: Tracking) -> str:
    """The id of the recipe's experiment, which is made if it is not there."""
    found = client.get_experiment_by_name(tracking.experiment) or _make_experiment(client, tracking)
    if found.lifecycle_stage == "deleted":
        raise RegistryError(
            f"MLflow at {tracking_uri(tracking)}: experiment {tracking.experiment} is deleted; use `mlflow experiments "
            f"restore -x {found.experiment_id}`, or another name in tracking.experiment"
        )
    return found.experiment_id


def _make_experiment(client: MlflowClient, tracking: Tracking) -> Experiment:
    from mlflow.exceptions import MlflowException

    location, database = None, database_file(tracking)
    if database:  # MLflow would take the current folder's
        folder = re.sub(r"[^A-Za-z0-9_-]", "-", tracking.experiment)
        location = location_of(database.parent / ARTIFACTS / folder)
    try:
        return client.get_experiment(client.create_experiment(tracking.experiment, location))
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS" and (
            found := client.get_experiment_by_name(tracking.experiment)
        ):
            return found  # another process was faster
        raise


def is_fresh_store(tracking: Tracking) -> bool:
    """Whether the store is a file of this project in which its experiment has never been made.

    Raises:
        RegistryError: MLflow does not answer.
    """
    if database_file(tracking) is None:
        return False
    with mlflow_errors(tracking_uri(tracking)):
        return mlflow_client(tracking).get_experiment_by_name(tracking.experiment) is None


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run; None if the store does not know it or has deleted it."""
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
        RegistryError: MLflow does not answer, or the project was moved or copied since.
    """
    check_place(tracking)
    with mlflow_errors(tracking_uri(tracking)):
        client = mlflow_client(tracking)
        for file in files:
            client.log_artifact(run_id, str(file))


# The words of SQLite and of the system, which stand in the middle of some 200 lines of MLflow's.
_DISK_REFUSES = (
    "database or disk is full",
    "attempt to write a readonly database",
    "disk I/O error",
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "File too large",
)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and its transport raise into one line that names the store."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # MLflow passes on the errors of SQLAlchemy, requests and the file system alike
        if "timed out" in str(error):  # of a server; a database that is locked says so
            seconds = os.environ.get(_TIMEOUT, _SECONDS_TO_ANSWER)
            raise RegistryError(f"MLflow at {uri}: no answer in {seconds} s") from error
        if "error code 401" in str(error) or "error code 403" in str(error):
            raise RegistryError(
                f"MLflow at {uri}: the login is refused; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN"
            ) from error
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        if found := next((words for words in _DISK_REFUSES if words in str(error)), None):
            place = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:") else uri
            raise RegistryError(f"{place}: cannot be written, {found}; free room on its disk") from error
        raise RegistryError(f"MLflow at {uri}: {first_line[:300]}") from error
