"""`azneobert recipe`: the recipes of this project, and which of them runs."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from azneobert.cli.console import console
from azneobert.course import divide_batch
from azneobert.errors import DataError, RecipeError
from azneobert.recipe import PARAMS, PHASES, FileSource, PhaseName, Recipe, load_recipe
from azneobert.recipe_files import FOLDER, check_free, open_recipe, recipe_paths, use, write_new

RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="A recipe of recipes/, or a file; default: the one that runs.")
]

app = typer.Typer(no_args_is_help=True, help="Recipes: params.yaml is the one that runs, recipes/ holds the others.")


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="A recipe of recipes/, or a file; default: params.yaml.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Say nothing of sources that are not here, as in a clone.")
    ] = False,
) -> None:
    """Check a recipe and its sources before any work starts, and show what it comes to."""
    from azneobert.model.size import count_parameters

    path, recipe = open_recipe(name)
    _check_inputs(path, recipe, allow_missing)
    console.print(
        f"recipe {recipe.name}: {count_parameters(recipe.model):,} parameters, {len(recipe.data.order)} collections"
    )
    for phase in PHASES:
        console.print(_phase_line(recipe, phase))
        for line in _memory_lines(recipe, phase):
            console.print(line)


@app.command(name="list")
def list_recipes() -> None:
    """Show the recipes of recipes/, and which of them runs."""
    from azneobert.model.size import count_parameters

    running, wrong = None, []
    try:
        running = load_recipe()
    except RecipeError as error:
        wrong.append(str(error))
    table = Table("recipe", "", *(Column(title, justify="right") for title in ("collections", "parameters", "tokens")))
    for path in recipe_paths():
        try:
            _, recipe = open_recipe(path.stem)
        except RecipeError as error:
            wrong.append(str(error))
            continue
        state = "runs" if recipe == running else "runs, changed" if running and recipe.name == running.name else ""
        tokens = sum(_tokens(recipe, phase) for phase in PHASES)
        table.add_row(
            recipe.name, state, f"{len(recipe.data.order)}", f"{count_parameters(recipe.model):,}", f"{tokens:,}"
        )
    console.print(table)
    if running and not (FOLDER / f"{running.name}.yaml").exists():
        console.print(f"{PARAMS}: recipe {running.name} runs, which is in no file of {FOLDER}/")
    if wrong:
        raise RecipeError("; ".join(wrong))


@app.command(name="use")
def use_recipe(name: Annotated[str, typer.Argument(help="A recipe of recipes/, or a file.")]) -> None:
    """Put a recipe in place as the one that runs; the present one is kept."""
    recipe, kept = use(name)
    if kept is not None:
        console.print(f"the former {PARAMS} was in no file of {FOLDER}/: kept as {kept}")
    console.print(f"{PARAMS}: recipe {recipe.name} runs from now on; `make repro` runs it")


@app.command(name="new")
def new_recipe(
    name: Annotated[str, typer.Argument(help="What it is called: lower-case letters, digits, _ and -.")],
    folder: Annotated[
        Path | None, typer.Option("--from", help="A folder of collections: each folder or file in it is one.")
    ] = None,
) -> None:
    """Write a commented recipe of its own, with the collections and labelled tasks that a folder holds."""
    from azneobert.data.discover import Found, discover

    check_free(name)
    found = Found() if folder is None else discover(folder)
    path = write_new(name, found.files, found.tasks, found.language)
    for collection, source in found.files.items():
        console.print(f"  {collection}: {source.path}, {_how(source)}")
    for task, place in found.tasks.items():
        console.print(f"  {task}: {place}, a labelled task")
    if found.files:
        console.print(f"  language: {found.language}, by the letters of the first texts")
    for line in found.passed_over:
        console.print(f"  passed over: {line}")
    if not found.files:
        console.print(f"{path}: written; name its collections under data.files or data.hub")
        return
    load_recipe(path)
    console.print(f"{path}: written, {len(found.files)} collections; look through it, then")
    inside = [shlex.quote(place) for place in _places(found.files, found.tasks) if _unknown_to_git(place)]
    if inside:
        console.print(f"  dvc add {' '.join(inside)}   # so that a clone can have them")
    console.print(f"  azneobert recipe use {name}")
    console.print("  make repro")


@app.command(name="migrate")
def migrate_blocks() -> None:
    """Make a file of each block of a params.yaml of before; comments and outputs stay valid."""
    from azneobert.migration import migrate

    written = migrate()
    for path in written[:-1]:
        console.print(f"{path}: written")
    console.print(f"{PARAMS}: recipe {load_recipe().name} runs; the former file is {written[-1]}")


def _how(source: FileSource) -> str:
    if source.model_fields_set & {"text_field"}:
        return f"text in {source.text_field}, id {f'in {source.id_field}' if source.id_field else 'by file and line'}"
    return f"plain text, a document is a {'file' if source.sample_by == 'document' else source.sample_by}"


def _places(files: dict[str, FileSource], tasks: dict[str, str]) -> list[str]:
    """The places inside the project; DVC adds nothing from elsewhere."""
    places = [*(source.path for source in files.values()), *tasks.values()]
    here = Path.cwd()
    return [place for place in places if Path(place).resolve().is_relative_to(here)]


def _unknown_to_git(place: str) -> bool:
    """Whether neither git nor DVC has it, as far as can be told."""
    if Path(f"{place}.dvc").exists():
        return False
    try:
        done = subprocess.run(["git", "ls-files", "--", place], capture_output=True, text=True, check=False)
    except OSError:
        return True
    return not done.stdout.strip()


def _check_inputs(path: Path, recipe: Recipe, allow_missing: bool) -> None:
    """Check that every file that the recipe names is there: sources, a tokenizer, labelled tasks."""
    from azneobert.data.local_files import source_files

    if allow_missing:
        return
    for name, source in recipe.data.files.items():  # a hub data set is asked for when it is read
        try:
            source_files(Path(source.path))
        except DataError as error:
            raise RecipeError(f"{path}: data.files.{name}.path: {error}{_in_a_clone(source.path)}") from None
    others = {f"tokenizer.imported.{name}": each.path for name, each in recipe.tokenizer.imported.items()}
    others |= {f"finetuning.files.{name}": each.path for name, each in recipe.finetuning.files.items()}
    for key, place in others.items():
        if not Path(place).exists():
            raise RecipeError(f"{path}: {key}.path: {place} is not there; put it there{_in_a_clone(place)}")


def _in_a_clone(place: str) -> str:
    """What to add if a source may be missing because this is a clone: DVC knows the outputs made from it."""
    if Path(place).exists() or not Path("dvc.lock").exists():
        return ""
    return (
        f", or bring it with `dvc pull {shlex.quote(place)}` if `dvc add` has it, or go on from what was made of it "
        "with `dvc repro --allow-missing`"
    )


def _phase_line(recipe: Recipe, name: PhaseName) -> str:
    phase = recipe.phase(name)
    processes, most = recipe.runtime.processes, recipe.runtime.max_micro_batch
    if most == "auto":
        divided = f"{processes} x {phase.global_batch // processes} rows, in micro-batches that fit"
    else:
        rows, accumulation = divide_batch(phase.global_batch, processes, most)
        divided = f"{processes} x {rows} rows x {accumulation} micro-steps"
    return (
        f"  {name}: {phase.steps:,} steps of {phase.global_batch:,} rows ({divided}) of {phase.sequence_length:,} "
        f"tokens: {_tokens(recipe, name):,} tokens"
    )


def _memory_lines(recipe: Recipe, name: PhaseName) -> Iterator[str]:
    """The predicted memory of a phase on each GPU, or with `auto` the predicted rows that cards can hold."""
    from azneobert.model.memory import CARDS, largest_that_fits, micro_batches, needs_on_gpus, room_of_card

    processes, most = recipe.runtime.processes, recipe.runtime.max_micro_batch
    batch = recipe.phase(name).global_batch
    for blocks, need in needs_on_gpus(recipe, name).items():
        if most == "auto":
            candidates = micro_batches(batch // processes)
            held = [largest_that_fits(need, candidates, room_of_card(card)) or "none" for card in CARDS]
            by_card = ", ".join(f"{card} GB {rows}" for card, rows in zip(CARDS, held, strict=True))
            yield f"    {blocks}: rows of a micro-batch that a GPU is predicted to hold: {by_card}"
        else:
            rows, _ = divide_batch(batch, processes, most)
            yield f"    {blocks}: a GPU is predicted to need {_binary(need.peak_bytes(rows))}"


def _binary(count: int) -> str:
    """A number of bytes in binary units, as for memory."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _tokens(recipe: Recipe, name: PhaseName) -> int:
    phase = recipe.phase(name)
    return phase.steps * phase.global_batch * phase.sequence_length
