"""The recipes of a project: params.yaml is the one that runs, recipes/ holds the others."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from azneobert.errors import RecipeError
from azneobert.files import write_whole
from azneobert.language import LanguageName
from azneobert.recipe import PARAMS, FileSource, Recipe, load_recipe
from azneobert.settings import check_name
from azneobert.yaml_files import read_yaml, yaml_text

FOLDER = Path("recipes")
TEMPLATE = FOLDER / "template.yaml"
KEPT = FOLDER / "kept"


def recipe_paths() -> list[Path]:
    """The files in recipes/, the template left out."""
    return sorted(path for path in FOLDER.glob("*.yaml") if path != TEMPLATE)


def find_recipe(name: str) -> Path:
    """The file of a recipe: in recipes/ by its name, or the path of a file.

    Raises:
        RecipeError: there is no such recipe; the message names those that there are.
    """
    path = FOLDER / f"{name}.yaml"
    if path.is_file() and path != TEMPLATE:
        return path
    if name.endswith(".yaml") and Path(name).is_file() and Path(name) != TEMPLATE:
        return Path(name)
    known = ", ".join(path.stem for path in recipe_paths()) or "none"
    raise RecipeError(f"{FOLDER}/: no recipe {name!r}, found {known}; use one of them, or the path of a .yaml file")


def open_recipe(name: str | None) -> tuple[Path, Recipe]:
    """The file and the content of a recipe by its name or path; without one, of the recipe that runs.

    Raises:
        RecipeError: there is none, it is no recipe, or its file in recipes/ has another name.
    """
    path = PARAMS if name is None else find_recipe(name)
    recipe = load_recipe(path)
    if path.parent == FOLDER and recipe.name != path.stem:
        raise RecipeError(f"{path}: name: found {recipe.name}; expected {path.stem}, as its file is called")
    return path, recipe


def use(name: str) -> tuple[Recipe, Path | None]:
    """Put a recipe in place as params.yaml. If no file of recipes/ holds the present one, it is kept there.

    Returns the recipe, and the file where the former one is kept if it had to be.

    Raises:
        RecipeError: there is no such recipe, or it is not whole; nothing is changed then.
    """
    path, recipe = open_recipe(name)
    kept = None if not PARAMS.exists() or _is_kept(PARAMS) else _keep(PARAMS)
    write_whole(PARAMS, path.read_bytes())
    return recipe, kept


def check_free(name: str) -> Path:
    """The file of a new recipe of this name.

    Raises:
        RecipeError: the name is not valid, or is taken.
    """
    try:
        path = FOLDER / f"{check_name(name)}.yaml"
    except ValueError as error:
        raise RecipeError(f"{FOLDER}/: {error}") from None
    if path.exists() or (PARAMS.exists() and _name_in(PARAMS) == name):
        raise RecipeError(f"{path if path.exists() else PARAMS}: recipe {name} is there already; use another name")
    return path


def write_new(
    name: str, files: dict[str, FileSource], tasks: dict[str, str], language: LanguageName = "azeri_latin"
) -> Path:
    """Write recipes/<name>.yaml: the template with its comments, these local collections, labelled tasks and language.

    Raises:
        RecipeError: the name is not valid or is taken, or the template is not there.
    """
    path = check_free(name)
    if not TEMPLATE.is_file():
        raise RecipeError(f"{TEMPLATE}: no such file; run this in the project's folder")
    text = TEMPLATE.read_text(encoding="utf-8")
    sources = {key: {"path": each.path} | each.model_dump(exclude_defaults=True) for key, each in files.items()}
    text = text.replace("name: template #", f"name: {name} #").replace("models:/template@", f"models:/{name}@")
    if sources:
        text = _filled(text, "  files: {}", {"files": sources})
        text = _filled(text, "  order: []", {"order": list(sources)})
    text = _filled(text, "    language: azeri_latin", {"language": language}, indent=4)
    if tasks:  # those of data are filled, so that the next place is that of finetuning
        text = _filled(text, "  files: {}", {"files": {key: {"path": place} for key, place in tasks.items()}})
    write_whole(path, text.encode())
    return path


def _filled(text: str, place: str, content: dict[str, Any], indent: int = 2) -> str:
    """The template with the first occurrence of `place` filled."""
    assert place in text, place
    return text.replace(place, textwrap.indent(yaml_text(content), " " * indent).rstrip("\n"), 1)


def _is_kept(path: Path) -> bool:
    """Whether a file in recipes/ has the same content; comments and spacing apart, which DVC changes."""
    known = [*recipe_paths(), *KEPT.glob("*.yaml")]
    return any(file.read_bytes() == path.read_bytes() or _same(file, path) for file in known)


def _same(one: Path, other: Path) -> bool:
    try:
        return read_yaml(one) == read_yaml(other)
    except ValueError:
        return False


def _keep(path: Path) -> Path:
    target = place_of_its_own(_name_in(path), path)
    write_whole(target, path.read_bytes())
    return target


def place_of_its_own(name: str | None, file: Path) -> Path:
    """Where a recipe is put: in recipes/ under its name, or in recipes/kept/ if another has that name."""
    target = FOLDER / f"{name or 'unreadable'}.yaml"
    if name is not None and (not target.exists() or _same(target, file)):
        return target
    return free(KEPT / target.name)


def free(path: Path) -> Path:
    """The path with the first number that no file has yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while (target := path.with_name(f"{path.stem}-{number}.yaml")).exists():
        number += 1
    return target


def _name_in(path: Path) -> str | None:
    """The name that a file gives its recipe, if it is one."""
    try:
        return check_name(str(read_yaml(path).get("name", "")))
    except ValueError:
        return None
