"""A folder of checkpoints: each appears by one rename, `latest` moves after it, and the oldest go last."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from contextlib import suppress
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
_POINTER = ".latest"  # what `latest` will say

# Errors that may pass while a run goes on: somebody makes room, a file system comes back.
_PASSING = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "ENETDOWN", "ENETUNREACH")
}


class DiskError(CheckpointError):
    """The disk does not take a checkpoint now; later it may."""


class CheckpointFolder:
    """Checkpoints of one run: the newest `keep`, and for ever those at multiples of `keep_every` steps (0: none)."""

    def __init__(self, path: Path, keep: int, keep_every: int = 0):
        self.path = path
        self.keep = keep
        self.keep_every = keep_every

    def publish(self, state: TrainState, manifest: Manifest, tokenizer: Path) -> Path:
        """Write a checkpoint beside the others, rename it into place, move `latest`, then drop the oldest.

        Raises:
            DiskError: the disk is full, read-only or away.
            CheckpointError: it cannot be written; the earlier ones are kept, and the half-written one is removed.
        """
        from azneobert.checkpoint.finite import finite_only
        from azneobert.checkpoint.universal import bytes_needed, write_checkpoint

        target = self.path / f"{_PREFIX}{manifest.step:08d}"
        partial = self.path / f"{_PARTIAL}{target.name}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                self.remove_partials()
                if target.is_symlink() or (target.exists() and (not target.is_dir() or _must_stay(target))):
                    raise CheckpointError(f"{target}: is there, and stays; move it away, or use another folder")
                partial.mkdir()
                write_checkpoint(partial, finite_only(state, target), manifest, tokenizer)
                self._prepare_latest(target.name, partial)
                if target.exists():
                    shutil.rmtree(target)
                partial.rename(target)
                self._move_latest()
                # Newer checkpoints are damaged: the run would have resumed from a whole one.
                steps = self._readable()
                old = [
                    folder
                    for folder in steps[: steps.index(target) + 1][: -self.keep]
                    if not self._is_milestone(folder)
                ]
                for folder in (*steps[steps.index(target) + 1 :], *old):
                    shutil.rmtree(folder)
        except CheckpointError:
            self._drop_half(partial)
            raise
        except OSError as error:
            self._drop_half(partial)
            reason = f"{target}: cannot be written: {error.strerror or error}"
            if error.errno not in _PASSING:
                raise CheckpointError(reason) from None
            raise DiskError(f"{reason}; it takes {bytes_needed(state) / 1e6:,.1f} MB{self._free()}") from None
        return target

    def steps(self) -> list[Path]:
        """The published checkpoints, oldest first, whole or not. Files and links do not count, whatever their names."""
        found = [folder for folder in self.path.glob(f"{_PREFIX}*") if folder.name.removeprefix(_PREFIX).isdecimal()]
        return sorted((folder for folder in found if folder.is_dir() and not folder.is_symlink()), key=_number)

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
        """Remove all but the newest `keep` whole checkpoints and the milestones; returns what was removed.

        Damaged ones are removed too, if a whole one stays.

        Raises:
            CheckpointError: there is no whole checkpoint, so nothing may go.
        """
        if not self.path.is_dir():
            raise CheckpointError(
                f"{self.path}: holds no whole checkpoint, so nothing is removed; expected one or more"
            )
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
                raise CheckpointError(
                    f"{self.path}: holds no whole checkpoint, so nothing is removed; expected one or more"
                )
            staying += [folder for folder in self.steps() if self._is_milestone(folder)]
            removed = [folder for folder in self._readable() if folder not in (*whole, *staying)]
            self._prepare_latest(whole[0].name, whole[0])
            self._move_latest()
            for folder in removed:
                shutil.rmtree(folder)
            self.remove_partials()
        return removed

    def check_room(self, size: int, milestones: int = 0) -> None:
        """Check that there is room for as many checkpoints of `size` bytes as are kept, and one more.

        milestones: how many checkpoints are still to come that are kept for ever.

        Raises:
            CheckpointError: the disk is too full, or the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK, effective_ids=True):
            raise CheckpointError(f"{self.path}: no permission to write there; allow it")
        try:
            with locked(self.path):  # now, and not hours later at the first save
                pass
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be locked ({error.strerror}); use a file system with locks"
            ) from None
        kept = [folder for folder in self._readable() if not self._is_milestone(folder)]
        missing = max(1, self.keep + 1 - len(kept)) + milestones
        free, needed = shutil.disk_usage(self.path).free, missing * size
        if free < needed:
            raise CheckpointError(
                f"{self.path}: {free / 1e9:.1f} GB are free, {missing} checkpoints take {needed / 1e9:.1f} GB; "
                "free some, lower runtime.keep_checkpoints, or raise runtime.keep_every"
            )

    def remove_partials(self) -> None:
        """Remove what a killed writer left."""
        for partial in self.path.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial)

    def _drop_half(self, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            (self.path / _POINTER).unlink()

    def _is_milestone(self, folder: Path) -> bool:
        return self.keep_every > 0 and _number(folder) > 0 and _number(folder) % self.keep_every == 0

    def _free(self) -> str:
        try:
            return f", {shutil.disk_usage(self.path).free / 1e6:,.1f} MB are free"
        except OSError:
            return ""

    def _readable(self) -> list[Path]:
        """The published checkpoints except those that must stay, which are neither counted nor removed."""
        return [folder for folder in self.steps() if not _must_stay(folder)]

    def _verified(self, folder: Path) -> Manifest:
        manifest = verify_checkpoint(folder)
        if manifest.step != _number(folder):
            raise CheckpointError(f"{folder}: its manifest is of step {manifest.step}; use another checkpoint")
        return manifest

    def _prepare_latest(self, name: str, folder: Path) -> None:
        """Write what `latest` will say before the checkpoint has its name, while a full disk can still be refused.

        Only renames follow, which take no room: once the checkpoint has its name, `latest` can name it too.
        """
        pointer = self.path / _POINTER
        pointer.write_text(f"{name} {sha256_file(folder / MANIFEST)}\n")
        sync(pointer)

    def _move_latest(self) -> None:
        sync(self.path)  # the rename of the checkpoint is durable before anything points at it
        (self.path / _POINTER).replace(self.path / "latest")
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
    """Publishes checkpoints in a thread, one at a time, from host memory that nobody else touches meanwhile.

    A write that the disk does not take is tried again every `retry_seconds`, until the next checkpoint takes its place,
    or for `patience_seconds` if somebody waits for it. So a run goes on while the disk is full.
    """

    def __init__(self, folder: CheckpointFolder, *, retry_seconds: float = 30.0, patience_seconds: float = 60.0):
        self._folder = folder
        self._retry_seconds = retry_seconds
        self._patience_seconds = patience_seconds
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._until = 0.0  # when to give up, once `_hurry` is set
        self._hurry = threading.Event()

    def submit(self, state: TrainState, manifest: Manifest, tokenizer: Path) -> None:
        """Begin to write; call `make_way` first if the state uses the memory of the one before."""
        self.make_way()
        self._hurry.clear()
        self._thread = threading.Thread(target=self._publish, args=(state, manifest, tokenizer), name="checkpoint")
        self._thread.start()

    def make_way(self) -> None:
        """Wait until the last submitted checkpoint is no longer being written; if the disk refuses it, it is dropped.

        Raises:
            CheckpointError: it could not be written for another reason.
        """
        self._end(0.0)
        if isinstance(self._error, DiskError):
            self._error = None
        self.check()

    def wait(self) -> None:
        """Wait until the last submitted checkpoint is written.

        Raises:
            CheckpointError: it could not be written.
        """
        self._end(self._patience_seconds)
        if self._error is not None:
            raise self._error

    def check(self) -> None:
        """Raise the error of the last write, unless the write is tried again."""
        if self._error is not None and not isinstance(self._error, DiskError):
            raise self._error

    def _end(self, patience: float) -> None:
        if self._thread is not None:
            self._until = time.monotonic() + patience
            self._hurry.set()
            self._thread.join()
            self._thread = None

    def _publish(self, state: TrainState, manifest: Manifest, tokenizer: Path) -> None:
        # Hashing and writing take whole cores, of which the training comes first; threads inherit the priority.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            try:
                self._folder.publish(state, manifest, tokenizer)
                if self._error is not None:
                    log.warning("step %d: the checkpoint is written now", manifest.step)
                self._error = None
                return
            except DiskError as error:
                if self._error is None:
                    log.warning("%s; the training goes on, and this is tried again", error)
                self._error = error
            except Exception as error:  # any error: a thread that ends silently would lose checkpoints
                self._error = error
                return
            if self._hurry.wait(self._retry_seconds):
                if time.monotonic() >= self._until:
                    return
                time.sleep(min(1.0, self._retry_seconds))
