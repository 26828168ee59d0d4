"""Arrow's threads when the interpreter ends.

They read ahead, and free what they have read after its reader has been given up. A thread of Arrow's that calls
Python, or frees one of its objects, while the interpreter ends aborts the process: "terminate called without an active
exception", exit code 134, after whatever has just been printed. Arrow cannot be asked to wait for its threads.
"""

from __future__ import annotations

import atexit
import gc
import sys
import threading
import time
from functools import cache
from pathlib import Path

_LONGEST = 5.0  # seconds
_PAUSE = 0.005  # seconds, between two looks; a thread that waits for the interpreter gets it in less
_TASKS = Path("/proc/self/task")


@cache
def settle_at_exit() -> None:
    """Let the interpreter's end wait for Arrow's threads, from now on."""
    atexit.register(settle)


def settle(longest: float = _LONGEST) -> bool:
    """Wait until each thread that is not Python's sleeps, outside of Python's code.

    Only Linux tells what threads do. Elsewhere it waits for a moment.

    Returns:
        False if they did not all sleep within `longest` seconds.
    """
    gc.collect()  # a reader in a circle of references would let go of its file later
    if not _TASKS.exists():
        time.sleep(40 * _PAUSE)
        return True
    end, before = time.monotonic() + longest, None
    while time.monotonic() < end:
        now = _others()
        if now is not None and now == before:
            return True
        before = now
        time.sleep(_PAUSE)
    return False


def _others() -> dict[str, str] | None:
    """How often each thread that is not Python's has given its core away; None if one runs or is in Python's code."""
    # Python makes a `_DummyThread` for a thread of another's that asks for its name.
    python = [t for t in threading.enumerate() if not isinstance(t, threading._DummyThread)]
    if set(sys._current_frames()) - {thread.ident for thread in python}:
        return None
    own = {str(thread.native_id) for thread in python}
    others = {}
    for task in _TASKS.iterdir():
        if task.name in own:
            continue
        try:
            status = (task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        if "State:\tS" not in status:
            return None
        others[task.name] = status[status.index("voluntary_ctxt_switches") :]
    return others
