"""Engines at toy size, and their steps."""

from __future__ import annotations

from azneobert.data.stream import Stream
from azneobert.engine.interface import Engine
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.model.encoder import build_model
from azneobert.recipe import Recipe

RATES = [1e-3, 2e-3, 5e-4]


def new_engine(recipe: Recipe, seed: int = 0, rows: int = 8, accumulation: int = 1) -> Engine:
    accelerator = make_accelerator(recipe.runtime.engine, "cpu")
    micro_batch = rows // accelerator.num_processes // accumulation
    model = build_model(recipe.model, seed)
    return make_engine(model, recipe.training, recipe.runtime, accelerator, micro_batch, accumulation)


def steps(engine: Engine, stream: Stream, numbers: range, rows: int = 8) -> list[list[float]]:
    """Train on the global batches with these numbers; loss and gradient norm of each."""
    figures = []
    for number in numbers:
        share = rows // engine.world.size
        first = number * rows + engine.world.rank * share
        micro = share // engine.accumulation
        batches = (stream.packed_batch(first + i * micro, micro) for i in range(engine.accumulation))
        figures.append([x.item() for x in engine.step(batches, RATES[number])])
    return figures
