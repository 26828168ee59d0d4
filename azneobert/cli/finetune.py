"""`azneobert finetune` and `azneobert predict`: an encoder becomes a model for a task, and the model is used."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Column, Table

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.cli.registry import TrackingUri, bar_of, restore_if_fresh, store_of
from azneobert.errors import RecipeError
from azneobert.layout import Layout
from azneobert.recipe import MODEL_NAME, Recipe
from azneobert.settings import first_error, name_of
from azneobert.task_settings import AnyTask, TaskFiles, TaskKind, TaskOfHub, TuningSettings

# Without a recipe: what suits an encoder of base size and some thousand examples.
_USUAL = {"epochs": 5, "patience": 2, "batch_size": 32, "learning_rate": 5e-5, "max_length": 256, "seeds": (1, 2, 3)}


def finetune(
    task: Annotated[
        str,
        typer.Argument(
            help="A task of the recipe; or a file or folder of examples; or a data set of the Hugging Face hub."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="models:/NAME@ALIAS, a folder, or a hub name; default: the recipe's."),
    ] = None,
    kind: Annotated[TaskKind | None, typer.Option(help="What the examples are; default: classification.")] = None,
    text_field: Annotated[list[str] | None, typer.Option(help="The field with the text; several are joined.")] = None,
    pair_field: Annotated[str | None, typer.Option(help="The field with the second text.")] = None,
    choices_field: Annotated[
        list[str] | None, typer.Option(help="The field with the answers, or one for each answer.")
    ] = None,
    label_field: Annotated[str | None, typer.Option(help="The field with the label, tags or score.")] = None,
    labels: Annotated[str | None, typer.Option(help="All labels in order, with commas between them.")] = None,
    first_label: Annotated[int | None, typer.Option(help="The number of the first answer, 0 or 1.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration of a data set of the hub.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most; the best one is kept.")] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    max_length: Annotated[int | None, typer.Option(help="In tokens; a longer text is cut, or read in windows.")] = None,
    seeds: Annotated[str | None, typer.Option(help="As 1,2,3: a training each.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better one before it stops.")] = None,
    output: Annotated[Path | None, typer.Option(help="A folder; default: finetuned/TASK.")] = None,
    register: Annotated[
        str | None, typer.Option("--register-as", help="The registered model's name; default: the encoder's, and TASK.")
    ] = None,
    no_register: Annotated[bool, typer.Option("--no-register", help="Leave the model in the folder alone.")] = False,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Fine-tune an encoder on a task, with several seeds and beside random weights, and register the best model."""
    tracking, recipe = store_of(name, tracking_uri)
    restore_if_fresh(recipe)
    encoder_name = model or (recipe.finetuning.model if recipe else None)
    if register and not re.match(MODEL_NAME, register):
        raise RecipeError(f"--register-as: found {register!r}; expected letters, digits, `.`, `_` and `-`")
    if encoder_name is None:
        raise RecipeError("--model: not given, and no recipe here names one; use --model models:/azneobert@champion")
    of_task = {
        "kind": kind,
        "text_field": _one_or_all(text_field),
        "pair_field": pair_field,
        "choices_field": _one_or_all(choices_field),
        "label_field": label_field,
        "labels": tuple(label.strip() for label in labels.split(",")) if labels else None,
        "first_label": first_label,
        "config": config,
    }
    of_tuning = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_length": max_length,
        "seeds": tuple(_seed(each) for each in seeds.split(",")) if seeds else None,
        "patience": patience,
    }
    called, task_settings = _task(task, recipe, {k: value for k, value in of_task.items() if value is not None})
    settings = _tuning(recipe, {k: value for k, value in of_tuning.items() if value is not None})

    from azneobert.encoders import open_encoder
    from azneobert.finetuning.reading import read_task
    from azneobert.finetuning.training import longest_text
    from azneobert.tune import Tuning, tune

    read = read_task(called, task_settings)
    folder = output or Path("finetuned") / called
    running = Layout(recipe.name).running(f"finetune-{called}").tracking if recipe else folder / "running" / "tracking"
    with bar_of(encoder_name) as expect, open_encoder(encoder_name, tracking, expect) as encoder:
        if max_length is None and recipe is None:
            settings = settings.model_copy(
                update={"max_length": min(settings.max_length, longest_text(encoder.folder))}
            )
        tuning = Tuning(
            encoder=encoder,
            called=encoder_name,
            task=read,
            task_settings=task_settings,
            settings=settings,
            tracking=tracking,
            folder=folder,
            running=running,
            model=None if no_register else register or f"{_short(encoder_name)}-{called}",
        )
        report, version = tune(tuning, console.print)
    console.print(_table(called, report))
    console.print(f"report, pictures, mistakes and model: {folder}")
    if version:
        also = "".join(f", {version.uri.rsplit('/', 1)[0]}@{alias}" for alias in version.aliases)
        console.print(f"registered: {version.uri}{also}")


