"""A project that was moved or copied never touches the artifacts of the place it came from, and is mended whole."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pushed import FIGURES, artifacts_of, digests, forget_places, push_newest
from refusals import refused
from toy import Toy, run_command

from azneobert import mlflow_place
from azneobert.errors import RegistryError
from azneobert.mlflow_place import check_place
from azneobert.mlflow_store import attach_files
from azneobert.registry.pull import pull
from azneobert.registry.relocate import relocate
from azneobert.registry.versions import list_versions
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.record import RunInfo
from azneobert.tracking.tracker import Tracker
from azneobert.yaml_files import yaml_text

INFO = RunInfo("toy-phase1", artifacts={"lineage.json": {"a": 1}})
REMEDY = "`azneobert registry relocate` mends it"


def brought(toy: Toy, target: Path, how: Callable[[Path, Path], object] = shutil.copytree) -> Toy:
    """The project with its store, moved or copied."""
    former = database_of(toy).parent
    target.mkdir()
    how(former / "mlruns", target / "mlruns")
    shutil.copy(former / "mlflow.db", target / "mlflow.db")
    forget_places()
    return toy.with_({"tracking": {"mlflow_uri": f"sqlite:///{str(target).replace('%', '%25')}/mlflow.db"}})


def database_of(toy: Toy) -> Path:
    database = mlflow_place.database_file(toy.recipe.tracking)
    assert database is not None
    return database


def values(database: Path, query: str) -> list[str]:
    with sqlite3.connect(database) as connection:
        found = [value for (value,) in connection.execute(query)]
    connection.close()
    return found


def execute(database: Path, *statements: str) -> None:
    with sqlite3.connect(database) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("name", ["elsewhere", "a b", "ə ğ", "it's", "100%", "a%20b", "ha#sh"])
def test_a_moved_project_is_mended_wherever_it_goes_and_when_it_comes_back(name: str, toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    expected = digests(tmp_path / "mlruns")
    for step, target in enumerate([tmp_path / name, tmp_path / "back"]):
        former = database_of(toy).parent
        toy = brought(toy, target, Path.rename)
        with refused(RegistryError, f"{former}/mlruns", f"this project is {target}", REMEDY):
            pull("models:/toybert@phase1", tmp_path / f"pulled{step}", toy.recipe.tracking)
        done = relocate(toy.recipe.tracking)
        assert done is not None
        assert (done.former, done.root) == ((former,), target)
        forget_places()
        pull("models:/toybert@phase1", tmp_path / f"pulled{step}", toy.recipe.tracking)
        assert digests(target / "mlruns") == expected
    assert relocate(toy.recipe.tracking) is None, "there is nothing to mend any more"


def test_a_copy_never_writes_into_the_artifacts_of_the_original(toy: Toy, tmp_path: Path) -> None:
    version = push_newest(toy, ["phase1"])
    before = digests(tmp_path / "mlruns")
    copy = brought(toy, tmp_path / "copy")
    tracking, note = copy.recipe.tracking, tmp_path / "note.txt"
    note.write_text("of the copy")
    Tracker(tmp_path / "tracked", tracking, INFO).finish("FINISHED")
    writers: list[Callable[[], object]] = [
        lambda: push_newest(copy, ["phase1"], FIGURES | {"eval/loss": 4.0}),
        lambda: attach_files(tracking, version.run_id, [note]),
        lambda: deliver_folder(tmp_path / "tracked", tracking),
    ]
    for write in writers:
        with refused(RegistryError, f"{tmp_path}/mlruns", f"this project is {tmp_path}/copy", REMEDY):
            write()
    assert [v.number for v in list_versions(tracking, "toybert")] == [1], "rows alone can be read"
    relocate(tracking)
    forget_places()
    for write in writers:
        write()
    assert digests(tmp_path / "mlruns") == before
    assert len(digests(tmp_path / "copy" / "mlruns")) > len(before)
    assert len(list((tmp_path / "copy" / "mlruns").rglob("note.txt"))) == 1


def test_a_copy_below_or_above_the_original_is_another_project(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    below = brought(toy, tmp_path / "below")
    with refused(RegistryError, REMEDY):
        check_place(below.recipe.tracking)
    relocate(below.recipe.tracking)
    shutil.copy(tmp_path / "below" / "mlflow.db", tmp_path / "mlflow.db")
    with refused(RegistryError, f"{tmp_path}/below/mlruns", REMEDY):
        check_place(toy.recipe.tracking)


def test_training_goes_on_in_a_copy_and_its_points_arrive_when_it_is_mended(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push_newest(toy, ["phase1"])
    tracking = brought(toy, tmp_path / "copy").recipe.tracking
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(tmp_path / "tracked", tracking, INFO)
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish("FINISHED")
    assert all(REMEDY in record.getMessage() for record in caplog.records)
    assert caplog.records
    relocate(tracking)
    assert deliver_folder(tmp_path / "tracked", tracking) == 1


def test_every_column_is_mended_and_what_a_person_chose_stays(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    chosen = ["/data/elsewhere", "s3://bucket/mlruns/1", f"{tmp_path}/mlruns", "mlflow-artifacts:/mlruns/1"]
    for number, location in enumerate(chosen):
        client.create_experiment(f"chosen{number}", location)
    client.create_experiment("uri", f"file://{tmp_path}/mlruns/%C9%99%20b")
    client.create_logged_model(client.get_experiment_by_name("toy").experiment_id)
    execute(
        tmp_path / "mlflow.db",
        f"UPDATE model_versions SET storage_location = '{tmp_path}/mlruns/x/models/m-1/artifacts'",
        "INSERT INTO trace_tags (request_id, key, value) VALUES ('t', 'other', '/old/mlruns/x')",
        "INSERT INTO trace_tags (request_id, key, value)"
        f" VALUES ('t', 'mlflow.artifactLocation', '{tmp_path}/mlruns/x/traces')",
    )
    copy = brought(toy, tmp_path / "ə new")
    done = relocate(copy.recipe.tracking)
    assert done is not None
    database, root = tmp_path / "ə new" / "mlflow.db", f"{tmp_path}/ə new"
    assert done.rows == {
        "experiments.artifact_location": 3,
        "runs.artifact_uri": 1,
        "logged_models.artifact_location": 2,
        "model_versions.storage_location": 1,
        "trace_tags.value": 1,
    }
    experiments = values(database, "SELECT artifact_location FROM experiments WHERE name != 'Default'")
    encoded = f"file://{tmp_path}/%C9%99%20new/mlruns/%C9%99%20b"
    assert sorted(experiments) == sorted([*chosen, encoded, f"{root}/mlruns/toy"])
    for query in ("artifact_uri FROM runs", "storage_location FROM model_versions"):
        assert all(place.startswith(f"{root}/mlruns/") for place in values(database, f"SELECT {query}"))
    assert values(database, "SELECT value FROM trace_tags ORDER BY key") == [
        f"{root}/mlruns/x/traces",
        "/old/mlruns/x",
    ]


def test_the_database_as_it_was_is_kept_each_time(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    query = "SELECT artifact_uri FROM runs"
    former = values(tmp_path / "mlflow.db", query)
    copy = brought(toy, tmp_path / "copy")
    database = tmp_path / "copy" / "mlflow.db"
    for name in ("mlflow.db.before-relocate", "mlflow.db.before-relocate-2"):
        done = relocate(copy.recipe.tracking)
        assert done is not None
        assert done.backup == database.with_name(name)
        assert values(done.backup, query) == former
        shutil.copy(tmp_path / "mlflow.db", database)


def test_what_ran_in_a_folder_of_the_project_is_no_move_and_moves_with_it(toy: Toy, tmp_path: Path) -> None:
    """A program that opens the store from a folder below has its artifacts there."""
    push_newest(toy, ["phase1"])
    MlflowClient(toy.recipe.tracking.mlflow_uri).create_experiment("notes", f"{tmp_path}/notebooks/mlruns/2")
    assert relocate(toy.recipe.tracking) is None
    copy = brought(toy, tmp_path / "copy")
    relocate(copy.recipe.tracking)
    query = "SELECT artifact_location FROM experiments WHERE name = 'notes'"
    assert values(database_of(copy), query) == [f"{tmp_path}/copy/notebooks/mlruns/2"]


def test_a_link_to_the_project_is_no_move(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    (tmp_path / "link").symlink_to(tmp_path)
    linked = toy.with_({"tracking": {"mlflow_uri": f"sqlite:///{tmp_path}/link/mlflow.db"}})
    check_place(linked.recipe.tracking)
    assert relocate(linked.recipe.tracking) is None


def test_a_server_a_missing_file_and_a_locked_one_are_refused(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri, part in (("http://127.0.0.1:9", "a server"), (f"sqlite:///{tmp_path}/none.db", "no such file")):
        with refused(RegistryError, uri, part):
            relocate(toy.with_({"tracking": {"mlflow_uri": uri}}).recipe.tracking)
    monkeypatch.setattr(mlflow_place, "_SECONDS_OF_A_LOCK", 0.1)
    push_newest(toy, ["phase1"])
    copy = brought(toy, tmp_path / "copy")
    before = (tmp_path / "copy" / "mlflow.db").read_bytes()
    holder = sqlite3.connect(tmp_path / "copy" / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with refused(RegistryError, "locked", "another program is writing"):
        relocate(copy.recipe.tracking)
    holder.close()
    assert (tmp_path / "copy" / "mlflow.db").read_bytes() == before
    assert not list((tmp_path / "copy").glob("*before*"))


def test_a_store_in_wal_mode_is_mended_while_another_program_has_it_open(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    copy = brought(toy, tmp_path / "copy")
    holder = sqlite3.connect(tmp_path / "copy" / "mlflow.db")
    holder.execute("PRAGMA journal_mode = wal")
    holder.execute("UPDATE runs SET name = 'in the log'")
    holder.commit()
    done = relocate(copy.recipe.tracking)
    assert done is not None
    assert values(done.backup, "SELECT name FROM runs") == ["in the log"]
    assert holder.execute("SELECT artifact_uri FROM runs").fetchone()[0].startswith(f"{tmp_path}/copy/mlruns/")
    holder.close()


def test_the_command_says_what_it_changed_and_then_that_there_is_nothing_to_mend(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    folder = tmp_path / "copy"
    copy = brought(toy, folder).with_({"tracking": {"mlflow_uri": "sqlite:///mlflow.db"}})
    (folder / "params.yaml").write_text(yaml_text(copy.recipe.model_dump(mode="json")))
    code, _, errors = run_command(["registry", "pull", "models:/toybert@phase1", "pulled"], folder)
    assert (code, errors) == (
        1,
        f"error: sqlite:///mlflow.db keeps its artifacts in {tmp_path}/mlruns, this project is {folder}: "
        f"it was moved or copied; {REMEDY}\n",
    )
    code, out, errors = run_command(["registry", "relocate"], folder)
    assert (code, errors) == (0, "")
    assert out.splitlines() == [
        f"sqlite:///mlflow.db: from {tmp_path} to {folder}: experiments.artifact_location 2, runs.artifact_uri 1, "
        "logged_models.artifact_location 1, model_versions.storage_location 1",
        f"the database as it was: {folder}/mlflow.db.before-relocate",
    ]
    assert run_command(["registry", "relocate"], folder) == (0, "sqlite:///mlflow.db: nothing to mend\n", "")
    assert run_command(["registry", "pull", "models:/toybert@phase1", "pulled"], folder)[0] == 0


def test_a_database_that_came_alone_is_mended_and_its_artifacts_are_asked_for(toy: Toy, tmp_path: Path) -> None:
    push_newest(toy, ["phase1"])
    folder = tmp_path / "copy"
    copy = brought(toy, folder).with_({"tracking": {"mlflow_uri": "sqlite:///mlflow.db"}})
    shutil.rmtree(folder / "mlruns")
    (folder / "params.yaml").write_text(yaml_text(copy.recipe.model_dump(mode="json")))
    code, out, _ = run_command(["registry", "relocate"], folder)
    assert code == 0
    assert f"{folder}/mlruns: not there; copy it from {tmp_path}" in out.splitlines()[-1]
    code, _, errors = run_command(["registry", "pull", "models:/toybert@phase1", "pulled"], folder)
    assert code == 1
    assert f"its artifacts are not at {folder}/mlruns/" in errors
    assert len(errors.splitlines()) == 1


def test_a_store_outside_the_project_may_keep_its_artifacts_in_it(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So MLflow had it of a store at an absolute address."""
    push_newest(toy, ["phase1"])
    (tmp_path / "shared").mkdir()
    shared = toy.with_({"tracking": {"mlflow_uri": f"sqlite:///{tmp_path}/shared/mlflow.db"}})
    (tmp_path / "mlflow.db").rename(tmp_path / "shared" / "mlflow.db")
    check_place(shared.recipe.tracking)
    monkeypatch.chdir(tmp_path / "shared")
    with refused(RegistryError, REMEDY):
        check_place(shared.recipe.tracking)
    assert artifacts_of(shared, list_versions(shared.recipe.tracking, "toybert")[0]).is_dir()
