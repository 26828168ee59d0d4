"""Where the MLflow store of a recipe is, and where it keeps its artifacts: read and checked without MLflow.

A store in an SQLite file keeps its artifacts beside that file, in ``mlruns``. MLflow notes their absolute places.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from azneobert.errors import RegistryError
from azneobert.recipe import Tracking

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
    """The project's folder: this one, or the one that DVC names: it runs some stages in a copy that it deletes."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def database_file(tracking: Tracking) -> Path | None:
    """The SQLite file of the store; None if the store is something else, such as a server."""
    match = _SQLITE.fullmatch(store_uri(tracking))
    if match is None or match["path"].startswith((":memory:", "file:")):
        return None
    return project_root() / unquote(match["path"])


# Where its artifacts are


def path_of(location: str) -> Path | None:
    """The folder that MLflow means by an artifact location; None if it is not on this machine's file systems."""
    if not location.startswith(("/", "file:///")):
        return None
    return Path(unquote(location.removeprefix("file://")))  # MLflow decodes plain paths too


def location_of(path: Path, *, as_uri: bool = False) -> str:
    """The artifact location by which MLflow finds a folder: its path, or a URI where MLflow would misread the path."""
    misread = any(mark in str(path) for mark in "%#?;")
    return f"file://{quote(str(path))}" if as_uri or misread else str(path)


def former_root(location: str, database: Path) -> Path | None:
    """The folder that a project was in when MLflow noted this location; None if it is still there.

    None also for a location that is no ``mlruns`` folder: a person chose it.
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
    # By default MLflow keeps artifacts in the folder that a program runs in: in the project, if the store is outside of
    # it; in a folder below, for a notebook. If such a folder has a database of its own, it is another project.
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
        found = _locations(database, tracking.experiment) if schema_of(database) else []
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
        raise RegistryError(f"{tracking_uri(tracking)}: {error}; {remedy}") from error


def schema_of(database: Path) -> str | None:
    """MLflow's name for the version of the tables; None if there are none yet."""
    if not database.exists() or (database.is_file() and database.stat().st_size == 0):
        return None
    with closing(open_database(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found[0]) if found else None
