"""Run each check in a process of its own with a time limit, so that a hang or crash does not end the others.

A thread would not do: a library may crash, or hang while it holds the interpreter. A process can still be ended.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from azneobert.doctor.finding import Finding, Findings, Subject, problem
from azneobert.environment import end_with_parent
from azneobert.errors import AzNeoBertError
from azneobert.printable import os_error_line, printable

_SECONDS_TO_TIDY = 2.0  # between the request to end and the kill


@dataclass(frozen=True)
class Check:
    """A check of one area, and how long it may take."""

    area: str
    look: Callable[[Subject], Findings]
    seconds: float = 20.0


def examine(checks: tuple[Check, ...], subject: Subject) -> Findings:
    """What the checks find. They run one after the other, so that other work does not disturb the disk's speed."""
    for check in checks:
        with closing(_bounded(check, subject)) as findings:
            for found in findings:
                remedy = printable(found.remedy) if found.remedy else None
                yield replace(found, area=check.area, found=printable(found.found), remedy=remedy)


def _bounded(check: Check, subject: Subject) -> Findings:
    context = multiprocessing.get_context("fork")  # the check sees this process as it is
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_look, args=(check, subject, sending), name=check.area)
    child.start()
    end = time.monotonic() + check.seconds
    with suppress(OSError):  # so that the check's children end with it; parent and child both try this
        os.setpgid(child.ident or 0, child.ident or 0)
    sending.close()
    try:
        while True:
            if not receiving.poll(max(0.0, end - time.monotonic())):
                yield problem(
                    f"no answer within {check.seconds:.0f} s",
                    "look whether a file system or a server that it names is away, and try again",
                )
                return
            try:
                yield receiving.recv()
            except EOFError:
                break
        child.join(_SECONDS_TO_TIDY)
        if child.exitcode:
            by = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"exit code {child.exitcode}"
            yield problem(f"the check itself was ended, {by}", "install anew what it looks at: a library crashes")
    finally:
        _end(child)
        receiving.close()


def _end(child: BaseProcess) -> None:
    """End a check and its children. A check that hangs on a dead file system cannot be ended, so do not wait for it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(child.ident or 0, number)
            child.join(_SECONDS_TO_TIDY)


def _look(check: Check, subject: Subject, sending: Connection) -> None:
    with suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the check removes what it has made
    end_with_parent(signal.SIGTERM)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):  # libraries print while they are imported
        os.dup2(nothing, descriptor)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until this process ends
    try:
        with closing(check.look(subject)) as findings:
            for found in findings:
                sending.send(found)
    except AzNeoBertError as error:
        sending.send(problem_of(error))
    except OSError as error:
        sending.send(problem(os_error_line(error), "expected a file system that can be read and written"))
    except Exception as error:  # after any error, the other checks go on
        said = next(iter(str(error).splitlines()), "")
        sending.send(problem(f"the check failed: {type(error).__name__}: {said[:300]}", "report it as a bug"))
    sending.close()
    os._exit(0)  # do not wait for threads of libraries


def problem_of(error: AzNeoBertError, remedy: str = "see README.md") -> Finding:
    """The problem that an error states. The end of the error's message is the remedy."""
    found, _, stated = str(error).partition("; ")
    return problem(found, stated or remedy)
