"""Stage: the last checkpoint of each phase becomes a version in the registry, under the phase's alias."""

from stage import run_stage

from argparse import Namespace

from azneobert.environment import experiment
from azneobert.layout import Layout, finished_checkpoint, read_report
from azneobert.recipe import PHASES, Recipe
from azneobert.registry.assemble import check_complete
from azneobert.registry.corpus import count_collections
from azneobert.registry.push import push
from azneobert.registry.registered import Registered, write_registered
from azneobert.registry.versions import DIGEST_TAG, free_aliases
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.published import restore_run

FORCE = {"force": "move the aliases although another recipe has registered the versions that they point at"}


def register(recipe: Recipe, layout: Layout, options: Namespace) -> None:
    registered = {}
    counts = count_collections(layout, recipe.data.order)
    for phase in PHASES:
        checkpoint, manifest = finished_checkpoint(layout.finished(phase))
        check_complete(checkpoint, manifest)
        figures = read_report(layout.report(f"evaluate/{phase}"))
        picture, run_id = layout.plots / f"{phase}.png", delivered_run(recipe, layout, phase)
        aliases = [phase]
        if experiment():  # people ask for what the project has registered, and not for the last thing that was tried
            aliases = free_aliases(recipe.tracking, recipe.registry.name, aliases)
        golden = layout.golden(phase)
        golden.unlink(missing_ok=True)  # of another content, where this is run without DVC
        version = push(
            checkpoint, recipe, figures, [picture], aliases, run_id, force=options.force, golden=golden, counts=counts
        )
        registered[phase] = Registered(version.name, phase, version.tags[DIGEST_TAG])
        print(f"{phase}: {version.uri}, {'also' if phase in version.aliases else 'not'} {registered[phase].uri}")
    write_registered(layout.registered, registered)


def delivered_run(recipe: Recipe, layout: Layout, phase: str) -> str:
    """The phase's MLflow run, which has every point now: MLflow may have been away when the training ended."""
    folder = layout.running(phase).tracking
    if folder.is_dir():
        deliver_folder(folder, recipe.tracking)
    return restore_run(layout.finished(phase), recipe.tracking)[0]


if __name__ == "__main__":
    run_stage(register, flags=FORCE)
