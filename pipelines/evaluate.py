"""Stage: the held-out loss and masked accuracy of one phase's last checkpoint, by collection and by length."""

from stage import run_stage

import csv
from argparse import Namespace
from math import isfinite
from pathlib import Path

import torch

from azneobert.checkpoint.universal import all_weights, open_checkpoint
from azneobert.data.stream import Stream
from azneobert.engine.gpu import prepare_gpu
from azneobert.engine.interface import World
from azneobert.errors import TrainingError
from azneobert.files import sha256_of_json, write_json
from azneobert.layout import HELD_OUT_FIGURE, WEIGHTS_FIGURE, Layout, finished_checkpoint
from azneobert.model.backend import choose_backend
from azneobert.model.encoder import build_model
from azneobert.recipe import PHASES, PhaseName, Recipe
from azneobert.training.device_memory import rows_by_prediction
from azneobert.training.evaluation import LENGTHS, evaluate, masked_perplexity
from azneobert.training.inputs import Inputs, open_streams, verify_data


def evaluate_phase(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    phase = options.phase
    checkpoint, manifest = finished_checkpoint(layout.finished(phase))
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
    rows = min(rows_by_prediction(recipe, phase, backend, world), recipe.phase(phase).global_batch)
    limit = recipe.evaluation.max_rows_per_collection
    figures = evaluate(model.to(world.device), validation, rows, limit, world)
    verification.require()
    if not isfinite(figures["eval/loss"]):
        raise TrainingError(f"{checkpoint}: its held-out loss is {figures['eval/loss']}; train the phase anew")
    figures |= masked_perplexities(figures)
    evaluated = {
        WEIGHTS_FIGURE: manifest.files["weights.safetensors"]["sha256"],
        HELD_OUT_FIGURE: held_out_sha256(recipe, validation),
    }
    write_json(layout.report(f"evaluate/{phase}"), figures | evaluated)
    write_tables(layout, phase, list(validation), figures)
    print(f"{phase}: held-out loss {figures['eval/loss']:.4f}, masked accuracy {figures['eval/accuracy']:.2%}")


def masked_perplexities(figures: dict[str, float]) -> dict[str, float]:
    """The masked perplexity for each loss among these figures."""
    losses = {key.removeprefix("eval/loss"): loss for key, loss in figures.items() if key.startswith("eval/loss")}
    return {f"eval/masked_perplexity{part}": masked_perplexity(loss) for part, loss in losses.items()}


def write_tables(layout: Layout, phase: PhaseName, collections: list[str], figures: dict[str, float]) -> None:
    """The plots by collection and by length, and the phase's metrics."""
    lengths = [length for length in LENGTHS if f"eval/loss_by_length/{length}" in figures]
    layout.plots.mkdir(parents=True, exist_ok=True)
    _write_csv(layout.plots / f"{phase}_collections.csv", "collection", collections, "/", figures)
    _write_csv(layout.plots / f"{phase}_lengths.csv", "positions", lengths, "_by_length/", figures)
    metrics = {
        # Without the overall loss: it is a metric of the training, and would have two columns.
        "accuracy": figures["eval/accuracy"],
        "masked_perplexity": figures["eval/masked_perplexity"],
        "loss_by_length": {length: figures[f"eval/loss_by_length/{length}"] for length in lengths},
    }
    write_json(layout.metrics(f"evaluate/{phase}"), {phase: metrics})


def _write_csv(file: Path, title: str, parts: list[str], place: str, figures: dict[str, float]) -> None:
    """A row for each part of the held-out tokens, whose figures have its name after `place`."""
    kinds = ("loss", "accuracy", "masked_perplexity")
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow([title, *kinds])
        writer.writerows([part, *(figures[f"eval/{kind}{place}{part}"] for kind in kinds)] for part in parts)


def held_out_sha256(recipe: Recipe, validation: dict[str, Stream]) -> str:
    """A hash of what two evaluations must share to be compared: the rows, their number, tokens and masks."""
    rows = {name: [stream.plan.meta.sha256, dict(stream.plan.meta.stores)] for name, stream in validation.items()}
    limit, rate = recipe.evaluation.max_rows_per_collection, recipe.training.masking_rate
    return sha256_of_json({"rows": rows, "limit": limit, "seed": recipe.seed, "masking_rate": rate})


if __name__ == "__main__":
    run_stage(evaluate_phase, phase=PHASES)
