"""A file of trainings, one line of JSON each. Every call adds to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from azneobert.errors import AzNeoBertError
from azneobert.files import parse_json, read_bounded, sha256_of_json, write_whole
from azneobert.locks import locked

_LARGEST = 64 << 20  # bytes


@dataclass(frozen=True)
class Done:
    """A training that has ended. `settings` decide its numbers, and are those of every training of a file.

    `held_out_loss` is None where it was not finite. `division` is the number of micro-batches of a step.
    """

    variant: str
    seed: int
    division: int
    model: str
    fingerprint: str
    settings: dict[str, Any]
    commit: str
    card: str
    kernels: str
    steps: int
    held_out_loss: float | None
    seconds: float


class TrainingsFile:
    """The trainings of one file, all of the same settings."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.settings = settings

    def read(self) -> list[Done]:
        """What the file holds; nothing where there is none.

        Raises:
            AzNeoBertError: it holds something else, or trainings of other settings.
        """
        try:
            lines = read_bounded(self.path, _LARGEST).splitlines()
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise AzNeoBertError(f"{self.path}: {error}; expected a file of trainings, or a new name") from None
        return [self._parsed(number, line) for number, line in enumerate(lines, start=1)]

    def add(self, done: Done) -> None:
        """Append a training. A reader sees the file either without the new line or with all of it.

        Raises:
            AzNeoBertError: as `read`.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            lines = [json.dumps(asdict(one), allow_nan=False) for one in (*self.read(), done)]
            write_whole(self.path, "".join(f"{line}\n" for line in lines).encode())

    def _parsed(self, number: int, line: bytes) -> Done:
        try:
            found = parse_json(line)
            if not isinstance(found, dict) or found.keys() != {field.name for field in fields(Done)}:
                raise ValueError("not the fields of a training")
            done = Done(**found)
            typed = isinstance(done.seed, int) and isinstance(done.variant, str) and isinstance(done.settings, dict)
            if not typed or not isinstance(done.held_out_loss, float | None):
                raise ValueError("a field is not of its type")
        except ValueError as error:
            raise AzNeoBertError(
                f"{self.path}: line {number}: {error}; expected a file of trainings: remove the line, or use a new file"
            ) from None
        if done.settings != self.settings:
            keys = sorted({*done.settings, *self.settings})
            other = next(key for key in keys if done.settings.get(key) != self.settings.get(key))
            raise AzNeoBertError(
                f"{self.path}: line {number} was trained with {other} {done.settings.get(other)}, this call has "
                f"{self.settings.get(other)}; use the same settings, or another --results"
            )
        return done


def fingerprint(settings: dict[str, Any]) -> str:
    """A short name of settings."""
    return sha256_of_json(settings)[:12]
