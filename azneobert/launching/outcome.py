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
    """How a phase ended, and at which step. It failed if it left no outcome, or no checkpoint of the outcome's step."""

    state: Literal["complete", "stopped", "failed"]
    step: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a launcher's ranks have ended, with a line that explains it if the phase is not complete.

    A run that stopped or stalled is sound: a new start continues it.
    """

    state: Literal["complete", "stopped", "stalled", "failed"]
    line: str = ""


def read_outcome(folder: RunFolder) -> Outcome:
    """The outcome that the run in a folder has recorded, if its checkpoint of that step confirms it."""
    try:
        said = read_json(folder.outcome_file)
        state, step = said["state"], said["step"]
        manifest = read_manifest(folder.checkpoints / f"step-{step:08d}")
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return Outcome("failed")
    return Outcome(state, step) if manifest.step == step and state in ("complete", "stopped") else Outcome("failed")
