"""Hands a phase to SLURM: for the stage, which waits for it, or for slurm/submit, which does not. Errors are reported
before anything waits in a queue.
"""

from stage import lineage

from argparse import Namespace
from pathlib import Path

from azneobert.errors import RecipeError
from azneobert.launching.container import find_image
from azneobert.launching.outcome import Ended
from azneobert.launching.settings import FILE, TEMPLATE, LaunchSettings
from azneobert.launching.slurm import PhaseJob, find, script_of, submit, submitting, watch
from azneobert.layout import Layout
from azneobert.provenance import run_provenance
from azneobert.recipe import PARAMS, Recipe, check_division, recipe_fingerprint
from azneobert.training.folder import is_complete
from azneobert.training.inputs import Inputs, open_streams
from azneobert.training.position import run_identity


def train_in_job(
    recipe: Recipe, layout: Layout, options: Namespace, command: list[str], settings: LaunchSettings
) -> Ended:
    """Wait for the job that trains the phase; submit it if there is none."""
    inputs, wanted = _prepared(recipe, layout, options, command, settings)
    with submitting(wanted.folder):
        job = find(wanted)
        if job is None and is_complete(inputs, tuple(options.accept_changed)):
            return Ended("complete")
        job_id = job.id if job else submit(wanted)
    print(f"{wanted.phase}: job {job_id} {'is there already: its log goes on' if job else 'submitted'}", flush=True)
    return watch(wanted, job_id)


def submit_alone(
    recipe: Recipe, layout: Layout, options: Namespace, command: list[str], settings: LaunchSettings
) -> None:
    """Submit the phase's job if there is none, or print its script; wait for nothing."""
    if settings.launcher != "slurm":
        raise RecipeError(f"{FILE}: says nothing of SLURM; use `cp {TEMPLATE} {FILE}`, and fill it in")
    inputs, wanted = _prepared(recipe, layout, options, command, settings)
    if options.dry_run:
        print(script_of(wanted), end="")
        return
    with submitting(wanted.folder):
        if job := find(wanted):
            print(f"{wanted.phase}: job {job.id} ({job.state}) is there already; nothing was submitted")
        elif is_complete(inputs, tuple(options.accept_changed)):
            print(f"{wanted.phase}: complete already; nothing was submitted, `dvc repro` takes it from here")
        else:
            print(f"{wanted.phase}: job {submit(wanted)} submitted; `azneobert jobs --follow` shows it")


def _prepared(
    recipe: Recipe, layout: Layout, options: Namespace, command: list[str], settings: LaunchSettings
) -> tuple[Inputs, PhaseJob]:
    """The inputs of the phase, checked to be there and to fit, and the job that would train it."""
    phase = options.phase
    inputs = Inputs.of(recipe, layout, phase, lineage=lineage(recipe, layout), provenance=run_provenance())
    wanted = PhaseJob(
        phase=phase,
        recipe=recipe.name,
        recipe_file=PARAMS,
        run=inputs.run,
        folder=layout.job(phase),
        identity=recipe_fingerprint(run_identity(inputs, open_streams(inputs)[0])),
        command=command,
        settings=settings,
        image=find_image(Path(settings.container)) if settings.container else None,
    )
    for size in wanted.world_sizes:
        try:
            check_division(recipe.phase(phase).global_batch, size, f"{phase}.")
        except ValueError as error:
            raise RecipeError(f"{FILE}: {size} ranks: {error}") from None
    return inputs, wanted
