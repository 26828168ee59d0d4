"""Measuring in a process of its own, so that its memory is that of the work and of nothing before it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What a function returned, how long it took (s), and the peak of its process's resident memory (bytes)."""

    result: Any
    seconds: float
    peak: int


def in_child(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Call a function of a module in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, function, arguments).result()


def private_bytes(pid: int) -> int:
    """The memory (bytes) that a process shares with no other process and no file: what this process alone costs."""
    private = total = anonymous = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if name in ("Private_Clean:", "Private_Dirty:"):
            private += int(rest[0])
        elif name == "Anonymous:":
            anonymous = int(rest[0])
        elif name == "VmFlags:":  # the last line of a mapping
            total += min(private, anonymous)
            private = anonymous = 0
    return total * 1024


def _measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    start = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - start
    # Not getrusage: its peak is at least what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return Measured(result, seconds, peak * 1024)


def forget(file: Path) -> None:
    """Drop a file from the page cache, so that the next reading comes from the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
