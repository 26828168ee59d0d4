"""Stage: one phase of pretraining, in as many processes as the recipe asks for.

A run that stands half-finished in the phase's folder goes on; one of other data, model or settings is set aside.
"""

from stage import ACCEPT_CHANGED, run_stage

import sys
from argparse import Namespace

from azneobert.environment import EXIT_FORCED, EXIT_STOPPED
from azneobert.errors import RegistryError, TrainingError
from azneobert.files import write_json
from azneobert.launching.local import GRACE_SECONDS, Rank, run_ranks
from azneobert.launching.outcome import read_outcome
from azneobert.layout import Layout
from azneobert.recipe import PHASES, Recipe
from azneobert.tracking.record import read_run_id
from azneobert.training.report import attach_report, publish, write_report
from recover import bring_back, take_over_former_place


def launch(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    """Train the phase, then leave what the stages after it take: its checkpoint, points, metrics and curves."""
    phase, run = options.phase, layout.running(options.phase)
    finished = layout.finished(phase)
    take_over_former_place(layout, phase)
    bring_back(recipe, phase, run, finished)
    run.outcome_file.unlink(missing_ok=True)  # what a rank says now is about now
    command = [sys.executable, "pipelines/pretrain.py", phase]
    command += [f"--accept-changed={key}" for key in options.accept_changed]
    failed = run_ranks(command, recipe.runtime.processes, run, recipe.runtime.stall_seconds)
    outcome = read_outcome(run)
    if outcome.state == "failed" and failed is not None and failed.stalled:
        print(f"error: {failed.stalled}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    if outcome.state == "failed":
        raise TrainingError(_what_failed(phase, failed))
    if outcome.state == "stopped":
        print(f"{phase}: stopped as asked at step {outcome.step}, with a checkpoint; start again to go on")
        sys.exit(EXIT_STOPPED)
    publish(run, finished)
    write_json(layout.metrics(phase), write_report(recipe, phase, finished, layout.plots))
    picture, run_id = layout.plots / f"{phase}.png", read_run_id(run.tracking)
    if run_id is not None:
        try:
            attach_report(recipe.tracking, run_id, recipe.model_dump(mode="json"), picture)
        except RegistryError as error:
            print(f"warning: {error}; the loss curve is not attached to the run, it is in {picture}", file=sys.stderr)


def _what_failed(phase: str, failed: Rank | None) -> str:
    if failed is None:
        return f"{phase}: the ranks have ended and left no checkpoint of that step; look at what they printed"
    if failed.process.returncode == EXIT_FORCED:
        return (
            f"{phase}: asked to stop, rank {failed.number} had no checkpoint within {GRACE_SECONDS:.0f} s and was "
            "ended; start again to go on from the one before"
        )
    return failed.error() if failed.number == 0 else f"rank {failed.number}: {failed.error()}"


if __name__ == "__main__":
    run_stage(launch, ACCEPT_CHANGED, phase=PHASES)