def predict(
    model: Annotated[str, typer.Argument(help="A fine-tuned model: models:/NAME@ALIAS, a folder, a hub name.")],
    file: Annotated[Path, typer.Argument(help="Examples: .jsonl, .csv, .tsv, .parquet, CoNLL; labels are not read.")],
    output: Annotated[Path | None, typer.Option(help="A .jsonl file; default: standard output.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    name: RecipeName = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Each example as a line of JSON, with the model's `prediction` and how sure it is."""
    from azneobert.encoders import is_registered, open_encoder
    from azneobert.files import write_whole
    from azneobert.finetuning.predict import predict_file
    from azneobert.finetuning.saved import read_purpose

    tracking = store_of(name, tracking_uri)[0] if is_registered(model) else None
    with bar_of(model) as expect, open_encoder(model, tracking, expect) as opened:
        lines, truncated = predict_file(opened.folder, read_purpose(opened.folder), file, batch_size)
    written = "".join(f"{line}\n" for line in lines)
    if output is None:
        sys.stdout.write(written)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, written.encode())
    if truncated:
        print(f"{truncated:,} of {len(lines):,} texts were longer than the model reads, and were cut", file=sys.stderr)


def _one_or_all(fields: list[str] | None) -> str | tuple[str, ...] | None:
    if not fields:
        return None
    return fields[0] if len(fields) == 1 else tuple(fields)


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise RecipeError(f"--seeds: found {text!r}; expected whole numbers with commas between them, as 1,2,3")
    return int(text)


def _task(task: str, recipe: Recipe | None, changes: dict[str, Any]) -> tuple[str, AnyTask]:
    """The name of a task and its settings: the recipe's, unless the command line gives others."""
    known = recipe.finetuning.tasks if recipe else {}
    if task in known:
        former = known[task].model_dump(exclude_unset=True)
        return task, _checked(type(known[task]), former | changes)
    called = name_of(Path(task).name.split(".")[0])
    if Path(task).exists():
        return called, _checked(TaskFiles, {"path": task} | changes)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", task):
        tasks = f"no task of the recipe ({', '.join(known)})" if known else "no task of a recipe"
        raise RecipeError(
            f"{task}: no such file or folder, and {tasks}; expected one of these, or OWNER/NAME of the hub"
        )
    return called, _checked(TaskOfHub, {"dataset": task} | changes)


def _checked(model: Any, content: dict[str, Any]) -> Any:
    try:
        return model(**content)
    except ValidationError as error:
        raise RecipeError(f"task: {first_error(error)}") from None


def _tuning(recipe: Recipe | None, changes: dict[str, Any]) -> TuningSettings:
    fields = set(TuningSettings.model_fields)
    usual = recipe.finetuning.model_dump(include=fields) if recipe else _USUAL
    return _checked(TuningSettings, usual | changes)


def _short(encoder: str) -> str:
    """The encoder's part in a registered model's name: azneobert for models:/azneobert@phase2, for a path its end."""
    from azneobert.encoders import is_registered

    inner = re.sub(r"^models:/|[@/][^@/]+$", "", encoder) if is_registered(encoder) else Path(encoder).name
    return re.sub(r"[^A-Za-z0-9._-]", "-", inner) or "encoder"


def _table(task: str, report: dict[str, Any]) -> Table:
    """Every score from the pretrained weights with its interval, from random ones, of the frozen encoder, by chance."""
    probed = report["probe"]
    right = [Column(name, justify="right") for name in ("fine-tuned", "95% interval", "random", *probed, "chance")]
    seeds = report["seeds"]
    said = f"{report['examples']['test']:,} test examples, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    table = Table("score", *right, title=f"{task}: {said}")
    for score, ours in report["pretrained"].items():
        others = [report["random"][score]["mean"], *(scores.get(score) for scores in probed.values())]
        table.add_row(
            score,
            f"{ours['mean']:.3f}",
            f"{ours['low']:.3f} to {ours['high']:.3f}",
            *("" if value is None else f"{value:.3f}" for value in (*others, report["chance"].get(score))),
        )
    gain = report["gain"]
    meaning = "inside the noise" if gain["noise"] else "beyond the noise"
    table.caption = (
        f"{report['score']}: {gain['difference']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}) against random "
        f"weights: {meaning}. Of the frozen encoder: {', '.join(probed)}."
    )
    return table
