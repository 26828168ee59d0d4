"""`azneobert cache`: whether the objects in DVC's cache have the content that their names say.

An output is a hard link to an object of the cache, so damage to one damages the other. Then `dvc checkout` repairs
nothing, and `dvc repro -f` makes the output anew but leaves the object as it is.
"""

from __future__ import annotations

from pathlib import Path

import typer
from rich.progress import track

from azneobert.cli.console import complaints, console
from azneobert.cli.recipe import RecipeName
from azneobert.dvc_files import (
    cache_folder,
    cached_object,
    damaged_objects,
    objects_of,
    outputs_of,
    set_object_aside,
)
from azneobert.errors import DataError
from azneobert.recipe_files import open_recipe

app = typer.Typer(no_args_is_help=True, help="DVC's cache, of which the outputs are links.")


@app.callback()  # without a callback, the only command would become the group itself
def cache() -> None:
    """DVC's cache, of which the outputs are links."""


@app.command()
def check(name: RecipeName = None) -> None:
    """Read every byte that a recipe's outputs stand on; set damaged objects aside, and say what brings them again."""
    _, recipe = open_recipe(name)
    outputs, folder = outputs_of(recipe.name), cache_folder()
    lists = [output.md5 for output in outputs if output.md5.endswith(".dir")]
    damaged = _set_aside(folder, lists)  # the lists first: a damaged list names no files
    needed = {output: objects_of(output, cached_object(folder, output.md5)) for output in outputs}
    files = sorted({md5 for objects in needed.values() for md5 in objects.values()} - set(lists))
    damaged |= _set_aside(folder, files)
    for output, objects in needed.items():
        if bad := [md5 for md5 in objects.values() if md5 in damaged]:
            for path, md5 in objects.items():
                _unlink(Path(path), damaged.get(md5))
            complaints.print(
                f"{output.path}: damaged; {damaged[bad[0]]} is what was there. Bring it back with `azneobert remote "
                f"pull {output.path}`, or make it anew with `dvc repro {output.stage.split('@')[0]}`"
            )
    count = len(files) + len(lists)
    if damaged:
        raise DataError(f"{folder}: {len(damaged):,} of {count:,} objects were damaged; see the lines above")
    console.print(f"{folder}: what the outputs of recipe {recipe.name} stand on is whole, {count:,} objects")


def _set_aside(folder: Path, hashes: list[str]) -> dict[str, Path]:
    """Read objects, and set damaged ones aside. Returns where those are now, by md5."""
    found = damaged_objects(folder, hashes)
    shown = track(found, "reading", len(hashes), console=console, disable=not console.is_terminal)
    return {md5: set_object_aside(folder, md5) for md5, is_damaged in shown if is_damaged}


def _unlink(place: Path, aside: Path | None) -> None:
    """Remove an output that links to a damaged object: DVC would take it for a change of ours, and keep it."""
    if aside is not None and (place.samefile(aside) if place.exists() else place.is_symlink()):
        place.unlink()
