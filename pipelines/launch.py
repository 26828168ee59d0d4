"""Stage: one phase of pretraining, in as many ranks as the recipe asks for here, or as SLURM gives (launch.yaml).

A run that stands half-finished in the phase's folder goes on; one of other data, model or settings is set aside.
"""

from stage import ACCEPT_CHANGED, run_stage

import sys
from argparse import Namespace

from azneobert.environment import EXIT_STOPPED
from azneobert.errors import RegistryError, TrainingError
from azneobert.files import write_json
from azneobert.launching.local import train_here
from azneobert.launching.settings import load_launch
from azneobert.layout import Layout
from azneobert.recipe import PHASES, Recipe
from azneobert.registry.start import bring_start
from azneobert.tracking.record import read_run_id
from azneobert.training.report import attach_report, publish, write_report
from recover import bring_back, take_over_former_place

SUBMIT = {
    "submit": "hand the phase to SLURM, as launch.yaml says, and do not wait for it",
    "dry-run": "with --submit: print the script of the job, and submit nothing",
}


def launch(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    """Train the phase, then leave what the stages after it take: its checkpoint, points, metrics and curves."""
    phase, run, settings = options.phase, layout.running(options.phase), load_launch()
    finished = layout.finished(phase)
    command = [sys.executable, "pipelines/pretrain.py", phase]
    command += [f"--accept-changed={key}" for key in options.accept_changed]
    take_over_former_place(layout, phase)
    bring_back(recipe, phase, run, finished)
    if start := bring_start(recipe, layout, phase):
        print(start, flush=True)
    if options.submit or options.dry_run:
        from job import submit_alone  # it imports torch, which the launcher of local ranks does not need

        submit_alone(recipe, layout, options, command, settings)
        return
    if settings.launcher == "slurm":
        from job import train_in_job

        ended = train_in_job(recipe, layout, options, command, settings)
    else:
        runtime = recipe.runtime
        ended = train_here(phase, command, runtime.processes, run, runtime.stall_seconds, settings.grace_seconds)
    if ended.state == "failed":
        raise TrainingError(ended.line)
    if ended.state != "complete":
        print(f"error: {ended.line}" if ended.state == "stalled" else ended.line, file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    publish(run, finished)
    write_json(layout.metrics(phase), write_report(recipe, phase, finished, layout.plots))
    picture, run_id = layout.plots / f"{phase}.png", read_run_id(run.tracking)
    if run_id is not None:
        try:
            attach_report(recipe.tracking, run_id, recipe.model_dump(mode="json"), picture)
        except RegistryError as error:
            print(f"warning: {error}; the loss curve is not attached to the run, it is in {picture}", file=sys.stderr)


if __name__ == "__main__":
    run_stage(launch, ACCEPT_CHANGED, flags=SUBMIT, phase=PHASES)
