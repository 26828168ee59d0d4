"""Mend a store that was moved or copied with its project: paths of the former place become paths of the new one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from azneobert.errors import RegistryError
from azneobert.mlflow_place import (
    ARTIFACTS,
    database_file,
    former_root,
    location_of,
    open_database,
    path_of,
    sqlite_errors,
    tracking_uri,
)
from azneobert.recipe import Tracking

# The columns in which MLflow stores absolute paths, and which of their rows.
_COLUMNS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "storage_location", ""),
    ("model_versions", "source", ""),
    ("trace_tags", "value", " AND key = 'mlflow.artifactLocation'"),
    ("workspaces", "default_artifact_root", ""),
)


@dataclass(frozen=True)
class Relocation:
    """What `relocate` has changed: rows by `table.column`, the former folders, the new one, and the backup."""

    rows: dict[str, int]
    former: tuple[Path, ...]
    root: Path
    backup: Path


def relocate(tracking: Tracking) -> Relocation | None:
    """Mend a store whose project was moved or copied, in one transaction and after a copy of the database.

    None where there is nothing to mend. A location that is no ``mlruns`` folder was chosen by a person and stays.

    Raises:
        RegistryError: the store is no SQLite file, or cannot be read and written.
    """
    database = database_file(tracking)
    if database is None:
        raise RegistryError(
            f"{tracking_uri(tracking)}: a server keeps its own artifacts; expected a store in an SQLite file"
        )
    if not database.is_file():
        raise RegistryError(
            f"{tracking_uri(tracking)}: {database}: no such file; use the tracking.mlflow_uri of a store that is there"
        )
    with sqlite_errors(tracking, database), closing(open_database(database, write=True)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # nobody else writes from here on, until the connection closes
        former = _former_roots(connection, database)
        if not former:
            return None
        backup = _back_up(database)
        rows = {f"{table}.{column}": 0 for table, column, _ in _COLUMNS}
        for table, column, condition in _columns(connection):
            for location in _locations(connection, table, column, condition):
                if moved := _moved(location, former, database):
                    changed = connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {column} = ?{condition}", (moved, location)
                    )
                    rows[f"{table}.{column}"] += changed.rowcount
        connection.execute("COMMIT")
    return Relocation({name: count for name, count in rows.items() if count}, former, database.parent, backup)


def _columns(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """The entries of `_COLUMNS` that this database has: MLflow has added columns over the years."""
    return [
        (table, column, condition)
        for table, column, condition in _COLUMNS
        if column in [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    ]


def _locations(connection: sqlite3.Connection, table: str, column: str, condition: str) -> list[str]:
    query = f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL{condition}"
    return [location for (location,) in connection.execute(query)]


def _former_roots(connection: sqlite3.Connection, database: Path) -> tuple[Path, ...]:
    """The places where the project was. A place below another one moved with it and is left out."""
    found = {
        root
        for column in _columns(connection)
        for location in _locations(connection, *column)
        if (root := former_root(location, database))
    }
    return tuple(sorted(root for root in found if not found & set(root.parents)))


def _moved(location: str, former: tuple[Path, ...], database: Path) -> str | None:
    """The location in the project as it is now; None where it does not change."""
    path = path_of(location)
    if path is None or former_root(location, database) is None:
        return None
    [root] = [root for root in former if path.is_relative_to(root)]
    return location_of(database.parent / path.relative_to(root), as_uri=location.startswith("file:"))


def _back_up(database: Path) -> Path:
    """A copy of the database beside it, under a name that is free; it appears whole."""
    backup, number = database.with_name(f"{database.name}.before-relocate"), 1
    while backup.exists():
        number += 1
        backup = database.with_name(f"{database.name}.before-relocate-{number}")
    partial = backup.with_name(f"{backup.name}.partial")
    partial.unlink(missing_ok=True)
    with closing(open_database(database)) as source, closing(sqlite3.connect(partial)) as target:
        source.backup(target)
    return partial.rename(backup)


def without_artifacts(relocation: Relocation) -> bool:
    """Whether the project has no artifacts where the store now says that they are: the database came alone."""
    return not (relocation.root / ARTIFACTS).is_dir()
