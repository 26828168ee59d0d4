"""Stage: the last checkpoint of each phase becomes a version in the registry, under the phase's alias."""

from stage import run_stage

import json
from argparse import Namespace

from azneobert.files import write_json
from azneobert.layout import Layout, finished_checkpoint
from azneobert.recipe import PHASES, Recipe
from azneobert.registry.push import push
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.record import read_run_id

FORCE = {"force": "move the aliases although another recipe has registered the versions that they point at"}


def register(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    versions = {}
    for phase in PHASES:
        checkpoint, _ = finished_checkpoint(layout.finished(phase))
        figures = json.loads(layout.metrics(f"evaluate/{phase}").read_text())
        run_id, picture = delivered_run(recipe, layout, phase), layout.plots / f"{phase}.png"
        version = push(checkpoint, recipe, figures, [picture], [phase], run_id, force=options.force)
        versions[phase] = {"uri": version.uri, "alias": f"models:/{version.name}@{phase}", "run_id": version.run_id}
        print(f"{phase}: {version.uri}, also models:/{version.name}@{phase}")
    write_json(layout.registered, versions)


def delivered_run(recipe: Recipe, layout: Layout, phase: str) -> str | None:
    """The phase's MLflow run, which has every point now: MLflow may have been away when the training ended."""
    folder = layout.running(phase).tracking
    if folder.is_dir():
        deliver_folder(folder, recipe.tracking)
    return read_run_id(folder)


if __name__ == "__main__":
    run_stage(register, flags=FORCE)
