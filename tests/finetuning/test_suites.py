"""A suite file is whole, or what is wrong with it is one line with its key."""

import tomllib

import pytest
from refusals import refused
from toy import ROOT

from azneobert.errors import DataError
from azneobert.finetuning.reading import read_task
from azneobert.finetuning.suites import load_suite
from azneobert.recipe import load_recipe
from azneobert.task_settings import TaskFiles, TaskOfHub

TUNING = "tuning: {epochs: 1, patience: 1, batch_size: 8, learning_rate: 1.0e-3, max_length: 16, seeds: [1]}\n"


@pytest.fixture
def suite(tmp_path):
    def write(tasks: str, tuning: str = TUNING) -> str:
        (tmp_path / "own.yaml").write_text(f"{tuning}{tasks}\n")
        return str(tmp_path / "own.yaml")

    return write


def test_paths_of_a_suite_of_ones_own_start_at_its_folder_and_the_order_stays(suite, tmp_path):
    loaded = load_suite(suite("tasks: {b: {path: there}, a: {dataset: some/set, kind: pairs}, c: {path: /abs}}"))
    assert loaded.name == "own"
    assert loaded.tuning.seeds == (1,)
    assert loaded.tasks == {
        "b": TaskFiles(path=str(tmp_path / "there")),
        "a": TaskOfHub(dataset="some/set", kind="pairs"),
        "c": TaskFiles(path="/abs"),
    }
    assert list(loaded.tasks) == ["b", "a", "c"]


def test_the_sample_suite_has_its_tasks_in_the_projects_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded = load_suite("sample")
    tasks = [read_task(name, settings) for name, settings in loaded.tasks.items()]
    assert [task.kind for task in tasks] == ["classification", "tokens"]


def test_the_legal_suite_has_the_tasks_of_its_recipe_and_trains_as_it_does():
    loaded, recipe = load_suite("legal"), load_recipe(ROOT / "recipes" / "legal.yaml")
    assert list(loaded.tasks) == ["codes", "punctuation", "capitals"]
    assert recipe.finetuning.tasks == {name: loaded.tasks[name] for name in ("codes", "punctuation")}
    assert loaded.tuning.model_dump() == recipe.finetuning.model_dump(exclude={"model", "files", "hub"})


def test_the_azerbaijani_suite_names_public_sets_of_the_hub():
    loaded = load_suite("azerbaijani")
    assert list(loaded.tasks) == ["sib200", "wikiann", "massive", "belebele", "ud_pos", "sentiment"]
    assert all(isinstance(task, TaskOfHub) for task in loaded.tasks.values())


@pytest.mark.parametrize(
    ("tasks", "parts"),
    [
        ("tasks: {}", ["tasks: "]),
        ("tasks: {A: {path: x}}", ["tasks.A", "lower-case"]),
        ("tasks: {a: {kind: tokens}}", ["tasks.a: expected `path`", "or `dataset`"]),
        ("tasks: {a: {path: x, dataset: y}}", ["tasks.a: `path`", "expected `dataset`"]),
        ("tasks: {a: {path: x, kind: token}}", ["tasks.a: kind: ", "found 'token'"]),
        ("tasks: {a: {path: x, lable_field: y}}", ["tasks.a: lable_field: unknown key"]),
        ("tasks: [a]", ["tasks: ", "dictionary"]),
        ("tasks: {a: {path: x}", ["not YAML"]),
    ],
)
def test_a_task_that_is_none_is_refused_by_its_key(suite, tasks, parts):
    file = suite(tasks)
    with refused(DataError, f"{file}: ", *parts):
        load_suite(file)


def test_tuning_out_of_bounds_is_refused_by_its_key(suite):
    file = suite("tasks: {a: {path: x}}", TUNING.replace("epochs: 1", "epochs: 0"))
    with refused(DataError, f"{file}: tuning.epochs: ", "greater than 0", "found 0"):
        load_suite(file)


def test_an_unknown_suite_is_refused_with_those_that_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(DataError, "smaple: no such suite", "azerbaijani, legal, sample", ".yaml"):
        load_suite("smaple")
    with refused(DataError, "missing.yaml: no such suite"):
        load_suite("missing.yaml")


def test_suites_are_part_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["package-data"]["azneobert"] == ["suites/*.yaml"]
