"""Where the store is, who makes it, and what becomes of one that the installed MLflow cannot use."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from refusals import refused
from toy import run_ranks

from azneobert import mlflow_place, mlflow_store
from azneobert.errors import RegistryError
from azneobert.mlflow_place import check_place, database_file, location_of, path_of, store_uri, tracking_uri
from azneobert.mlflow_store import attach_files, check_store, ensure_experiment, mlflow_client
from azneobert.recipe import Tracking

RELATIVE = "sqlite:///mlflow.db"


def tracking_at(uri: str) -> Tracking:
    return Tracking(mlflow_uri=uri, experiment="toy", wandb="off")


@pytest.fixture
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a project, a stage of which runs in a copy as `dvc exp run --temp` makes one."""
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("setting", ["recipe", "environment"])
def test_a_relative_address_starts_at_the_projects_root_and_is_shown_as_it_was_written(
    setting: str, in_a_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = tracking_at(RELATIVE if setting == "recipe" else "http://127.0.0.1:9")
    if setting == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", RELATIVE)
    assert store_uri(tracking) == f"sqlite:///{in_a_copy}/mlflow.db"
    assert database_file(tracking) == in_a_copy / "mlflow.db"
    assert tracking_uri(tracking) == RELATIVE
    monkeypatch.delenv("DVC_ROOT")
    assert database_file(tracking) == Path.cwd() / "mlflow.db"


@pytest.mark.parametrize("uri", ["http://host:5000", "sqlite:///:memory:", "sqlite:////a/b%20c.db?timeout=3"])
def test_another_address_stays_as_it_is(uri: str, in_a_copy: Path) -> None:
    assert store_uri(tracking_at(uri)) == uri


def test_a_file_is_found_as_mlflow_finds_it() -> None:
    assert database_file(tracking_at("sqlite:////a/b%20c.db?timeout=3")) == Path("/a/b c.db")
    assert database_file(tracking_at("sqlite:///:memory:")) is None
    assert database_file(tracking_at("http://host:5000")) is None


def test_what_runs_in_a_copy_leaves_its_artifacts_in_the_project(in_a_copy: Path) -> None:
    tracking = tracking_at(RELATIVE)
    made_run(tracking)
    client = mlflow_client(tracking)
    assert [e.artifact_location for e in client.search_experiments(order_by=["experiment_id"])] == [
        f"{in_a_copy}/mlruns/0",
        f"{in_a_copy}/mlruns/toy",
    ]
    assert len(list(in_a_copy.glob("mlruns/toy/*/artifacts/noted.txt"))) == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["noted.txt"]


def made_run(tracking: Tracking) -> str:
    """A run with a file, of the folder where this runs."""
    Path("noted.txt").write_text("noted")
    client = mlflow_client(tracking)
    run_id = client.create_run(ensure_experiment(client, tracking)).info.run_id
    attach_files(tracking, run_id, [Path("noted.txt")])
    return run_id


@pytest.mark.parametrize("name", ["a b", "ə ğ", "it's", "100%", "a%20b", "ha#sh", "wha?t"])
def test_a_project_may_have_any_name(name: str, tmp_path: Path) -> None:
    run_ranks(made_run, tracking_at(RELATIVE), folder=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name], "and nothing is left beside it"
    assert {path.name for path in (tmp_path / name).iterdir()} == {"mlflow.db", "mlruns", "noted.txt"}
    assert len(list((tmp_path / name).glob("mlruns/toy/*/artifacts/noted.txt"))) == 1


@pytest.mark.parametrize("path", ["/a b/ə", "/100%", "/a%20b", "/a#b", "/a?b"])
def test_a_location_names_the_path_it_was_made_of(path: str) -> None:
    assert path_of(location_of(Path(path))) == Path(path)
    assert path_of(location_of(Path(path), as_uri=True)) == Path(path)


def test_an_experiment_s_name_never_leaves_the_artifacts_folder(mlflow_uri: str, tmp_path: Path) -> None:
    tracking = Tracking(mlflow_uri=mlflow_uri, experiment="../../ə b", wandb="off")
    client = mlflow_client(tracking)
    found = client.get_experiment(ensure_experiment(client, tracking))
    assert Path(found.artifact_location).parent == tmp_path / "mlruns"


def test_several_processes_may_be_the_first(tmp_path: Path) -> None:
    runs = run_ranks(made_run, tracking_at(RELATIVE), processes=4, folder=tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert {run for (run,) in connection.execute("SELECT run_uuid FROM runs")} == set(runs)
        assert connection.execute("SELECT count(*) FROM experiments").fetchone() == (2,)
    assert len(set(runs)) == 4
    assert not list(tmp_path.glob(".mlflow*")), "what was on its way must not lie about"


def test_an_experiment_that_another_process_makes_meanwhile_is_the_same(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tracking = mlflow_client(tracking_at(mlflow_uri)), tracking_at(mlflow_uri)
    made = ensure_experiment(client, tracking)
    answers = [None, client.get_experiment(made)]
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: answers.pop(0))
    assert ensure_experiment(client, tracking) == made


# What cannot be used


@pytest.fixture
def database(mlflow_uri: str, tmp_path: Path) -> Path:
    return tmp_path / "mlflow.db"


def refuse(database: Path, *parts: str) -> None:
    tracking = tracking_at(f"sqlite:///{database}")
    with refused(RegistryError, tracking_uri(tracking), *parts):
        check_store(tracking)


def set_schema(database: Path, version: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()


def test_a_database_of_a_newer_mlflow_is_refused_with_what_would_do(database: Path) -> None:
    set_schema(database, "ffffffffffff")
    refuse(database, "made by a newer MLflow than", "pip install -U mlflow")


def test_a_database_of_an_older_mlflow_is_refused_with_the_command_that_upgrades_it(database: Path) -> None:
    newest, known = mlflow_store._schemas()
    set_schema(database, min(known - {newest}))
    before = database.read_bytes()
    refuse(
        database, "made by an older MLflow than", f"copy {database} first", f"mlflow db upgrade sqlite:///{database}"
    )
    assert database.read_bytes() == before, "nobody asked for an upgrade"


def test_a_file_that_is_no_database_is_refused_and_kept(database: Path) -> None:
    database.write_text("years of work\n" * 100)
    refuse(database, "file is not a database", "use another tracking.mlflow_uri")
    assert database.read_text().startswith("years of work")


def test_an_empty_file_becomes_a_database(database: Path) -> None:
    database.write_bytes(b"")
    check_place(tracking_at(f"sqlite:///{database}"))
    check_store(tracking_at(f"sqlite:///{database}"))
    assert database.stat().st_size > 0


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken.db").mkdir()
    refuse(tmp_path / "taken.db", "move")


def test_a_database_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file" / "mlflow.db", "file")


def test_a_database_that_another_program_holds_is_one_line(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_place, "_SECONDS_OF_A_LOCK", 0.1)
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        refuse(database, "database is locked", "another program is writing")
    finally:
        holder.close()


def test_a_database_is_found_whatever_its_tables_were_made_by(empty_mlflow: Path, tmp_path: Path) -> None:
    """The place of the experiment that MLflow makes by itself says nothing: nobody writes there."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    check_place(tracking_at(f"sqlite:///{tmp_path}/mlflow.db"))
