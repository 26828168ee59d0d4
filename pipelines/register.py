"""Stage: the last checkpoint of each phase becomes a version in the registry, under the phase's alias."""

import json
from argparse import Namespace

from azneobert.files import write_json
from azneobert.layout import Layout, finished_checkpoint
from azneobert.recipe import PHASES, Recipe
from azneobert.registry import push
from stage import run_stage


def register(name: str, recipe: Recipe, layout: Layout, options: Namespace) -> None:
    versions = {}
    for phase in PHASES:
        checkpoint, _ = finished_checkpoint(layout.finished(phase))
        figures = json.loads(layout.metrics(f"evaluate/{phase}").read_text())
        version = push(checkpoint, recipe, figures, [layout.plots / f"{phase}.png"], [phase])
        versions[phase] = {"uri": version.uri, "alias": f"models:/{version.name}@{phase}", "run_id": version.run_id}
        print(f"{phase}: {version.uri}, also models:/{version.name}@{phase}")
    write_json(layout.registered, versions)


if __name__ == "__main__":
    run_stage(register)
