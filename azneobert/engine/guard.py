"""Every update is judged before it is made, on the device: is it finite, and is it like those before it?

The host learns of the verdict a step or two later, when the copy of it has arrived: nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from azneobert.recipe import Guards

# The standard deviation of a normal distribution is its median absolute deviation times this.
_DEVIATION_OF_MAD = 1.4826
# Smaller deviations count as these: of the loss in nats, of the gradient norm as a ratio (its logarithm is judged).
# Otherwise a run that has memorised its few rows would have a spike at every step.
_SMALLEST_DEVIATIONS = (0.02, 0.05)


@dataclass(frozen=True)
class Judgement:
    """What the device found out about one step. Scores are 0 until the window of steps before it is full.

    `differing` counts values of a micro-batch that were not the same to the last bit when it was computed again.
    """

    step: int
    withheld: bool
    in_a_row: int
    loss: float
    grad_norm: float
    loss_score: float
    norm_score: float
    differing: int

    @property
    def score(self) -> float:
        """How far out of the ordinary the step is, in robust standard deviations."""
        return max(self.loss_score, self.norm_score)


class UpdateGuard:
    """Withholds an update that is not finite and, if the recipe skips spikes, one that is a spike.

    The scores are robust z-scores of the loss and of the logarithm of the gradient norm against the last
    `spike_window` steps whose figures were finite: the distance from the median over the median absolute deviation.
    After losses of 5.0, 5.1, 4.9, 5.0, 5.2 (median 5.0, deviation 1.4826 x 0.1) one of 6.5 has score 10.
    """

    def __init__(self, settings: Guards, device: torch.device, world_size: int):
        self._settings = settings
        self._device = device
        self._world_size = world_size
        self._deviations = torch.tensor(_SMALLEST_DEVIATIONS, dtype=torch.float64, device=device)
        self._judgement = torch.zeros(7, dtype=torch.float64, device=device)
        self._window: torch.Tensor  # (2, spike_window) fp64: losses and logarithms of norms, the newest last
        self._seen: torch.Tensor
        self._in_a_row: torch.Tensor
        self.restore({})

    def judge(self, loss: torch.Tensor, norm: torch.Tensor, differing: torch.Tensor | None = None) -> torch.Tensor:
        """Whether to withhold the update of a step: a scalar of bool, the same on every rank.

        loss, norm: scalars over all ranks.
        differing: see `Judgement`, of this rank.
        """
        figures = torch.stack([loss.detach().double(), norm.detach().double()])
        finite = figures.isfinite().all()
        measured = torch.stack([figures[0], figures[1].clamp(min=1e-300).log()])
        scores = self._scores(measured, finite)
        spike = (scores > self._settings.spike_score).any()
        withheld = ~finite | spike if self._settings.on_spike == "skip" else ~finite
        if self._world_size > 1:  # their figures are equal, but an update on one rank alone would ruin the run
            agreed = withheld.float()
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
            withheld = agreed.bool()
        self._window = torch.where(finite, torch.cat([self._window[:, 1:], measured[:, None]], dim=1), self._window)
        self._seen = self._seen + finite
        self._in_a_row = (self._in_a_row + 1) * ~finite
        found = torch.zeros_like(self._in_a_row) if differing is None else differing
        self._judgement = torch.cat([torch.stack([withheld, self._in_a_row, found]).double(), figures, scores])
        return withheld

    def _scores(self, measured: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
        middle = self._settings.spike_window // 2
        medians = self._window.sort(dim=1).values[:, middle : middle + 1]
        deviations = (self._window - medians).abs().sort(dim=1).values[:, middle]
        scores = (measured - medians[:, 0]) / (_DEVIATION_OF_MAD * deviations).maximum(self._deviations)
        return torch.where(finite & (self._seen >= self._settings.spike_window), scores, 0.0)

    @property
    def judgement(self) -> torch.Tensor:
        """The last verdict, (7,) fp64 on the device: what `Judgements` brings to the host."""
        return self._judgement

    def state(self) -> dict[str, Any]:
        """The window, as a checkpoint keeps it, so that a resumed run judges as the uninterrupted one does."""
        seen = min(int(self._seen), self._settings.spike_window)
        if not seen:
            return {}
        losses, norms = self._window[:, -seen:].tolist()
        return {"losses": losses, "log_norms": norms, "in_a_row": int(self._in_a_row)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a window; if its length differs, the newest entries that fit. An empty state is a fresh start."""
        length = self._settings.spike_window
        window = torch.zeros(2, length, dtype=torch.float64)
        seen = 0
        if state:
            found = torch.tensor([state["losses"], state["log_norms"]], dtype=torch.float64)[:, -length:]
            seen = found.shape[1]
            window[:, length - seen :] = found
        self._window = window.to(self._device)
        self._seen = torch.tensor(seen, device=self._device)
        self._in_a_row = torch.tensor(state.get("in_a_row", 0), device=self._device)


class Judgements:
    """Verdicts on their way to the host, in the order of their steps."""

    def __init__(self) -> None:
        self._under_way: list[tuple[int, torch.Tensor, torch.cuda.Event | None]] = []

    def add(self, step: int, judgement: torch.Tensor) -> None:
        """Begin to copy a verdict; the device goes on."""
        if judgement.device.type != "cuda":
            self._under_way.append((step, judgement, None))
            return
        copy = torch.empty(judgement.shape, dtype=judgement.dtype, pin_memory=True)
        copy.copy_(judgement, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._under_way.append((step, copy, arrived))

    def arrived(self, *, wait: bool = False) -> Iterator[Judgement]:
        """The verdicts that have arrived, each once; with `wait`, all of them."""
        while self._under_way:
            step, values, event = self._under_way[0]
            if event is not None:
                if wait:
                    event.synchronize()
                elif not event.query():
                    return
            del self._under_way[0]
            withheld, in_a_row, differing, loss, norm, loss_score, norm_score = values.tolist()
            yield Judgement(
                step=step,
                withheld=bool(withheld),
                in_a_row=int(in_a_row),
                loss=loss,
                grad_norm=norm,
                loss_score=loss_score,
                norm_score=norm_score,
                differing=int(differing),
            )
