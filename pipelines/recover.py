"""Brings runs to their place: an older one lies elsewhere, a finished one may be only in DVC's cache."""

from stage import locked_hashes

import shutil
from pathlib import Path

from azneobert.checkpoint.manifest import read_manifest
from azneobert.dvc_files import Output, cache_folder, cached_object, object_path, objects_of
from azneobert.errors import DataError
from azneobert.layout import CHECKPOINT, Layout, RunFolder
from azneobert.recipe import PhaseName, Recipe
from azneobert.tracking.points import POINTS
from azneobert.tracking.published import bring_record
from azneobert.tracking.record import RECORD


def take_over_former_place(layout: Layout, phase: PhaseName) -> None:
    """Move a run from the former place of runs, in the stage's output, to today's folder of runs in progress."""
    run, checkpoints, tracking = (
        layout.running(phase),
        layout.finished(phase) / "checkpoints",
        layout.root / "tracking" / phase,
    )
    if run.path.exists() or not checkpoints.is_dir():
        return
    run.path.mkdir(parents=True)
    for former, place in ((tracking, run.tracking), (checkpoints, run.checkpoints)):
        if former.is_dir():
            former.rename(place)
    print(f"{phase}: the run in {checkpoints.parent} is in {run.path} from now on", flush=True)


def bring_back(recipe: Recipe, phase: PhaseName, run: RunFolder, finished: Path) -> None:
    """If the phase has no folder in progress, make one from what it left: in a clone, or in a folder of `dvc exp run`.

    So a stage that is out of date only because of its code does not train anew. `prepare_folder` decides whether the
    run is today's; a run of other settings stays in the cache.
    """
    hashes = locked_hashes()
    wanted = [finished / name for name in (CHECKPOINT, POINTS, RECORD)]
    if run.path.exists() or not all(str(path) in hashes for path in wanted):
        return
    try:
        cache = cache_folder()
    except DataError:  # run without DVC
        return
    listed = Output(phase, CHECKPOINT, hashes[str(wanted[0])])
    objects = objects_of(listed, cached_object(cache, listed.md5))
    files = {p.removeprefix(f"{CHECKPOINT}/"): object_path(cache, m) for p, m in objects.items() if p != CHECKPOINT}
    points, record = (object_path(cache, hashes[str(path)]) for path in wanted[1:])
    if not files or not all(file.is_file() for file in (*files.values(), points, record)):
        return
    partial = RunFolder(run.path.with_name(f".{run.path.name}.partial"))
    shutil.rmtree(partial.path, ignore_errors=True)
    checkpoint = partial.checkpoints / "brought-back"
    for name, file in files.items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, checkpoint / name)
    manifest = read_manifest(checkpoint)
    present = recipe.model_dump(mode="json")
    if all(manifest.recipe.get(part) == present[part] for part in ("seed", "model", "training", phase)):
        checkpoint.rename(partial.checkpoints / f"step-{manifest.step:08d}")
        bring_record(points, record, partial.tracking)
        partial.path.rename(run.path)
        print(f"{phase}: what it left is in DVC's cache: brought back from there", flush=True)
    shutil.rmtree(partial.path, ignore_errors=True)
