"""Stage: the last checkpoint of each phase becomes a version in the registry, under the phase's alias."""

import json
from argparse import Namespace

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.errors import CheckpointError
from azneobert.recipe import PHASES, Recipe
from azneobert.registry.push import push
from stage import Paths, run_stage, write_json


def register(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    versions = {}
    for phase in PHASES:
        newest = CheckpointFolder(paths.run(phase) / "checkpoints", recipe.runtime.keep_checkpoints).latest()
        if newest is None:
            raise CheckpointError(f"{paths.run(phase)}: no whole checkpoint there; run `dvc repro {phase}`")
        figures = json.loads(paths.metrics(f"evaluate/{phase}").read_text())
        version = push(newest[0], recipe, figures, [paths.plot(f"{phase}.png")], [phase])
        versions[phase] = {"uri": version.uri, "alias": f"models:/{version.name}@{phase}", "run_id": version.run_id}
        print(f"{phase}: {version.uri}, also models:/{version.name}@{phase}")
    write_json(paths.registered, versions)


if __name__ == "__main__":
    run_stage(register)
