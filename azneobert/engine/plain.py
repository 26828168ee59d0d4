"""The plain engine: one process, or several with DistributedDataParallel; every rank holds the whole state."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from azneobert.checkpoint.universal import TrainState
from azneobert.data.stream import PackedBatch
from azneobert.engine.guard import UpdateGuard
from azneobert.engine.interface import world_of
from azneobert.engine.micro_batches import MicroBatches, Weights
from azneobert.engine.optim import build_optimizer
from azneobert.engine.staging import Staging
from azneobert.engine.state import described_groups, persistent_buffers, take_over_model, tied_parameters
from azneobert.engine.weights import deliver
from azneobert.model.encoder import MaskedLM
from azneobert.recipe import Guards, Runtime, Training


class PlainEngine:
    """See `Engine`."""

    def __init__(
        self,
        model: MaskedLM,
        training: Training,
        runtime: Runtime,
        accelerator: Accelerator,
        accumulation: int,
        guards: Guards,
    ):
        self.world = world_of(accelerator)
        self.model = model.to(self.world.device)
        self.accumulation = accumulation
        self._clip_norm = training.clip_norm
        self._micro_batches = MicroBatches(self.model, runtime, self.world.device, accumulation)
        weights = Weights(self.model)
        # The model's buffers never change and are the same on every rank. DDP would send rank 0's at every step.
        constant = [name for name, _ in weights.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(weights, constant)
        self._weights = accelerator.prepare_model(weights)
        self._optimizer = build_optimizer(self.model, training)
        self.guard = UpdateGuard(guards, self.world.device, self.world.size)
        if self.world.size > 1:
            self._settle_buckets()

    def _settle_buckets(self) -> None:
        """Make DDP lay out its buckets in their final order by a backward pass of zeros: a resumed run needs it.

        After the first backward pass DDP assigns gradients to buckets again, in the order in which they came. The place
        of a gradient decides in which order the ranks' values are added: (a + b) + c or (b + c) + a. From three ranks
        on, the first step after a start would add in another order than the same step of an uninterrupted run.
        """
        made = self._weights(None)
        deliver([torch.zeros_like(weight) for weight in made.values()], made).backward()
        self._optimizer.zero_grad()

    def step(
        self, micro_batches: Iterator[PackedBatch], rate: float, *, repeat: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Engine.step`."""
        total, delivery = self._micro_batches.run(self._weights(None), micro_batches, repeat=repeat)
        delivery.backward()
        if self.world.size > 1:
            dist.all_reduce(total)
            total /= self.world.size
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        withheld = self.guard.judge(total, norm, self._micro_batches.differing)
        self._optimizer.withheld = lambda: withheld
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total, norm

    def probe(self, batch: PackedBatch) -> tuple[float, float]:
        """See `Engine.probe`."""
        return self._micro_batches.probe(batch, self.world.size)

    def stage(self) -> Staging | None:
        """See `Engine.stage`."""
        if not self.world.is_main:
            return None
        return Staging.allocate({name: p.shape for name, p in self.model.named_parameters()}, self.world.device)

    def gather(self, staging: Staging | None = None) -> TrainState | None:
        """See `Engine.gather`."""
        if not self.world.is_main:
            return None
        staging = staging or self.stage()
        assert staging is not None
        steps = set()
        for name, parameter in self.model.named_parameters():
            staging.views["weights"][name].copy_(parameter.detach(), non_blocking=True)
            moments = self._optimizer.state.get(parameter)
            if moments:
                steps.add(int(moments["step"]))
                for kind in ("exp_avg", "exp_avg_sq"):
                    staging.views[kind][name].copy_(moments[kind], non_blocking=True)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        assert len(steps) < 2
        return staging.state(
            steps.pop() if steps else 0,
            described_groups(self._optimizer),
            tied_parameters(self.model),
            persistent_buffers(self.model),
            self.guard.state(),
        )

    def scatter(self, state: TrainState) -> None:
        """See `Engine.scatter`."""
        take_over_model(self.model, state)
        self.guard.restore(state.guard)
        parameters = dict(self.model.named_parameters())
        self._optimizer.state.clear()
        # A fused optimizer keeps its step count on the device; the others keep it on the host.
        step_device = self.world.device if self._optimizer.defaults["fused"] else torch.device("cpu")
        for name in state.exp_avg:
            self._optimizer.state[parameters[name]] = {
                "step": torch.tensor(float(state.optimizer_step), device=step_device),
                "exp_avg": state.exp_avg[name].to(self.world.device, copy=True),
                "exp_avg_sq": state.exp_avg_sq[name].to(self.world.device, copy=True),
            }
