"""What is known of a run: how it is called and described, and which run of MLflow's it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """What a run is called and described by; sent once, when the run is made."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def read_run_id(folder: Path) -> str | None:
    """The MLflow run of a tracking folder, or None while MLflow has not answered yet."""
    found = read_run(folder)
    return found["run_id"] if found else None


def read_run(folder: Path) -> dict[str, Any]:
    """`run_id`, and whether MLflow has its parameters and tags (`described`); empty while there is no run."""
    file = folder / "run.json"
    return {"described": True, **json.loads(file.read_text())} if file.exists() else {}


def flat_params(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, which is what MLflow's tables compare."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flat_params(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
