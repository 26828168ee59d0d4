"""Many trainings of a small model on real text, one after the other: what `bench loss` compares."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from azneobert.bench.prose import Prose
from azneobert.bench.variants import Variant, build_engine
from azneobert.checkpoint.universal import TrainState
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.engine.interface import Engine
from azneobert.engine.make import order_sums
from azneobert.engine.optim import learning_rate
from azneobert.model.encoder import MaskedLM, build_model
from azneobert.recipe import Model, Training
from azneobert.training.evaluation import evaluate


@dataclass(frozen=True)
class Course:
    """What every training of a comparison has in common: the model, the batches, the learning rate."""

    model: Model
    training: Training
    steps: int
    rows: int
    warmup_steps: int
    rate: float
    held_out_rows: int


@dataclass(frozen=True)
class Ending:
    """What a training leaves: its held-out loss, the seconds it took, what computed it, and the fp32 weights."""

    held_out_loss: float
    seconds: float
    kernels: str
    weights: dict[str, torch.Tensor]


class Learner:
    """One way of computing. It trains from one seed after another, and is compiled once for all seeds.

    `division` is the number of micro-batches that a step's rows are divided into.
    """

    def __init__(self, variant: Variant, course: Course, division: int = 1):
        self._variant = variant
        self._course = course
        self._division = division
        micro_batch = course.rows // division
        self.engine: Engine = build_engine(variant, course.model, micro_batch, division, course.training)
        state = self.engine.gather()
        assert state is not None
        self._fresh: TrainState = replace(state, weights={}, exp_avg={}, exp_avg_sq={}, guard={})

    def put(self, weights: dict[str, torch.Tensor]) -> None:
        """Begin anew with these weights, by name."""
        order_sums(self._variant.deterministic)  # another variant may have trained in this process since
        self.engine.scatter(replace(self._fresh, weights=weights))

    def train(self, prose: Prose, seed: int, judge: Judge) -> Ending:
        """Train from a seed's weights, on the text in the seed's order."""
        course, began = self._course, time.monotonic()
        self.put(initial_weights(course.model, seed))
        micro_batch = course.rows // self._division
        samples = SampleRange(range(0, course.steps * course.rows, course.rows), micro_batch, self._division, 0)
        on_gpu = self.engine.world.device.type == "cuda"
        stream = prose.stream(seed, course.training.masking_rate)
        batches = micro_batch_loader(stream, samples, workers=0, pin_memory=on_gpu)
        for step in range(course.steps):
            self.engine.step(batches, learning_rate(step, course.warmup_steps, course.steps, course.rate))
        batches.close()
        weights = {name: parameter.detach() for name, parameter in self.engine.model.named_parameters()}
        loss = judge(weights)
        kept = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}
        return Ending(loss, time.monotonic() - began, str(self.engine.model.encoder.backend), kept)


class Judge:
    """The held-out loss of weights, by plain kernels in fp32, whatever kernels trained the weights."""

    def __init__(self, prose: Prose, course: Course):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: MaskedLM = build_model(course.model, 1).to(self._device)
        self._held_out = prose.held_out(course.training.masking_rate)
        self._course = course

    def __call__(self, weights: dict[str, torch.Tensor]) -> float:
        """The mean over the held-out rows, in nats."""
        from azneobert.engine.interface import World

        self._model.load_state_dict(weights)
        order_sums(False)
        rows = min(self._course.rows, self._course.held_out_rows)
        with precision("highest"):
            found = evaluate(
                self._model, {"": self._held_out}, rows, self._course.held_out_rows, World(0, 1, self._device)
            )
        return found["eval/loss"]


class precision:  # noqa: N801 - a context, named as a word of the sentence that it stands in
    """Sets the precision of fp32 matrix products for a block: `torch.set_float32_matmul_precision`."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        self._former = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self._name)

    def __exit__(self, *error: Any) -> None:
        torch.set_float32_matmul_precision(self._former)


def initial_weights(model: Model, seed: int) -> dict[str, torch.Tensor]:
    """The weights that a training begins with, by name."""
    return {name: parameter.detach() for name, parameter in build_model(model, seed).named_parameters()}
