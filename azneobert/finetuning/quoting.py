"""What a message quotes of somebody's data: short, and on one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def shown(value: Any) -> str:
    """A value in a message: containers by their kind, anything else as JSON."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return one_line(json.dumps(value, ensure_ascii=False, default=str))


def listed(names: Iterable[str]) -> str:
    """Names in a message, the first few hundred letters of them."""
    return one_line(", ".join(names), 300) or "none"


def one_line(text: object, length: int = 60) -> str:
    """A name or a value that a file holds may have line ends, halves of surrogate pairs, or very much in it."""
    return " ".join(str(text).split())[:length].encode(errors="replace").decode()
