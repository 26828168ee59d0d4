"""Running checks: each in a process of its own, bounded in time, so that none that hangs or crashes ends the others.

A process, and not a thread: a library that crashes or hangs while it holds the interpreter is ended all the same.
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

_SECONDS_TO_TIDY = 2.0  # from the request to end until the kill


@dataclass(frozen=True)
class Check:
    """What is looked at in one area, and how long that may take."""

    area: str
    look: Callable[[Subject], Findings]
    seconds: float = 20.0


def examine(checks: tuple[Check, ...], subject: Subject) -> Findings:
    """What the checks find, one after the other: the disk's speed is not measured beside other work."""
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
    with suppress(OSError):  # so that what it starts ends with it, whichever process comes here first
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
    """End a check and what it has started; one that waits for a dead file system cannot be ended, nor waited for."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(child.ident or 0, number)
            child.join(_SECONDS_TO_TIDY)


def _look(check: Check, subject: Subject, sending: Connection) -> None:
    with suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it has made is removed on the way out
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
    except Exception as error:  # whatever it is, the other checks go on
        said = next(iter(str(error).splitlines()), "")
        sending.send(problem(f"the check failed: {type(error).__name__}: {said[:300]}", "report it as a bug"))
    sending.close()
    os._exit(0)  # no library's threads are waited for


def problem_of(error: AzNeoBertError, remedy: str = "see README.md") -> Finding:
    """The problem that an error states, whose message ends with what to do."""
    found, _, stated = str(error).partition("; ")
    return problem(found, stated or remedy)
