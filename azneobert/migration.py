"""Turns an older params.yaml, with a block for each recipe, into a file for each recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from azneobert.data.languages import find_language
from azneobert.errors import RecipeError
from azneobert.files import write_whole
from azneobert.recipe import PARAMS, load_recipe
from azneobert.recipe_files import FOLDER, KEPT, free, place_of_its_own
from azneobert.settings import check_name, name_of
from azneobert.yaml_files import edit_yaml, read_yaml, write_yaml

_SHARES = {"min_latin": "min_share", "min_schwa": "min_must_share"}  # what the thresholds were called


def migrate() -> list[Path]:
    """Make a file of each block of an older params.yaml, and put the recipe that it chose in place.

    Comments are kept, and so is the former file. A recipe whose name another one has goes to recipes/kept/.

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
        raise RecipeError(f"{PARAMS}: no block that `recipe:` names; expected one, or nothing to migrate")
    for name in blocks:  # they become names of files
        try:
            check_name(name)
        except ValueError as error:
            raise RecipeError(f"{PARAMS}: {error}") from None
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
            written.append(place_of_its_own(name, file))
            file.replace(written[-1])
    except RecipeError as error:
        raise RecipeError(str(error).replace(f"{partial}/", f"{PARAMS}, block ")) from None
    finally:
        for leftover in partial.iterdir():
            leftover.unlink()
        partial.rmdir()
    written.append(free(KEPT / "params.yaml"))
    PARAMS.replace(written[-1])
    write_whole(PARAMS, chosen)
    return written


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
    """An older block as a recipe of today; `load_recipe` reports what it lacks."""
    block.insert(0, "name", name)
    if data := block.get("data"):
        _migrate_data(data)
        _migrate_cleaning(data.get("cleaning") or {})
    if tokenizer := block.get("tokenizer"):
        _migrate_tokenizer(tokenizer)
    tuning = block.get("finetuning")
    if tuning and (task := tuning.pop("task", None)):
        tuning.insert(1, "files", {name_of(Path(task).name): {"path": task}})
    if tuning:
        tuning.setdefault("hub", {})
        tuning.setdefault("patience", tuning.get("epochs", 1))  # before, the last epoch was taken
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


def _migrate_cleaning(cleaning: Any) -> None:
    """The two thresholds of Azerbaijani are a part of the language now; changed ones make the language a block."""
    own = find_language("azeri_latin")
    assert own is not None
    shares = {key: cleaning.pop(former, None) for former, key in _SHARES.items()}
    changed = {key: share for key, share in shares.items() if share is not None and share != getattr(own, key)}
    language = own.model_copy(update=changed | {"name": "azeri_latin_changed"}).model_dump() if changed else own.name
    cleaning.insert(1, "language", language)


def _migrate_tokenizer(tokenizer: Any) -> None:
    algorithm, path = tokenizer.pop("algorithm", None), tokenizer.pop("path", None)
    settings = {key: tokenizer.pop(key) for key in ("lowercase", "max_characters") if key in tokenizer}
    for former, today in (("algorithm", "trained"), ("path", "imported")):  # their comments go along
        if former in tokenizer.ca.items:
            tokenizer.ca.items[today] = tokenizer.ca.items.pop(former)
    imported = algorithm == "import"
    tokenizer["trained"] = {} if imported else {algorithm: settings}
    tokenizer["imported"] = {"published": {"path": path}} if imported else {}
