"""The training loop, readable top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from azneobert.course import Course
from azneobert.data.stream import PackedBatch, Stream
from azneobert.engine.interface import Engine
from azneobert.engine.optim import learning_rate
from azneobert.recipe import Evaluation, Phase, Runtime
from azneobert.tracking.tracker import Tracker
from azneobert.training.evaluation import evaluate
from azneobert.training.guards import Rewind, RunGuards
from azneobert.training.meter import Meter
from azneobert.training.progress import Progress
from azneobert.training.saving import Saver
from azneobert.training.stopping import StopRequest
from azneobert.training.watchdog import Watchdog


@dataclass
class Run:
    """Everything the loop touches. `schedule_offset` is the place of the phase's step 0 on its schedule.

    `proof` gives the rows on which a model must have a finite loss and finite gradients before it is saved.
    """

    name: str
    phase: Phase
    runtime: Runtime
    evaluation: Evaluation
    engine: Engine
    micro_batches: Iterator[PackedBatch]
    micro_batch: int
    validation: dict[str, Stream]
    proof: Stream
    first_step: int
    course: Course
    schedule_offset: int
    meter: Meter
    tracker: Tracker | None  # on the main rank only
    saver: Saver
    guards: RunGuards
    watchdog: Watchdog


def train(run: Run, stop: StopRequest) -> int | Rewind:
    """Train to the last step, or until somebody asks to stop; the step where this returns is saved.

    Returns how many steps the phase has done, or a `Rewind` if the recipe has spikes rewound.

    Raises:
        TrainingError: the numbers have gone wrong and the run cannot go on; what is saved is from before that.
    """
    phase, runtime = run.phase, run.runtime
    last_rate_step = run.schedule_offset + phase.steps
    run.meter.start(run.course.tokens(run.first_step))
    with Progress(run.name, phase.steps, run.first_step, visible=run.engine.world.is_main) as progress:
        if run.first_step == 0:
            with run.meter.paused(), run.watchdog.doing("evaluating"):
                _validate(run, 0, progress)
        for step in range(run.first_step, phase.steps):
            rate = learning_rate(
                run.schedule_offset + step, phase.warmup_steps, last_rate_step, phase.peak_learning_rate
            )
            run.saver.check()
            done = step + 1
            loss, grad_norm = run.engine.step(run.micro_batches, rate, repeat=run.guards.repeats(done))
            run.guards.note(done)
            run.watchdog.progress(done)
            finished = done == phase.steps
            if finished or done % runtime.log_every == 0:
                figures = {"train/loss": loss.item(), "train/grad_norm": grad_norm.item(), "train/lr": rate}
                figures |= run.meter.read(run.course.tokens(done)) | {"train/tokens": run.course.tokens(done)}
                progress.update(done, figures)
                if run.tracker:
                    # A loss that is not finite is no point of a curve; the guards record that there was one.
                    run.tracker.log(done, {key: value for key, value in figures.items() if isfinite(value)})
            if finished or done % run.evaluation.every == 0:
                with run.meter.paused(), run.watchdog.doing("evaluating"):
                    _validate(run, done, progress)
            saving = finished or done % runtime.checkpoint_every == 0
            stopping, alarmed = stop.agreed(run.guards.alarm(progress.say, wait=saving))
            if stopping and not saving:  # nothing is saved before all verdicts up to here are known
                _, alarmed = stop.agreed(run.guards.alarm(progress.say, wait=True))
            if alarmed:
                return run.guards.resolve(stop.gathered)
            if saving or stopping:
                with run.meter.paused(), run.watchdog.doing("saving"):
                    run.guards.check_fit(done, *run.engine.probe(run.proof.packed_batch(0, run.micro_batch)))
                    run.saver.save(done)
            if stopping:
                return done
    return phase.steps


def _validate(run: Run, step: int, progress: Progress) -> None:
    metrics = evaluate(
        run.engine.model,
        run.validation,
        run.micro_batch,
        run.evaluation.max_rows_per_collection,
        run.engine.world,
    )
    progress.validation(step, metrics["eval/loss"], metrics["eval/accuracy"])
    run.guards.check_fit(step, metrics["eval/loss"])
    if run.tracker:
        run.tracker.log(step, metrics)
