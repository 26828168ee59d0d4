"""Quotes from a user's data in messages: short, and on one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def shown(value: Any) -> str:
    """A value for a message: the type of a container, anything else as JSON."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return one_line(json.dumps(value, ensure_ascii=False, default=str))


def listed(names: Iterable[str]) -> str:
    """Names in a message, the first few hundred letters of them."""
    return one_line(", ".join(names), 300) or "none"


def one_line(text: object, length: int = 60) -> str:
    """A text from a file on one line: it may have line ends, halves of surrogate pairs, or be very long."""
    return " ".join(str(text).split())[:length].encode(errors="replace").decode()
