"""Which kinds of tasks there are, by name."""

from __future__ import annotations

from azneobert.finetuning.kinds.choice import Choice
from azneobert.finetuning.kinds.interface import Kind
from azneobert.finetuning.kinds.texts import Regression, Texts
from azneobert.finetuning.kinds.tokens import Tokens
from azneobert.task_settings import TaskKind

_KINDS: dict[TaskKind, Kind] = {
    "classification": Texts(),
    "pairs": Texts(),
    "regression": Regression(),
    "tokens": Tokens(),
    "choice": Choice(),
}


def kind_of(name: TaskKind) -> Kind:
    """The kind of that name."""
    return _KINDS[name]
