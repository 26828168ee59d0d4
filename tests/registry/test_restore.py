"""An empty MLflow gets back what a clone has: runs with every point, versions of the same digests, aliases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from pushed import FIGURES, push_newest
from refusals import refused
from toy import Toy

from azneobert.errors import RegistryError
from azneobert.files import write_json
from azneobert.layout import Layout
from azneobert.mlflow_store import is_fresh_store
from azneobert.registry.corpus import count_collections
from azneobert.registry.pull import pull
from azneobert.registry.registered import Registered, read_registered, registered_version, write_registered
from azneobert.registry.restore import restore, restore_into_fresh_store
from azneobert.registry.versions import DIGEST_TAG, Version, find_version, list_versions
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.points import read_points
from azneobert.tracking.record import read_record, read_run_id, update_record


@pytest.fixture
def registered(toy: Toy) -> tuple[Toy, Layout, Version]:
    """A finished phase with what its stages leave for a clone, registered in the store that trained it."""
    layout = Layout(toy.folder.name, toy.folder.parent)
    for name in toy.recipe.data.order:
        write_json(layout.report(f"tokens/{name}"), {"train": {"documents": 8, "tokens": 200}})
    version = push_newest(toy, ["phase1"], counts=count_collections(layout, toy.recipe.data.order))
    layout.plots.mkdir()
    shutil.move(toy.folder / "phase1.png", layout.plots / "phase1.png")
    write_json(layout.report("evaluate/phase1"), FIGURES)
    write_registered(layout.registered, {"phase1": Registered("toybert", "phase1", version.tags[DIGEST_TAG])})
    return toy, layout, version


@pytest.fixture
def clone(registered: tuple[Toy, Layout, Version], empty_mlflow: Path) -> tuple[Toy, Layout]:
    """The same outputs beside an MLflow that has never recorded anything; no run in progress, which is no output."""
    toy, layout, _ = registered
    shutil.copy(empty_mlflow, toy.folder / "empty.db")
    shutil.rmtree(toy.folder / "running")
    return toy.with_({"tracking": {"mlflow_uri": f"sqlite:///{toy.folder}/empty.db"}}), layout


def run_of(toy: Toy, run_id: str) -> Run:
    return MlflowClient(toy.recipe.tracking.mlflow_uri).get_run(run_id)


def test_runs_curves_versions_and_aliases_come_back(
    registered: tuple[Toy, Layout, Version], clone: tuple[Toy, Layout], tmp_path: Path
) -> None:
    original, _, version = registered
    toy, layout = clone
    said = list(restore(toy.recipe, layout))
    assert [line.split(": ")[1].split(",")[0] for line in said] == ["restored", "restored"]

    back = find_version("models:/toybert@phase1", toy.recipe.tracking)
    former, run = run_of(original, version.run_id), run_of(toy, back.run_id)
    assert back.tags == version.tags
    assert (run.data.params, run.info.run_name) == (former.data.params, former.info.run_name)
    assert run.data.metrics == {k: v for k, v in former.data.metrics.items() if not k.startswith("system/")}
    for told in ("start_time", "end_time", "status"):
        assert getattr(run.info, told) == getattr(former.info, told)
    assert run.data.tags["azneobert.run"] == former.data.tags["azneobert.run"]
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    points = read_points(layout.finished("phase1"))
    assert history == [(p["step"], p["values"]["train/loss"]) for p in points if "train/loss" in p["values"]]
    attached = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"phase1.png", "recipe.yaml", "lineage.json"} <= attached
    assert (pull("models:/toybert@phase1", tmp_path / "pulled", toy.recipe.tracking) / "model.safetensors").is_file()


def test_what_is_there_already_is_left_as_it_is(clone: tuple[Toy, Layout]) -> None:
    toy, layout = clone
    list(restore(toy.recipe, layout))
    said = list(restore(toy.recipe, layout))
    assert [line.split(": ")[1].split(",")[0] for line in said] == ["there already", "there already"]
    assert len(MlflowClient(toy.recipe.tracking.mlflow_uri).search_runs(["1"])) == 1
    assert len(list_versions(toy.recipe.tracking, "toybert")) == 1


def test_a_restore_that_was_killed_goes_on_with_its_run(
    clone: tuple[Toy, Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, layout = clone
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RegistryError, match="killed"):
            list(restore(toy.recipe, layout))
    list(restore(toy.recipe, layout))
    runs = MlflowClient(toy.recipe.tracking.mlflow_uri).search_runs(["1"])
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert runs[0].data.metrics["train/loss"] == read_points(layout.finished("phase1"))[-2]["values"]["train/loss"]


def test_an_alias_that_has_another_version_stays_there(clone: tuple[Toy, Layout]) -> None:
    toy, layout = clone
    newer = push_newest_of_output(toy, layout, ["phase1"])
    said = list(restore(toy.recipe, layout))
    assert "not @phase1, which is taken" in said[-1]
    assert find_version("models:/toybert@phase1", toy.recipe.tracking) == newer


def push_newest_of_output(toy: Toy, layout: Layout, aliases: list[str]) -> Version:
    from azneobert.registry.push import push

    figures = FIGURES | {"eval/loss": 1.0}
    return push(layout.finished("phase1") / "checkpoint", toy.recipe, figures, [], aliases)


def test_other_content_than_was_registered_is_refused(clone: tuple[Toy, Layout]) -> None:
    toy, layout = clone
    write_json(layout.report("evaluate/phase1"), FIGURES | {"eval/loss": 5.0})
    with refused(RegistryError, "phase1/checkpoint", "another version", "was registered", "`dvc repro register`"):
        list(restore(toy.recipe, layout))
    assert list_versions(toy.recipe.tracking, "toybert") == []


def test_a_fresh_store_is_filled_and_one_that_people_have_used_is_not(clone: tuple[Toy, Layout]) -> None:
    toy, layout = clone
    assert is_fresh_store(toy.recipe.tracking)
    assert len(list(restore_into_fresh_store(toy.recipe, layout))) == 2
    MlflowClient(toy.recipe.tracking.mlflow_uri).delete_registered_model("toybert")
    assert list(restore_into_fresh_store(toy.recipe, layout)) == [], "who has removed a version has meant it"


def test_nothing_pulled_is_one_line(toy: Toy, tmp_path: Path) -> None:
    with refused(RegistryError, "nothing", "no finished run", "`azneobert remote pull`"):
        list(restore(toy.recipe, Layout("nothing", tmp_path)))


def test_a_folder_finds_its_run_in_each_store_that_it_has_been_delivered_to(toy: Toy, empty_mlflow: Path) -> None:
    folder = toy.run().tracking
    first = read_run_id(folder)
    shutil.copy(empty_mlflow, toy.folder / "other.db")
    other = toy.with_({"tracking": {"mlflow_uri": f"sqlite:///{toy.folder}/other.db"}})
    deliver_folder(folder, other.recipe.tracking)
    second = read_run_id(folder)
    assert second != first
    deliver_folder(folder, toy.recipe.tracking)
    assert read_run_id(folder) == first, "no third run"
    record = read_record(folder)
    assert record is not None
    assert record.settled
    update_record(folder, run_id=None)  # as after a kill between making the run and noting it
    deliver_folder(folder, toy.recipe.tracking)
    assert read_run_id(folder) == first


def test_the_pipeline_s_alias_means_the_version_that_it_registered(registered: tuple[Toy, Layout, Version]) -> None:
    toy, layout, version = registered
    (toy.folder / "phase1.png").write_bytes(b"")
    newer = push_newest(toy, ["phase1"], FIGURES | {"eval/loss": 1.0})
    assert newer.number != version.number
    mine = read_registered(layout.registered)
    assert registered_version("models:/toybert@phase1", mine, toy.recipe.tracking) == version.uri
    assert registered_version("models:/toybert@champion", mine, toy.recipe.tracking) == "models:/toybert@champion"
    gone = {"phase1": Registered("toybert", "phase1", "0" * 64)}
    with refused(RegistryError, "models:/toybert@phase1", "not in", "`azneobert registry restore`"):
        registered_version("models:/toybert@phase1", gone, toy.recipe.tracking)


@pytest.mark.parametrize("content", ["", "[]", '{"phase1": 1}', '{"phase1": {"model": "a"}}', "[" * 100_000])
def test_a_damaged_note_of_what_was_registered_is_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "registered.json"
    with refused(RegistryError, "registered.json", "no such file", "`dvc repro register`"):
        read_registered(file)
    file.write_text(content)
    with refused(RegistryError, "registered.json", "damaged", "`dvc repro -f -s register`"):
        read_registered(file)
