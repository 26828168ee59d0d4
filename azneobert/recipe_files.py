"""The recipes of a project: params.yaml is the one that runs, recipes/ holds the others."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from azneobert.errors import RecipeError
from azneobert.recipe import PARAMS, FileSource, Recipe, load_recipe
from azneobert.settings import check_name, name_of
from azneobert.yaml_files import edit_yaml, read_yaml, write_yaml, yaml_text

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
        RecipeError: there is none, it is no recipe, or its file in recipes/ is called otherwise.
    """
    path = PARAMS if name is None else find_recipe(name)
    recipe = load_recipe(path)
    if path.parent == FOLDER and recipe.name != path.stem:
        raise RecipeError(f"{path}: name: found {recipe.name}; expected {path.stem}, as its file is called")
    return path, recipe


def use(name: str) -> tuple[Recipe, Path | None]:
    """Put a recipe in place as params.yaml; where the present one is in no file of recipes/, it is kept there.

    Returns the recipe, and the file where the former one is kept if it had to be.

    Raises:
        RecipeError: there is no such recipe, or it is not whole; nothing is changed then.
    """
    path, recipe = open_recipe(name)
    kept = None if not PARAMS.exists() or _is_kept(PARAMS) else _keep(PARAMS)
    _put(path.read_bytes(), PARAMS)
    return recipe, kept


def check_free(name: str) -> Path:
    """The file of a new recipe of this name.

    Raises:
        RecipeError: the name is none, or taken.
    """
    try:
        path = FOLDER / f"{check_name(name)}.yaml"
    except ValueError as error:
        raise RecipeError(f"{FOLDER}/: {error}") from None
    if path.exists() or (PARAMS.exists() and _name_in(PARAMS) == name):
        raise RecipeError(f"{path if path.exists() else PARAMS}: recipe {name} is there already; use another name")
    return path


def write_new(name: str, files: dict[str, FileSource], tasks: dict[str, str]) -> Path:
    """Write recipes/<name>.yaml: the template with its comments, and these local collections and labelled tasks.

    Raises:
        RecipeError: the name is none, or taken, or the template is not there.
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
    if tasks:  # those of data are filled, so that the next place is that of finetuning
        text = _filled(text, "  files: {}", {"files": {key: {"path": place} for key, place in tasks.items()}})
    _put(text.encode(), path)
    return path


def migrate() -> list[Path]:
    """Make a file of each block of a params.yaml as it was before, and put the one that it chose in place.

    Comments are kept, and so is the former file. A recipe whose name is taken by another is kept beside.

    Raises:
        RecipeError: params.yaml has no blocks, or one of them is no recipe; nothing is written then.
    """
    try:
        document = read_yaml(PARAMS)
    except FileNotFoundError:
        raise RecipeError(f"{PARAMS}: no such file; run this in the project's folder") from None
    except ValueError as error:
        raise RecipeError(f"{PARAMS}: {error}") from None
    blocks = [key for key, value in document.items() if key != "recipe" and isinstance(value, dict)]
    if document.get("recipe") not in blocks:
        raise RecipeError(f"{PARAMS}: no block that `recipe:` names; it is a recipe by itself, or none")
    partial = FOLDER / ".migrated"
    partial.mkdir(parents=True, exist_ok=True)
    written = []
    try:
        for name in blocks:
            file = partial / f"{name}.yaml"
            file.write_text(_block_text(PARAMS.read_text(encoding="utf-8"), blocks, name), encoding="utf-8")
            write_yaml(file, _migrated(edit_yaml(file), name))
            load_recipe(file)
        chosen = (partial / f"{document['recipe']}.yaml").read_bytes()
        for name in blocks:
            file = partial / f"{name}.yaml"
            written.append(_place_of_its_own(name, file))
            file.replace(written[-1])
    except RecipeError as error:
        raise RecipeError(str(error).replace(f"{partial}/", f"{PARAMS}, block ")) from None
    finally:
        for leftover in partial.iterdir():
            leftover.unlink()
        partial.rmdir()
    written.append(_free(KEPT / "params.yaml"))
    PARAMS.replace(written[-1])
    _put(chosen, PARAMS)
    return written


def _filled(text: str, place: str, content: dict[str, Any]) -> str:
    """The template with the first place of its kind filled."""
    assert place in text, place
    return text.replace(place, textwrap.indent(yaml_text(content), "  ").rstrip("\n"), 1)


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
    target = _place_of_its_own(_name_in(path), path)
    _put(path.read_bytes(), target)
    return target


def _place_of_its_own(name: str | None, file: Path) -> Path:
    """Where a recipe is put: in recipes/ under its name, or beside, where another has that name."""
    target = FOLDER / f"{name or 'unreadable'}.yaml"
    if name is not None and (not target.exists() or _same(target, file)):
        return target
    return _free(KEPT / target.name)


def _free(path: Path) -> Path:
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


def _put(content: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)


def _block_text(text: str, blocks: list[str], name: str) -> str:
    """The lines of one block, the comment above it included, as a document of its own."""
    lines = text.splitlines()
    heads = {number for number, line in enumerate(lines) if line.split(":")[0].strip("'\"") in [*blocks, "recipe"]}
    start = next(n for n in sorted(heads) if lines[n].split(":")[0].strip("'\"") == name)
    end = min((n for n in heads if n > start), default=len(lines))
    while end < len(lines) and lines[end - 1].startswith("#"):  # what stands above the next block belongs to it
        end -= 1
    above = start
    while above and lines[above - 1].startswith("#"):
        above -= 1
    body = lines[start + 1 : end]
    indent = min((len(line) - len(line.lstrip()) for line in body if line.strip()), default=0)
    return "\n".join([*lines[above:start], *(line[indent:] for line in body), ""])


def _migrated(block: Any, name: str) -> Any:
    """A block of before as a recipe of today; what it lacks is for `load_recipe` to say."""
    block.insert(0, "name", name)
    if data := block.get("data"):
        _migrate_data(data)
    if tokenizer := block.get("tokenizer"):
        _migrate_tokenizer(tokenizer)
    tuning = block.get("finetuning")
    if tuning and (task := tuning.pop("task", None)):
        tuning.insert(1, "files", {name_of(Path(task).name): {"path": task}})
    return block


def _migrate_data(data: Any) -> None:
    sources = data.pop("sources", {})
    files, hub = type(data)(), type(data)()
    for name, source in sources.items():
        target = files if "path" in source else hub
        if "path" in source:
            source.pop("revision", None)  # DVC sees the files themselves now
        target[name] = source
        if name in sources.ca.items:
            target.ca.items[name] = sources.ca.items[name]
    data.insert(0, "files", files)
    data.insert(1, "hub", hub)
    data.setdefault("order", list(sources))


def _migrate_tokenizer(tokenizer: Any) -> None:
    algorithm, path = tokenizer.pop("algorithm", None), tokenizer.pop("path", None)
    settings = {key: tokenizer.pop(key) for key in ("lowercase", "max_characters") if key in tokenizer}
    for former, today in (("algorithm", "trained"), ("path", "imported")):  # their comments go along
        if former in tokenizer.ca.items:
            tokenizer.ca.items[today] = tokenizer.ca.items.pop(former)
    imported = algorithm == "import"
    tokenizer["trained"] = {} if imported else {algorithm: settings}
    tokenizer["imported"] = {"published": {"path": path}} if imported else {}
