"""Which samples, tokens and micro-batches a step has: pure arithmetic, defined only here.

It is separate from layout.py since it decides what a step computes, and the places of files do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from azneobert.recipe import Phase, check_division


@dataclass(frozen=True)
class Course:
    """From an optimizer step to samples and tokens.

    `first_sample` and `first_token` are where step 0 would lie if every step of the phase were as large as now. After
    100 steps of 8 rows, step 100 is at sample 800; with 16 rows from there on, `first_sample` is 800 - 100 x 16 = -800.
    """

    global_batch: int
    sequence_length: int
    first_sample: int = 0
    first_token: int = 0

    @classmethod
    def through(cls, phase: Phase, step: int, sample: int, token: int) -> Course:
        """The course of a phase that has seen `sample` samples and `token` tokens at a step."""
        size = phase.global_batch * phase.sequence_length
        first_sample, first_token = sample - step * phase.global_batch, token - step * size
        return cls(phase.global_batch, phase.sequence_length, first_sample, first_token)

    def samples(self, step: int) -> int:
        """The first sample of the step that follows this many steps."""
        return self.first_sample + step * self.global_batch

    def tokens(self, step: int) -> int:
        """The tokens trained on after this many steps."""
        return self.first_token + step * self.global_batch * self.sequence_length

    def steps(self, first: int, last: int) -> range:
        """The first sample of each step from `first` up to, and without, `last`."""
        return range(self.samples(first), self.samples(last), self.global_batch)


def divide_batch(global_batch: int, processes: int, max_micro_batch: int) -> tuple[int, int]:
    """The micro-batch (rows) and the number of accumulation steps that make up a global batch.

    The micro-batch is the largest that divides a process's share and does not exceed `max_micro_batch`.

    Raises:
        ValueError: the batch does not divide over the processes.
    """
    check_division(global_batch, processes)
    share = global_batch // processes
    micro_batch = next(size for size in range(min(share, max_micro_batch), 0, -1) if share % size == 0)
    return micro_batch, share // micro_batch
