"""Ctrl-C in a stage is one line that says what is kept. Imported before anything slow, so that it holds at once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

_KEPT = {
    "ingest": "what it has read so far is kept",
    "tokens": "the parts that it has tokenized are kept",
}
_OTHERS = "what the stages before it have made is kept, this one starts again"


def say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line instead of a traceback on Ctrl-C, wherever in the stage it comes; other errors as usual."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    stage = Path(sys.argv[0]).stem
    words = " ".join([stage, *sys.argv[1:]])
    print(f"{words}: interrupted; {_KEPT.get(stage, _OTHERS)}. `dvc repro` goes on", file=sys.stderr, flush=True)


sys.excepthook = say_interrupted
