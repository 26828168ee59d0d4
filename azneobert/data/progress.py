"""The progress display of a long stage: a bar on a terminal, or a line from time to time in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from azneobert.pace import Pace, time_stamp
from azneobert.printable import printable

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows documents and bytes of the source that are done, out of `size` bytes if that is known."""

    def __init__(self, name: str, size: int | None):
        self._name = name
        self._size = size
        self._documents = 0
        self._bytes = 0
        self._pace = Pace()
        self._bar: RichProgress | None = None
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        console = Console(file=sys.stdout)
        if console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
            columns += [TextColumn("{task.fields[documents]:,} documents"), TimeElapsedColumn()]
            columns += [TextColumn("{task.fields[left]}")]
            self._bar = RichProgress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(name, total=size, documents=0, left="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance_to(self, documents: int, size: int | None) -> None:
        """Set how many documents and bytes are done in all."""
        self._documents = documents
        if size is not None:  # a resumed stage knows its documents before it knows their bytes
            self._bytes = size
            self._pace.reach(size)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._bytes, documents=documents, left=self._left().strip(", "))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            of = f" of {self._size / 1e6:,.0f}" if self._size else ""
            done = f"{documents:,} documents, {self._bytes / 1e6:,.0f}{of} MB{self._left()}"
            print(f"{time_stamp()}  {self._name}: {done}", flush=True)

    def advance(self, documents: int, size: int) -> None:
        """Add documents and bytes that are done."""
        self.advance_to(self._documents + documents, self._bytes + size)

    def say(self, message: str) -> None:
        """Print a line that stays above the bar."""
        message = printable(message)
        if self._bar is not None:
            self._bar.console.print(message, highlight=False, markup=False, soft_wrap=True)
        else:
            print(message, flush=True)

    def _left(self) -> str:
        return f", left {self._pace.left(self._bytes, self._size)}" if self._size else ""
