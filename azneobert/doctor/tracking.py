"""MLflow: whether it answers, takes what is written, and where its artifacts go. Nothing is left in it."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from azneobert.doctor.checkup import problem_of
from azneobert.doctor.finding import Finding, Findings, Subject, nearest_folder, ok, problem, warning
from azneobert.doctor.mounts import mount_of
from azneobert.errors import AzNeoBertError, RegistryError
from azneobert.mlflow_place import (
    ARTIFACTS,
    check_place,
    database_file,
    open_database,
    path_of,
    schema_of,
    sqlite_errors,
    tracking_uri,
)
from azneobert.mlflow_store import mlflow_client, mlflow_errors
from azneobert.recipe import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

_PROXIED = "mlflow-artifacts:"
_PROBE = "azneobert-doctor"
_THIS_HOST = ("localhost", "127.0.0.1", "::1")
_AWAY = "start it, or correct tracking.mlflow_uri or MLFLOW_TRACKING_URI; runs go on without it, registering does not"


def look_at_mlflow(subject: Subject) -> Findings:
    """Ask the store that the recipe names, or the environment."""
    if subject.recipe is None:
        yield warning("not asked: the recipe says where it is", "mend the recipe")
        return
    tracking = subject.recipe.tracking
    database = database_file(tracking)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # one wait of 10 s is enough
    try:
        yield from _look_at_server(tracking) if database is None else _look_at_database(tracking, database)
    except AzNeoBertError as error:
        if database is None and "Max retries exceeded" in str(error):  # followed by lines of Python
            yield problem(f"{tracking_uri(tracking)}: no connection", _AWAY)
        else:
            yield problem_of(error, _AWAY if database is None else "mend the file, or use another tracking.mlflow_uri")


def _look_at_database(tracking: Tracking, database: Path) -> Findings:
    uri, folder = tracking_uri(tracking), nearest_folder(database.parent)
    mount = mount_of(folder)
    if mount.is_network:
        yield warning(
            f"{uri} is on {mount}: several hosts that write to one SQLite file may break it",
            "run `mlflow server` on one host, and set MLFLOW_TRACKING_URI to it",
        )
    for place in (folder, nearest_folder(database.parent / ARTIFACTS)):
        if not os.access(place, os.W_OK | os.X_OK):
            yield problem(f"{uri}: {place} is not writable", "make it writable for this user")
            return
    with sqlite_errors(tracking, database):
        is_there = schema_of(database) is not None
        if is_there:
            _try_to_write(tracking, database)
    if not is_there:
        yield ok(f"{uri}: not there yet, the first run makes it; artifacts local, in {database.parent / ARTIFACTS}")
        return
    with mlflow_errors(uri):
        mlflow_client(tracking).search_experiments(max_results=1)  # checks that this MLflow knows the tables
    check_place(tracking)
    yield ok(f"{uri}: answers and can be written; artifacts local, in {database.parent / ARTIFACTS}")


def _try_to_write(tracking: Tracking, database: Path) -> None:
    """Make a table and roll it back: the journal is written to the disk, and the database does not change."""
    with closing(open_database(database, write=True)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE azneobert_doctor (probe BLOB)")
            connection.execute("INSERT INTO azneobert_doctor VALUES (zeroblob(65536))")
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                uri = tracking_uri(tracking)
                raise RegistryError(f"{uri}: cannot be written, {error}; free room on its disk") from error
            raise
        finally:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


def _look_at_server(tracking: Tracking) -> Findings:
    uri = tracking_uri(tracking)
    with mlflow_errors(uri):
        client = mlflow_client(tracking)
        named = client.get_experiment_by_name(tracking.experiment)
        known = named or next(iter(client.search_experiments(max_results=1)), None)
    if known is None:
        yield ok(f"{uri}: answers; writing was not tried, since it has no experiment yet")
        return
    refusal = _refusal_to_write(client, known)
    if refusal:
        yield problem(
            f"{uri}: answers, but refuses to write: {refusal}",
            "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the token, and the server's disk",
        )
        return
    yield ok(f"{uri}: answers and can be written")
    yield _look_at_artifacts(client, uri, known.artifact_location)


def _refusal_to_write(client: MlflowClient, known: Experiment) -> str | None:
    """Why the server refuses to write. The test makes an experiment whose name is taken, so that none is made."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(known.name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            return None
        return next(iter(str(error).splitlines()), type(error).__name__)[:300]
    return None


def _look_at_artifacts(client: MlflowClient, uri: str, location: str) -> Finding:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    local = path_of(location)
    if local is not None:
        is_shared = local.exists() or urlsplit(uri).hostname in _THIS_HOST
        kind = warning if is_shared else problem
        return kind(
            f"artifacts go to the folder {local}, {'which' if is_shared else 'which is not here, and'} every host that "
            "trains would have to share with the server",
            "start the server with --serve-artifacts and --artifacts-destination, and use a new tracking.experiment",
        )
    how = "proxied by the server" if location.startswith(_PROXIED) else "sent by each client itself"
    try:
        repository = get_artifact_repository(location, uri)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, _PROBE)
            file.write_bytes(b"probe")
            repository.log_artifact(str(file))
        repository.delete_artifacts(_PROBE)
    except ImportError as error:
        return problem(f"artifacts, {how} to {location}: {error}", "pip install the package that it names")
    except Exception as error:  # any error of requests, botocore, or the storage
        said = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        return problem(
            f"artifacts, {how} to {location}, cannot be written: {said}",
            "check the server's --artifacts-destination and its disk"
            if location.startswith(_PROXIED)
            else "check this machine's keys for that storage, or have the server proxy: --serve-artifacts",
        )
    return ok(f"artifacts {how}, in {location}; one was written and removed")
