"""Other programs that are asked something."""

from __future__ import annotations

import subprocess

from azneobert.errors import TrainingError


def ask(*command: str, seconds: float = 10.0) -> str:
    """What a program prints.

    Raises:
        TrainingError: it is not there, fails, or says nothing in time; the message holds its last line.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise TrainingError(f"{command[0]}: no answer within {seconds:.0f} s") from None
    except OSError as error:
        raise TrainingError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise TrainingError(f"{command[0]}: {said[-1].removeprefix(f'{command[0]}: ').removeprefix('fatal: ')}")
    return done.stdout.strip()
