"""Stage: the held-out loss and masked accuracy of one phase's last checkpoint, by collection."""

from stage import run_stage

import csv
from argparse import Namespace
from math import isfinite

import torch

from azneobert.checkpoint.universal import all_weights, open_checkpoint
from azneobert.engine.gpu import prepare_gpu
from azneobert.engine.interface import World
from azneobert.errors import TrainingError
from azneobert.files import write_json
from azneobert.layout import Layout, finished_checkpoint
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model
from azneobert.recipe import PHASES, Recipe
from azneobert.training.evaluation import evaluate
from azneobert.training.inputs import Inputs, open_streams, verify_data


def evaluate_phase(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    phase = options.phase
    checkpoint, _ = finished_checkpoint(layout.finished(phase))
    state = open_checkpoint(checkpoint, moments=False)
    prepare_gpu()
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, recipe.training.compute_dtype)
    backend = choose_backend(recipe.runtime, recipe.model, world.device, dtype)
    model = build_model(recipe.model, recipe.seed, dtype, backend)
    model.load_state_dict(all_weights(state))
    inputs = Inputs.of(recipe, layout, phase)
    _, validation = open_streams(inputs)
    verification = verify_data(inputs, ["validation"])
    rows = min(recipe.runtime.max_micro_batch, recipe.phase(phase).global_batch)
    limit = recipe.evaluation.max_rows_per_collection
    figures = evaluate(model.to(world.device), validation, rows, limit, world)
    verification.require()
    if not isfinite(figures["eval/loss"]):
        raise TrainingError(f"{checkpoint}: its held-out loss is {figures['eval/loss']}; nothing is to be made of it")
    write_json(layout.report(f"evaluate/{phase}"), figures)
    table = layout.plots / f"{phase}_collections.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["collection", "loss", "accuracy"])
        writer.writerows([c, figures[f"eval/loss/{c}"], figures[f"eval/accuracy/{c}"]] for c in validation)
    print(f"{phase}: held-out loss {figures['eval/loss']:.4f}, masked accuracy {figures['eval/accuracy']:.2%}")


if __name__ == "__main__":
    run_stage(evaluate_phase, phase=PHASES)
