"""What became of a phase: read from its folder, not from an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from azneobert.checkpoint.manifest import read_manifest
from azneobert.errors import CheckpointError
from azneobert.files import read_json
from azneobert.layout import RunFolder


@dataclass(frozen=True)
class Outcome:
    """How a phase ended, and at which step; a failed one has neither said so nor left a checkpoint of that step."""

    state: Literal["complete", "stopped", "failed"]
    step: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a launcher's ranks have ended, and the line that says so where the phase is not complete.

    A run that stopped, or stalled, is sound: a new start goes on.
    """

    state: Literal["complete", "stopped", "stalled", "failed"]
    line: str = ""


def read_outcome(folder: RunFolder) -> Outcome:
    """What the run in a folder says of its end, if the checkpoint of that step bears it out."""
    try:
        said = read_json(folder.outcome_file)
        state, step = said["state"], said["step"]
        manifest = read_manifest(folder.checkpoints / f"step-{step:08d}")
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return Outcome("failed")
    return Outcome(state, step) if manifest.step == step and state in ("complete", "stopped") else Outcome("failed")
