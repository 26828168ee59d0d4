"""Stage: fine-tune the registered model on one labelled task, beside the same network from random weights."""

from stage import run_stage

from argparse import Namespace
from pathlib import Path

from azneobert.encoders import open_encoder
from azneobert.environment import experiment_tag
from azneobert.files import write_json
from azneobert.finetuning.experiment import REPORT
from azneobert.finetuning.reading import read_task
from azneobert.layout import Layout
from azneobert.recipe import Recipe
from azneobert.registry.registered import read_registered, registered_version
from azneobert.tune import Tuning, tune


def finetune(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    settings, name = recipe.finetuning, options.task
    task_settings = settings.tasks[name]
    task = read_task(name, task_settings)
    version = registered_version(settings.model, read_registered(layout.registered), recipe.tracking)
    folder = layout.finetuned(name)
    with open_encoder(version, recipe.tracking) as encoder:
        tuning = Tuning(
            encoder=encoder,
            called=settings.model,
            task=task,
            task_settings=task_settings,
            settings=settings,
            tracking=recipe.tracking,
            folder=folder,
            running=layout.running(f"finetune-{name}").tracking,
            model=f"{recipe.registry.name}-{name}",
            tags={"azneobert.recipe": recipe.name} | experiment_tag(),
            promote=not experiment_tag(),  # an experiment leaves aliases alone, as in registering
        )
        report, registered = tune(tuning, lambda line: print(line, flush=True))
    (folder / REPORT).replace(_with_parent(layout.report(f"finetune/{name}")))
    main = report["score"]
    ours, floor = report["pretrained"][main], report["random"][main]
    compared = {main: ours["mean"], "low": ours["low"], "high": ours["high"], "untrained": floor["mean"]}
    write_json(layout.metrics(f"finetune/{name}"), {name: compared})
    assert registered is not None
    print(f"{name}: {main} {ours['mean']:.3f} ({ours['low']:.3f} to {ours['high']:.3f}): {registered.uri}")


def _with_parent(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


if __name__ == "__main__":
    run_stage(finetune, task=lambda recipe: recipe.finetuning.tasks)
