"""How the phases stand, as seen from a login node: from the queue, and from the files in the runs' folders."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.errors import AzNeoBertError, TrainingError
from azneobert.launching import cluster
from azneobert.launching.slurm import read_record
from azneobert.layout import Layout, RunFolder
from azneobert.pace import clock
from azneobert.recipe import PHASES, PhaseName, load_recipe
from azneobert.tracking.points import POINTS, decode_point
from azneobert.training.watchdog import Heartbeat, heartbeat_file, read_heartbeat

HERE = "running here"
ENDED = "ended"  # so long ago that SLURM has forgotten it
UNKNOWN = "unknown"  # SLURM does not answer
_TAIL = 1 << 16  # bytes at the end of the points file that are searched for the last points
_FRESH_SECONDS = 120.0  # an older heartbeat is from a rank that was killed


@dataclass(frozen=True)
class Standing:
    """How a phase stands. What is not known is None, or an empty text."""

    recipe: str
    phase: PhaseName
    job: str  # its number in SLURM; empty for a run on this machine
    state: str
    reason: str = ""  # why it waits
    nodes: str = ""
    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    loss: float | None = None
    left: str = ""  # h:mm:ss
    checkpoint: str = ""  # the newest one, and how old it is

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state == HERE or (bool(self.job) and self.state not in (ENDED, UNKNOWN, *cluster.FINISHED))


def standings(outputs: Path = Path("outputs")) -> list[Standing]:
    """Every phase that was ever handed to SLURM here, or is being trained on this machine."""
    recipes = sorted(folder.name for folder in outputs.glob("*") if folder.is_dir())
    found = (_standing(Layout(name, outputs), name, phase) for name in recipes for phase in PHASES)
    return [standing for standing in found if standing]


def _standing(layout: Layout, recipe: str, phase: PhaseName) -> Standing | None:
    run, folder = layout.running(phase), layout.job(phase)
    record, beat = read_record(folder), _fresh_heartbeat(run)
    if record is None and beat is None:
        return None
    job_id, state, reason, nodes = "", HERE, "", beat.host if beat else ""
    if record is not None:
        job_id = record.job_id
        try:
            job = cluster.find_job(job_id) if job_id else None
        except TrainingError as error:
            state, reason = UNKNOWN, str(error)
        else:
            state = job.state if job else ENDED
            reason = job.reason if job and job.pending else ""
            nodes = job.nodes if job else ""
        if beat and (state == ENDED or state in cluster.FINISHED):  # the last job has ended, and now ranks run here
            job_id, state, nodes = "", HERE, beat.host
    figures = _last_figures(run.tracking / POINTS)
    checkpoints = CheckpointFolder(run.checkpoints, 1).steps()
    step = beat.step if beat else figures.get("step")
    rate = figures.get("train/tokens_per_second")
    steps, tokens_per_step = _size(folder.recipe if record else Path("params.yaml"), recipe, phase)
    left = ""
    if rate and steps and step is not None:
        left = clock((steps - step) * tokens_per_step / rate)
    return Standing(
        recipe=recipe,
        phase=phase,
        job=job_id,
        state=state,
        reason=reason,
        nodes=nodes,
        step=None if step is None else int(step),
        steps=steps,
        tokens_per_second=rate,
        loss=figures.get("train/loss"),
        left=left,
        checkpoint=_age(checkpoints[-1]) if checkpoints else "",
    )


def _fresh_heartbeat(run: RunFolder) -> Heartbeat | None:
    try:
        age = time.time() - heartbeat_file(run, 0).stat().st_mtime
    except OSError:  # the rank has ended
        return None
    return read_heartbeat(run) if age < _FRESH_SECONDS else None


def _age(checkpoint: Path) -> str:
    return f"{checkpoint.name}, {clock(time.time() - checkpoint.stat().st_mtime)} ago"


def _size(recipe_file: Path, name: str, phase: PhaseName) -> tuple[int | None, int]:
    """How many steps the phase has, and how many tokens a step."""
    try:
        recipe = load_recipe(recipe_file)
    except AzNeoBertError:
        return None, 0
    if recipe.name != name:
        return None, 0
    settings = recipe.phase(phase)
    return settings.steps, settings.global_batch * settings.sequence_length


def _last_figures(points: Path) -> dict[str, float]:
    """The last value of each figure of training, and the last step."""
    try:
        with points.open("rb") as file:
            file.seek(max(0, points.stat().st_size - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    figures: dict[str, float] = {}
    for line in lines:
        try:
            point = decode_point(line)
        except (ValueError, RecursionError):  # the first and the last line may be incomplete
            continue
        figures |= point["values"] | {"step": point["step"]}
    return figures
