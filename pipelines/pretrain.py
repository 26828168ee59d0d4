"""One rank of a phase of pretraining; pipelines/launch.py starts as many of them as the recipe asks for."""

import os
import sys
from argparse import Namespace

from azneobert.recipe import PHASES, PhaseName, Recipe
from azneobert.training.inputs import Inputs
from azneobert.training.run import pretrain
from azneobert.training.stopping import EXIT_STOPPED
from stage import Paths, lineage, run_stage

ACCEPT_CHANGED = {"accept-changed": "go on although this part of the run's identity has changed, such as training"}


def phase_inputs(name: str, recipe: Recipe, paths: Paths, phase: PhaseName) -> Inputs:
    """Where this recipe's phase finds everything."""
    before = recipe.phase(phase).start_from
    return Inputs(
        recipe_name=name,
        recipe=recipe,
        phase=phase,
        tokens=paths.tokens,
        rows=paths.rows(phase),
        tokenizer=paths.tokenizer,
        folder=paths.run(phase),
        tracking=paths.tracking(phase),
        start=paths.run(before) if before else None,
        lineage=lineage(recipe, paths),
    )


def rank(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    """Train as the rank that the launcher's environment names."""
    if os.environ.get("RANK", "0") != "0":
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - one rank's error line is enough
    if not pretrain(phase_inputs(name, recipe, paths, options.phase), tuple(options.accept_changed)):
        sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    run_stage(rank, ACCEPT_CHANGED, phase=PHASES)
