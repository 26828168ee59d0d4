"""The training loop, readable top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from azneobert.course import Course
from azneobert.data.stream import PackedBatch, Stream
from azneobert.engine.interface import Engine
from azneobert.engine.optim import learning_rate
from azneobert.recipe import Evaluation, Phase, Runtime
from azneobert.tracking.tracker import Tracker
from azneobert.training.evaluation import evaluate
from azneobert.training.meter import Meter
from azneobert.training.progress import Progress
from azneobert.training.saving import Saver
from azneobert.training.stopping import StopRequest
from azneobert.training.watchdog import Watchdog


@dataclass
class Run:
    """Everything the loop touches. `schedule_offset` is where on its schedule the phase's step 0 lies."""

    name: str
    phase: Phase
    runtime: Runtime
    evaluation: Evaluation
    engine: Engine
    micro_batches: Iterator[PackedBatch]
    micro_batch: int
    validation: dict[str, Stream]
    first_step: int
    course: Course
    schedule_offset: int
    meter: Meter
    tracker: Tracker | None  # on the main rank only
    saver: Saver
    watchdog: Watchdog


def train(run: Run, stop: StopRequest) -> int:
    """Train to the last step, or until somebody asks to stop; the step where this returns is saved.

    Returns how many steps the phase has behind it.
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
            loss, grad_norm = run.engine.step(run.micro_batches, rate)

            done = step + 1
            run.watchdog.progress(done)
            finished = done == phase.steps
            if finished or done % runtime.log_every == 0:
                figures = {"train/loss": loss.item(), "train/grad_norm": grad_norm.item(), "train/lr": rate}
                figures |= run.meter.read(run.course.tokens(done)) | {"train/tokens": run.course.tokens(done)}
                progress.update(done, figures)
                if run.tracker:
                    run.tracker.log(done, figures)
            if finished or done % run.evaluation.every == 0:
                with run.meter.paused(), run.watchdog.doing("evaluating"):
                    _validate(run, done, progress)
            stopping = stop.agreed()
            if finished or stopping or done % runtime.checkpoint_every == 0:
                with run.meter.paused(), run.watchdog.doing("saving"):
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
    if run.tracker:
        run.tracker.log(step, metrics)
