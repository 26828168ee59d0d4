"""What MLflow calls the figures of a point: its chart page sorts by name, and the training loss is to come first.

The page makes a section of the part of a name before its last slash, and sorts sections and charts by the alphabet.
So `train` holds only the loss, against steps and against tokens, and the other sections are named to sort after it.
The points themselves, DVC's numbers and wandb keep the names that training gives.
"""

from __future__ import annotations

from typing import Any

NAMING = 1  # a run whose points went to MLflow under other names gets all of them again under these
LOSS = "train/loss"
LOSS_BY_TOKENS = "train/loss_by_tokens"  # its steps are tokens: two phases, or two batch sizes, lie side by side

_TOKENS = "train/tokens"
_SECTIONS = {
    "train/optimizer": ("grad_norm", "lr", "tokens"),
    "train/speed": ("tokens_per_second", "mfu", "memory_gib", "loader_share"),
}
_NAMES = {f"train/{name}": f"{section}/{name}" for section, names in _SECTIONS.items() for name in names}
_PREFIXES = {"eval/": "validation/", "guards/": "train/guards/"}


def name_in_mlflow(name: str) -> str:
    """`eval/loss/news` as `validation/loss/news`; a name that is none of training's stays as it is."""
    for prefix, replacement in _PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return _NAMES.get(name, name)


def figures_in_mlflow(point: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Name, value and step of each figure of a point; the training loss twice, where the point has its tokens."""
    values = point["values"]
    figures = [(name_in_mlflow(name), value, point["step"]) for name, value in values.items()]
    if LOSS in values and _TOKENS in values:
        figures.append((LOSS_BY_TOKENS, values[LOSS], round(values[_TOKENS])))
    return figures
