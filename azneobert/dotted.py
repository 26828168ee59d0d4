"""Nested settings as dotted keys, as tables compare them and messages name them."""

from __future__ import annotations

from typing import Any


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"hidden_size": 768}} as {"model.hidden_size": 768}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def differences(recorded: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """What differs between two trees, as "key: recorded there, present here"; nested keys are dotted."""
    there, here = flatten(recorded), flatten(present)
    return [
        f"{key}: {_short(there.get(key, 'nothing'))} there, {_short(here.get(key, 'nothing'))} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
