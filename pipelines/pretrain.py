"""One rank of a phase of pretraining; pipelines/launch.py starts as many of them as there are to be."""

from stage import ACCEPT_CHANGED, lineage, run_stage

import os
from argparse import Namespace

from azneobert.environment import LAUNCHER, SLURM
from azneobert.launching.place import ask_former_start_to_stop, join_launcher
from azneobert.layout import Layout
from azneobert.provenance import run_provenance
from azneobert.recipe import PHASES, Recipe
from azneobert.training.folder import prepare_folder
from azneobert.training.inputs import Inputs
from azneobert.training.run import pretrain


def rank(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    """Train as the rank that the launcher's environment names."""
    run = layout.running(options.phase)
    join_launcher(run)
    more = {"lineage": lineage(recipe, layout), "provenance": run_provenance()}
    inputs = Inputs.of(recipe, layout, options.phase, **more)
    accepted = tuple(options.accept_changed)
    if os.environ.get("RANK", "0") == "0":
        if os.environ.get(LAUNCHER) == SLURM:
            ask_former_start_to_stop(run)
        if prepare_folder(inputs, accepted):
            print(f"{options.phase}: complete already; nothing that decides its numbers has changed", flush=True)
    pretrain(inputs, accepted)


if __name__ == "__main__":
    run_stage(rank, ACCEPT_CHANGED, phase=PHASES)
