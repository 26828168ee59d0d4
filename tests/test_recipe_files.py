"""Recipes as files: put in place, kept, made anew, and made of the blocks that there were before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from refusals import refused

from azneobert.errors import RecipeError
from azneobert.recipe import FileSource, load_recipe
from azneobert.recipe_files import find_recipe, open_recipe, use, write_new
from azneobert.yaml_files import edit_yaml, read_yaml, write_yaml

ROOT = Path(__file__).parents[1]
PARAMS = Path("params.yaml")

pytestmark = pytest.mark.usefixtures("recipes")


def change(path: Path, **edits: object) -> None:
    content = edit_yaml(path)
    content.update(edits)
    write_yaml(path, content)


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*.yaml")}


def test_a_recipe_is_found_by_its_name_or_by_its_path() -> None:
    assert find_recipe("h200") == Path("recipes/h200.yaml")
    shutil.copy("recipes/h200.yaml", "mine.yaml")
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    assert open_recipe(None) == (PARAMS, load_recipe("recipes/sample.yaml"))


@pytest.mark.parametrize("name", ["h300", "template", "recipes/template.yaml", "../x.yaml", "", "recipes", "kept"])
def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with refused(RecipeError, "recipes/: no recipe ", "found h200, legal-28x768, legal, sample"):
        find_recipe(name)


def test_a_file_called_otherwise_than_its_recipe_is_refused() -> None:
    shutil.copy("recipes/h200.yaml", "recipes/other.yaml")
    with refused(RecipeError, "recipes/other.yaml: name: found h200; expected other"):
        use("other")
    assert load_recipe().name == "sample"


def test_using_a_recipe_puts_its_very_bytes_in_place() -> None:
    recipe, kept = use("h200")
    assert (recipe.name, kept) == ("h200", None)
    assert PARAMS.read_bytes() == Path("recipes/h200.yaml").read_bytes()


def test_a_changed_recipe_is_kept_when_another_is_used_and_comes_back() -> None:
    change(PARAMS, seed=7)
    changed = PARAMS.read_bytes()
    _, kept = use("h200")
    assert kept == Path("recipes/kept/sample-1.yaml")
    assert use(str(kept))[1] is None
    assert PARAMS.read_bytes() == changed
    change(PARAMS, seed=8)
    assert use("h200")[1] == Path("recipes/kept/sample-2.yaml")


def test_a_recipe_that_dvc_has_written_back_is_not_kept_for_its_spacing() -> None:
    write_yaml(PARAMS, read_yaml(PARAMS))  # without comments
    assert use("h200")[1] is None


def test_a_recipe_of_a_new_name_is_kept_under_that_name() -> None:
    change(PARAMS, name="mine")
    assert use("h200")[1] == Path("recipes/mine.yaml")
    assert use("mine")[0].name == "mine"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name: [", b"recipe: a\n", b"name: ../../x\nseed: 1\n"])
def test_what_is_no_recipe_is_kept_too(content: bytes) -> None:
    PARAMS.write_bytes(content)
    _, kept = use("sample")
    assert kept == Path("recipes/kept/unreadable-1.yaml")
    assert kept.read_bytes() == content


def test_a_recipe_that_is_not_whole_is_not_put_in_place() -> None:
    change(Path("recipes/h200.yaml"), seed="x")
    before = files()
    with refused(RecipeError, "recipes/h200.yaml: seed: "):
        use("h200")
    assert files() == before


def test_a_new_recipe_has_the_template_s_comments_and_what_it_was_given() -> None:
    sources = {"books": FileSource(path="corpus/my books", text_field="body.az", id_field=None)}
    sources["web-2"] = FileSource(path="corpus/web", sample_by="line")
    path = write_new("kitab", sources, {"topics": "corpus/topics"})
    recipe = load_recipe(path)
    assert (recipe.name, recipe.registry.name, recipe.finetuning.model) == ("kitab", "kitab", "models:/kitab@phase2")
    assert recipe.data.sources == sources
    assert {name: task.path for name, task in recipe.finetuning.files.items()} == {"topics": "corpus/topics"}
    template = Path("recipes/template.yaml").read_text(encoding="utf-8")
    comments = [line.split("#", 1)[1] for line in template.splitlines() if "#" in line]
    assert [comment for comment in comments if comment not in path.read_text(encoding="utf-8")] == []


def test_a_new_recipe_without_a_task_has_none() -> None:
    recipe = load_recipe(write_new("kitab", {"books": FileSource(path="corpus/books")}, {}))
    assert recipe.finetuning.files == {}


@pytest.mark.parametrize(
    ("name", "found"),
    [("sample", "is there already"), ("mine", "is there already"), ("My", "is no name here"), ("a b", "is no name")],
)
def test_a_name_that_is_taken_or_none_is_refused(name: str, found: str) -> None:
    change(PARAMS, name="mine")
    before = files()
    with refused(RecipeError, found):
        write_new(name, {"books": FileSource(path="corpus/books")}, {})
    assert files() == before
