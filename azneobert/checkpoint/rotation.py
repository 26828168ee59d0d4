"""A folder of checkpoints: each appears by one rename, `latest` moves after it, and the oldest go last."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from azneobert.checkpoint.universal import Manifest, TrainState, verify_checkpoint, write_checkpoint
from azneobert.errors import CheckpointError

log = logging.getLogger(__name__)

_PREFIX = "step-"
_PARTIAL = ".partial-"


class CheckpointFolder:
    """Checkpoints of one run, at most `keep` of them."""

    def __init__(self, path: Path, keep: int):
        self.path = path
        self.keep = keep

    def publish(self, state: TrainState, manifest: Manifest, tokenizer: Path) -> Path:
        """Write a checkpoint beside the others, rename it into place, move `latest`, then drop the oldest."""
        target = self.path / f"{_PREFIX}{manifest.step:08d}"
        partial = self.path / f"{_PARTIAL}{target.name}"
        self.remove_partials()
        partial.mkdir(parents=True)
        write_checkpoint(partial, state, manifest, tokenizer)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        self._point_latest(target)
        # What is as new or newer is damaged: a whole one would have been resumed from.
        for damaged in self.steps()[self.steps().index(target) + 1 :]:
            shutil.rmtree(damaged)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def steps(self) -> list[Path]:
        """The published checkpoints, oldest first, whole or not."""
        found = [folder for folder in self.path.glob(f"{_PREFIX}*") if folder.name.removeprefix(_PREFIX).isdigit()]
        return sorted(found, key=lambda folder: int(folder.name.removeprefix(_PREFIX)))

    def latest(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning that says why."""
        for folder in reversed(self.steps()):
            try:
                return folder, verify_checkpoint(folder)
            except CheckpointError as error:
                log.warning("%s; trying the one before it", error)
        return None

    def remove_partials(self) -> None:
        """Remove what a killed writer left."""
        for partial in self.path.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial)

    def _point_latest(self, target: Path) -> None:
        pointer = self.path / ".latest"
        pointer.write_text(target.name + "\n")
        with pointer.open() as file:
            os.fsync(file.fileno())
        pointer.replace(self.path / "latest")
        descriptor = os.open(self.path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
