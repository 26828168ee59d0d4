"""Signals and stop files become one flag, on which all ranks agree before the loop acts on it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from azneobert.environment import EXIT_FORCED
from azneobert.environment import grace_seconds as grace_of_launcher

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether somebody asked the run to stop. A handler only sets the flag; a timer bounds what follows.

    The timer runs from the signal, or, in a rank without a signal, from the moment when all ranks agree.

    Use as a context manager; the former handlers come back on leaving.
    """

    def __init__(
        self,
        stop_file: Path,
        grace_seconds: float | None = None,
        *,
        hurry: Callable[[], None] = lambda: None,
        timeout: timedelta | None = None,
    ):
        """The default of `grace_seconds` is the launcher's; `hurry` is called as soon as a stop is requested.

        `timeout` is how long the ranks may take to agree; the default is torch's.
        """
        self._stop_file = stop_file
        self._grace_seconds = grace_of_launcher() if grace_seconds is None else grace_seconds
        self._hurry = hurry
        self._timeout = timeout
        self._asked = False
        self._timer: threading.Timer | None = None
        self._armed = threading.Lock()  # a signal may come while the timer is being made: there must be only one
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> StopRequest:
        self._former = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        if dist.is_initialized() and dist.get_world_size() > 1:
            # A group of its own on the host, so that agreeing never waits for a GPU.
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self._timer:
            self._timer.cancel()

    def agreed(self, alarm: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any sounds an alarm. Every rank must call this at a step."""
        asked = self._asked or self._stop_file.exists()
        if self._group is not None:
            flags = torch.tensor([int(asked), int(alarm)])
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
            asked, alarm = map(bool, flags.tolist())
        if asked:
            self._arm()
        return asked, alarm

    def gathered(self, said: Any) -> list[Any]:
        """What every rank has to say, by rank. Every rank must call this at the same step."""
        if self._group is None:
            return [said]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, said, group=self._group)
        return everyone

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._arm()

    def _arm(self) -> None:
        self._hurry()
        if self._armed.acquire(blocking=False):
            self._timer = threading.Timer(self._grace_seconds, os._exit, [EXIT_FORCED])
            self._timer.daemon = True
            self._timer.start()
