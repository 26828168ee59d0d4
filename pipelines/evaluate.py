"""Stage: the held-out loss and masked accuracy of one phase's last checkpoint, by collection."""

import csv
from argparse import Namespace

import torch

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.universal import all_weights, read_checkpoint
from azneobert.engine.interface import world_of
from azneobert.engine.make import make_accelerator
from azneobert.errors import CheckpointError
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model
from azneobert.recipe import PHASES, Recipe
from azneobert.training.evaluation import evaluate
from azneobert.training.inputs import open_streams
from pretrain import phase_inputs
from stage import Paths, run_stage, write_json


def evaluate_phase(name: str, recipe: Recipe, paths: Paths, options: Namespace) -> None:
    phase = options.phase
    newest = CheckpointFolder(paths.run(phase) / "checkpoints", recipe.runtime.keep_checkpoints).latest()
    if newest is None:
        raise CheckpointError(f"{paths.run(phase)}: no whole checkpoint there; run `dvc repro {phase}`")
    state, _ = read_checkpoint(newest[0], moments=False)
    world = world_of(make_accelerator())
    dtype = getattr(torch, recipe.training.compute_dtype)
    backend = choose_backend(recipe.runtime, recipe.model, world.device, dtype)
    model = build_model(recipe.model, recipe.seed, dtype, backend)
    model.load_state_dict(all_weights(state))
    _, validation = open_streams(phase_inputs(name, recipe, paths, phase))
    rows = min(recipe.runtime.max_micro_batch, recipe.phase(phase).global_batch)
    limit = recipe.evaluation.max_rows_per_collection
    figures = evaluate(model.to(world.device), validation, rows, limit, world)
    write_json(paths.metrics(f"evaluate/{phase}"), figures)
    table = paths.plot(f"{phase}_collections.csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["collection", "loss", "accuracy"])
        writer.writerows([c, figures[f"eval/loss/{c}"], figures[f"eval/accuracy/{c}"]] for c in validation)
    print(f"{phase}: held-out loss {figures['eval/loss']:.4f}, masked accuracy {figures['eval/accuracy']:.2%}")


if __name__ == "__main__":
    run_stage(evaluate_phase, phase=PHASES)
