"""A folder of checkpoints: each appears by one rename, `latest` moves after it, and the oldest go last."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.checkpoint.manifest import MANIFEST, Manifest, UnreadableError, read_manifest, verify_checkpoint
from azneobert.errors import CheckpointError
from azneobert.files import sha256_file, sync
from azneobert.locks import locked

if TYPE_CHECKING:
    from azneobert.checkpoint.universal import TrainState

log = logging.getLogger(__name__)

_PREFIX = "step-"
_PARTIAL = ".partial-"


class CheckpointFolder:
    """Checkpoints of one run, at most `keep` of them."""

    def __init__(self, path: Path, keep: int):
        self.path = path
        self.keep = keep

    def publish(self, state: TrainState, manifest: Manifest, tokenizer: Path) -> Path:
        """Write a checkpoint beside the others, rename it into place, move `latest`, then drop the oldest.

        Raises:
            CheckpointError: it cannot be written; what was there before still is, and the half of the new one is gone.
        """
        from azneobert.checkpoint.universal import write_checkpoint

        target = self.path / f"{_PREFIX}{manifest.step:08d}"
        partial = self.path / f"{_PARTIAL}{target.name}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                self.remove_partials()
                if target.exists() and _must_stay(target):
                    raise CheckpointError(f"{target}: is there, and stays; move it away, or use another folder")
                partial.mkdir()
                write_checkpoint(partial, state, manifest, tokenizer)
                if target.exists():
                    shutil.rmtree(target)
                partial.rename(target)
                self._point_latest(target)
                # What is newer is damaged: a whole one would have been resumed from.
                steps = self._readable()
                for folder in (*steps[steps.index(target) + 1 :], *steps[: steps.index(target) + 1][: -self.keep]):
                    shutil.rmtree(folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from None
        return target

    def steps(self) -> list[Path]:
        """The published checkpoints, oldest first, whole or not."""
        found = [folder for folder in self.path.glob(f"{_PREFIX}*") if folder.name.removeprefix(_PREFIX).isdecimal()]
        return sorted(found, key=_number)

    def latest(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning that says why.

        Raises:
            UnreadableError: a later version of this program has gone on from here, or the newest cannot be read.
        """
        for folder in reversed(self.steps()):
            try:
                return folder, self._verified(folder)
            except UnreadableError:
                raise
            except CheckpointError as error:
                log.warning("%s; trying the one before it", error)
        return None

    def prune(self) -> list[Path]:
        """Remove all but the newest `keep` whole checkpoints; what was removed. Damaged ones go, if a whole one stays.

        Raises:
            CheckpointError: there is no whole checkpoint, so nothing may go.
        """
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: holds no whole checkpoint; nothing is removed")
        with locked(self.path):
            whole: list[Path] = []
            staying: list[Path] = []
            for folder in reversed(self._readable()):
                try:
                    if len(whole) < self.keep:
                        self._verified(folder)
                        whole.append(folder)
                except UnreadableError as error:
                    log.warning("%s: kept", error)
                    staying.append(folder)
                except CheckpointError as error:
                    log.warning("%s", error)
            if not whole:
                raise CheckpointError(f"{self.path}: holds no whole checkpoint; nothing is removed")
            removed = [folder for folder in self._readable() if folder not in (*whole, *staying)]
            self._point_latest(whole[0])
            for folder in removed:
                shutil.rmtree(folder)
            self.remove_partials()
        return removed

    def check_room(self, size: int) -> None:
        """See to it that checkpoints of `size` bytes can be written as often as they are kept, and once more.

        Raises:
            CheckpointError: the disk is too full, or the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK, effective_ids=True):
            raise CheckpointError(f"{self.path}: no permission to write there")
        try:
            with locked(self.path):  # now, and not hours later at the first save
                pass
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be locked: {error.strerror}") from None
        missing = max(1, self.keep + 1 - len(self._readable()))
        free, needed = shutil.disk_usage(self.path).free, missing * size
        if free < needed:
            raise CheckpointError(
                f"{self.path}: {free / 1e9:.1f} GB are free, {missing} checkpoints take {needed / 1e9:.1f} GB; "
                "free some, or lower runtime.keep_checkpoints"
            )

    def remove_partials(self) -> None:
        """Remove what a killed writer left."""
        for partial in self.path.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial)

    def _readable(self) -> list[Path]:
        """The published checkpoints but those that must stay, which are neither counted nor removed."""
        return [folder for folder in self.steps() if not _must_stay(folder)]

    def _verified(self, folder: Path) -> Manifest:
        manifest = verify_checkpoint(folder)
        if manifest.step != _number(folder):
            raise CheckpointError(f"{folder}: its manifest is of step {manifest.step}; use another checkpoint")
        return manifest

    def _point_latest(self, target: Path) -> None:
        sync(self.path)  # the rename of the checkpoint is durable before anything points at it
        pointer = self.path / ".latest"
        pointer.write_text(f"{target.name} {sha256_file(target / MANIFEST)}\n")
        sync(pointer)
        pointer.replace(self.path / "latest")
        sync(self.path)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def _must_stay(folder: Path) -> bool:
    """Whether a checkpoint is of a newer format, or cannot be read: nobody can say that it is of no use."""
    try:
        read_manifest(folder)
    except UnreadableError as error:
        log.warning("%s: kept", error)
        return True
    except CheckpointError:
        return False
    return False


class BackgroundWriter:
    """Publishes checkpoints in a thread, one at a time, from host memory that nobody else touches meanwhile."""

    def __init__(self, folder: CheckpointFolder):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, state: TrainState, manifest: Manifest, tokenizer: Path) -> None:
        """Begin to write; `wait` first, if the state lies where the one before lay."""
        self.wait()
        self._thread = threading.Thread(target=self._publish, args=(state, manifest, tokenizer), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the last submitted checkpoint stands.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what the last writing failed with, if it has."""
        if self._error is not None:
            raise self._error

    def _publish(self, state: TrainState, manifest: Manifest, tokenizer: Path) -> None:
        # Hashing and writing take whole cores, of which the training comes first; threads inherit the priority.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            self._folder.publish(state, manifest, tokenizer)
        except Exception as error:  # whatever it is, a thread that ends without a word would lose checkpoints
            self._error = error
