"""The progress display of a run: a bar on a terminal, or a line from time to time in a log."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from azneobert.pace import Pace, time_stamp

_LINES_IN_A_LOG = 20


class Progress:
    """Loss, tokens per second and time left, on the main rank."""

    def __init__(self, name: str, steps: int, first_step: int, *, visible: bool):
        self._name = name
        self._steps = steps
        self._visible = visible
        self._console = Console(file=sys.stdout)
        self._bar: RichProgress | None = None
        if visible and self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("left {task.fields[left]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(name, total=steps, completed=first_step, figures="", left="?")
        self._pace = Pace()
        self._pace.reach(first_step)
        self._printed = first_step

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, figures: dict[str, float]) -> None:
        """Show the figures of a step."""
        text = f"loss {figures['train/loss']:.4f}  {figures['train/tokens_per_second']:,.0f} tokens/s"
        self._pace.reach(step)
        left = self._pace.left(step, self._steps)
        if self._bar:
            self._bar.update(self._task, completed=step, figures=text, left=left)
        elif self._visible and (step - self._printed >= self._steps / _LINES_IN_A_LOG or step == self._steps):
            self._printed = step
            print(f"{time_stamp()}  {self._name}  step {step}/{self._steps}  {text}  left {left}", flush=True)

    def validation(self, step: int, loss: float, accuracy: float) -> None:
        """Show a validation."""
        self.say(f"step {step}/{self._steps}  held-out loss {loss:.4f}  accuracy {accuracy:.1%}")

    def say(self, message: str) -> None:
        """Show a line."""
        if self._bar:
            self._bar.console.print(f"{self._name}  {message}", highlight=False, markup=False)
        elif self._visible:
            print(f"{time_stamp()}  {self._name}  {message}", flush=True)
