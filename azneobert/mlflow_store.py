"""The MLflow store of a recipe: where it is, its client, its experiment, and its errors in one line.

A store in an SQLite file keeps its artifacts beside that file, in ``mlruns``. MLflow notes their absolute places.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from azneobert.errors import RegistryError
from azneobert.files import FileLock, write_whole
from azneobert.recipe import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

ARTIFACTS = "mlruns"

_SECONDS_OF_A_LOCK = 20.0  # as MLflow waits

_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<path>[^?]+)(?P<options>\?.*)?")
_IN_ARTIFACTS = re.compile(rf"(?P<root>/.*)/{ARTIFACTS}/.+|/{ARTIFACTS}/.+")

# Where the store is


def tracking_uri(tracking: Tracking) -> str:
    """The MLflow store as a person wrote it: the environment's MLFLOW_TRACKING_URI, or the recipe's."""
    return os.environ.get("MLFLOW_TRACKING_URI") or tracking.mlflow_uri


def store_uri(tracking: Tracking) -> str:
    """The MLflow store as MLflow is told of it: an SQLite file by its absolute path."""
    return absolute_uri(tracking_uri(tracking))


def absolute_uri(uri: str) -> str:
    """The address of a store, an SQLite file by its absolute path: a relative one starts at the project's root."""
    match = _SQLITE.fullmatch(uri)
    if match is None or match["path"].startswith(("/", ":memory:", "file:")):
        return uri
    root = str(project_root())
    if unquote(root) != root or "?" in root:
        if project_root() == Path.cwd():  # MLflow decodes addresses, and would make a folder of the encoded name too
            return uri
        root = root.replace("%", "%25").replace("?", "%3F")
    return f"{match['scheme']}{root}/{match['path']}{match['options'] or ''}"


def project_root() -> Path:
    """The project's folder: this one, or the one that DVC names, which runs some stages in a copy that it deletes."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def database_file(tracking: Tracking) -> Path | None:
    """The SQLite file of the store; None where the store is something else, as a server is."""
    match = _SQLITE.fullmatch(store_uri(tracking))
    if match is None or match["path"].startswith((":memory:", "file:")):
        return None
    return project_root() / unquote(match["path"])


# Where its artifacts are


def path_of(location: str) -> Path | None:
    """The folder that MLflow means by an artifact location; None where it is not on this machine's file systems."""
    if not location.startswith(("/", "file:///")):
        return None
    return Path(unquote(location.removeprefix("file://")))  # MLflow decodes plain paths too


def location_of(path: Path, *, as_uri: bool = False) -> str:
    """The artifact location by which MLflow finds a folder: its path, or a URI where MLflow would misread the path."""
    misread = any(mark in str(path) for mark in "%#?;")
    return f"file://{quote(str(path))}" if as_uri or misread else str(path)


def former_root(location: str, database: Path) -> Path | None:
    """The folder that a project was in when MLflow noted this location; None where that is where it is now.

    None also of a location that is no ``mlruns`` folder: a person chose it.
    """
    root = _root_of(location)
    return None if root is None or _is_here(root, database) else root


def _root_of(location: str) -> Path | None:
    path = path_of(location)
    match = _IN_ARTIFACTS.fullmatch(str(path)) if path else None
    return Path(match["root"] or "/") if match else None


def _is_here(root: Path, database: Path) -> bool:
    found, here = root.resolve(), database.parent.resolve()
    if found == here:
        return True
    # MLflow by itself keeps artifacts in the folder that a program runs in: in the project, of a store outside of it;
    # in one below, of a notebook. With a database of its own, such a folder is another project.
    may_be = here in found.parents or found == project_root().resolve()
    return may_be and not (found / database.name).exists()


def check_place(tracking: Tracking) -> None:
    """Check before artifacts are written or read that they are this project's, not those of the one it was copied from.

    Raises:
        RegistryError: the project was moved or copied since, or the database cannot be read.
    """
    database = database_file(tracking)
    if database is None:
        return
    with sqlite_errors(tracking, database):
        found = _locations(database, tracking.experiment) if _schema_of(database) else []
    for root in {_root_of(location) for location in found}:  # one or two, of thousands of runs
        if root and not _is_here(root, database):
            raise RegistryError(
                f"{tracking_uri(tracking)} keeps its artifacts in {root / ARTIFACTS}, this project is "
                f"{database.parent}: it was moved or copied; `azneobert registry relocate` mends it"
            )


def _locations(database: Path, experiment: str) -> list[str]:
    with closing(open_database(database)) as connection:
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = ? UNION SELECT artifact_uri FROM runs"
            " UNION SELECT storage_location FROM model_versions UNION SELECT source FROM model_versions",
            (experiment,),
        )
        return [location for (location,) in found if location]


# The database


def open_database(database: Path, *, write: bool = False) -> sqlite3.Connection:
    """A connection to a database that is there, without MLflow, which would make or change its tables."""
    mode = "rw" if write else "ro"
    return sqlite3.connect(
        f"file://{quote(str(database))}?mode={mode}", _SECONDS_OF_A_LOCK, uri=True, isolation_level=None
    )


@contextmanager
def sqlite_errors(tracking: Tracking, database: Path) -> Iterator[None]:
    """Turn what SQLite raises into one line that names the store and says what to do."""
    try:
        yield
    except OSError as error:
        raise RegistryError(f"{tracking_uri(tracking)}: {error.filename or database}: {error.strerror}") from error
    except sqlite3.Error as error:
        remedy = f"use another tracking.mlflow_uri, or move {database} away"
        if "locked" in str(error):
            remedy = "another program is writing to it; try again when that has ended"
        elif "readonly" in str(error) or "unable to open" in str(error):
            remedy = f"expected a file in {database.parent} that you may read and write"
        raise RegistryError(f"{tracking_uri(tracking)}: {error}: {remedy}") from error


def _prepare_database(tracking: Tracking) -> None:
    """Make the database if it is not there, in one process at a time, or check that this MLflow can use it."""
    database = database_file(tracking)
    if database is None:
        return
    with sqlite_errors(tracking, database):
        if _schema_of(database) is None:
            database.parent.mkdir(parents=True, exist_ok=True)
            with _locked_if_possible(database.parent):
                if _schema_of(database) is None:
                    _make_database(database, store_uri(tracking))
        _check_schema(tracking, database, _schema_of(database))


def _schema_of(database: Path) -> str | None:
    """MLflow's name for the version of the tables; None where there are none yet."""
    if not database.exists() or (database.is_file() and database.stat().st_size == 0):
        return None
    with closing(open_database(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found[0]) if found else None


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
            f"{tracking_uri(tracking)}: made by an older MLflow than {VERSION}, which is installed: copy {database} "
            f"first, then use `mlflow db upgrade {shlex.quote(store_uri(tracking))}`"
        )
    raise RegistryError(
        f"{tracking_uri(tracking)}: made by a newer MLflow than {VERSION}, which is installed: "
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
            lock.acquire(lambda: None)
        yield
    finally:
        lock.release()


# Its client


def mlflow_client(tracking: Tracking) -> MlflowClient:
    """A client of the recipe's store that gives up on a dead server in seconds, not minutes.

    Raises:
        RegistryError: the store is a file that this MLflow cannot use.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line at each try, all through an outage
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.artifact.artifact_repo").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of each error that it raises
    _prepare_database(tracking)
    # Not mlflow.set_tracking_uri: it writes to the environment, which would then decide for every other recipe.
    return MlflowClient(store_uri(tracking))


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
        RegistryError: MLflow does not answer, or the project was moved or copied since.
    """
    check_place(tracking)
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
