"""Which tensors of two checkpoints differ, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from azneobert.checkpoint.tensors import shapes_of
from azneobert.checkpoint.universal import KINDS, TrainState


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same in both: how many elements differ, the largest difference, or what is amiss."""

    kind: str
    name: str
    elements: int
    differing: int
    largest: float
    amiss: str = ""


def compare_states(one: TrainState, other: TrainState) -> Iterator[Difference]:
    """Every tensor that differs; a NaN equals a NaN. Tensors are read one pair at a time."""
    for kind in (*KINDS, "buffers"):
        yield from _compare(kind, getattr(one, kind), getattr(other, kind))


def _compare(kind: str, one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> Iterator[Difference]:
    here, there = shapes_of(one), shapes_of(other)
    for name in here | there:
        shape = here.get(name, there.get(name, ()))
        elements = torch.Size(shape).numel()
        if name not in here or name not in there:
            yield Difference(kind, name, elements, elements, float("nan"), f"only in {'A' if name in here else 'B'}")
        elif here[name] != there[name]:
            amiss = f"{list(here[name])} in A, {list(there[name])} in B"
            yield Difference(kind, name, elements, elements, float("nan"), amiss)
        else:
            a, b = one[name], other[name]
            same = (a == b) | (a.isnan() & b.isnan())
            if not bool(same.all()):
                gap = (a.double() - b.double()).abs()[~same]
                yield Difference(kind, name, elements, int((~same).sum()), float(gap.nan_to_num(float("inf")).max()))


def read_through(state: TrainState) -> int:
    """Read every tensor once, so that a lazy checkpoint checks the parts it is made of; returns their number.

    Raises:
        CheckpointError: parts of it do not fit each other.
    """
    return sum(
        1 for kind in (*KINDS, "buffers") for name in getattr(state, kind) if getattr(state, kind)[name] is not None
    )
