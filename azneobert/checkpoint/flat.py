"""ZeRO's flat groups: where each parameter lies among the partitions of the ranks.

ZeRO lays the parameters of an optimizer group end to end, pads them to a multiple of twice the world size and cuts them
into equal partitions, one a rank. So a parameter may straddle ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class FlatGroup:
    """One optimizer group as ZeRO lays it out: shapes by name in flat order, a gap after each, cut for `world` ranks.

    Gaps are zero unless `zero_optimization.parameter_alignment` was on.
    """

    shapes: dict[str, tuple[int, ...]]
    world: int
    gaps: tuple[int, ...] = ()

    @cached_property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Where each parameter begins in the flat group, and how many elements it has."""
        spans, start = {}, 0
        for number, (name, shape) in enumerate(self.shapes.items()):
            count = torch.Size(shape).numel()
            spans[name] = (start, count)
            start += count + (self.gaps[number] if self.gaps else 0)
        return spans

    @cached_property
    def numel(self) -> int:
        """Elements of the flat group before it is padded for the cut."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values()) + sum(self.gaps)

    @property
    def partition(self) -> int:
        """Elements of one rank's partition, padding included."""
        return -(-self.numel // (2 * self.world)) * 2

    def held(self, rank: int) -> int:
        """Elements of a rank's partition without the padding."""
        return min(max(self.numel - rank * self.partition, 0), self.partition)

    def pieces(self, name: str) -> Iterator[tuple[int, int, int, int]]:
        """Where a parameter lies: rank, offset in its partition, offset in the parameter, elements."""
        start, count = self.spans[name]
        done = 0
        while done < count:
            rank, offset = divmod(start + done, self.partition)
            size = min(count - done, self.partition - offset)
            yield rank, offset, done, size
            done += size


def cut(group: FlatGroup, tensors: Mapping[str, torch.Tensor], rank: int) -> torch.Tensor:
    """A rank's partition (group.partition,) of the flat group that these tensors make up; a missing one is zero."""
    partition = torch.zeros(group.partition)
    for name in group.shapes:
        mine = [piece for piece in group.pieces(name) if piece[0] == rank]
        if mine and name in tensors:
            flat = tensors[name].reshape(-1)
            for _, offset, start, size in mine:
                partition[offset : offset + size] = flat[start : start + size]
    return partition


def dealt(names: list[str], world: int) -> list[str]:
    """The order that `round_robin_gradients` makes: parameters dealt to the ranks like cards."""
    return [name for rank in range(world) for name in names[rank::world]]


def dealt_back(names: list[str], world: int) -> list[str]:
    """The order before `dealt`: its inverse."""
    before = dealt([str(number) for number in range(len(names))], world)
    return [name for _, name in sorted(zip(map(int, before), names, strict=True))]
