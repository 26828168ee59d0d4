"""The ZeRO-2 engine: Accelerate and DeepSpeed, each rank with the optimizer state of its share of the parameters.

Parameters and engine are fp32, and weights are cast where they are used, so that this engine computes what the plain
engine computes. State goes in and out through DeepSpeed's own flat partitions, one collective per group and kind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin

from azneobert.checkpoint.flat import FlatGroup, cut
from azneobert.checkpoint.foreign import MOMENTS
from azneobert.checkpoint.universal import TrainState
from azneobert.data.stream import PackedBatch
from azneobert.engine.guard import UpdateGuard
from azneobert.engine.interface import world_of
from azneobert.engine.micro_batches import MicroBatches, Weights
from azneobert.engine.optim import build_optimizer
from azneobert.engine.staging import Staging
from azneobert.engine.state import described_groups, persistent_buffers, take_over_model, tied_parameters
from azneobert.model.encoder import MaskedLM
from azneobert.recipe import Guards, Runtime, Training

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns at every import that it has found no other
import deepspeed
from deepspeed.runtime.zero import utils as zero_utils

_BUCKET = 50_000_000  # elements reduced at once; a bucket larger than the model only costs memory


def deepspeed_plugin(on_cpu: bool) -> DeepSpeedPlugin:
    """DeepSpeed's settings for the Accelerator, except batch sizes; without a launcher, this makes a world of one."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if on_cpu:
        # Gloo does as well on a CPU, without compiling an extension at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.pop("ACCELERATE_USE_CPU", None)  # with it, Accelerate leaves DeepSpeed out
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "0")  # of a world of one: any free port
    zero = {
        "stage": 2,
        "contiguous_gradients": True,
        # All gradients exist before the first of them goes to other ranks, so there is nothing to overlap with. If one
        # of these two is set, DeepSpeed makes the host wait for the GPU; `reduce_scatter` also copies each gradient
        # twice more, and sends the same data.
        "overlap_comm": False,
        "reduce_scatter": False,
        "round_robin_gradients": False,
        "compute_grad_norm": False,  # it reads the norm on the host: the engine computes and clips by itself
    }
    return DeepSpeedPlugin(
        hf_ds_config={
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,  # named, or Accelerate sets one
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "steps_per_print": float("inf"),
        }
    )


class Zero2Engine:
    """See `Engine`."""

    def __init__(
        self,
        model: MaskedLM,
        training: Training,
        runtime: Runtime,
        accelerator: Accelerator,
        micro_batch: int,
        accumulation: int,
        guards: Guards,
    ):
        self.world = world_of(accelerator)
        self.model = model.to(self.world.device)
        self.accumulation = accumulation
        self._clip_norm = training.clip_norm
        self._micro_batches = MicroBatches(self.model, runtime, self.world.device, accumulation)
        parameters = sum(p.numel() for p in model.parameters())
        config: dict[str, Any] = accelerator.deepspeed_plugin.deepspeed_config
        # To DeepSpeed a step is one micro-batch: its gradients come, and cross to other ranks, once.
        config["train_micro_batch_size_per_gpu"] = micro_batch * accumulation
        bucket = min(_BUCKET, parameters)
        config["zero_optimization"] |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        accelerator.deepspeed_engine_wrapped = None  # forget an earlier engine, which has its own backward
        self._optimizer = build_optimizer(self.model, training)
        # DeepSpeed knows AdamW; it would warn at every start about a class that it does not know.
        zero_utils.ZERO_SUPPORTED_OPTIMIZERS.append(type(self._optimizer))
        self._engine, _ = accelerator.prepare(Weights(self.model), self._optimizer)
        self._zero = self._engine.optimizer
        self.guard = UpdateGuard(guards, self.world.device, self.world.size)
        self._groups = self._flat_groups()

    def _flat_groups(self) -> list[FlatGroup]:
        """The layout that DeepSpeed made, in the order that it chose."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        zero = self._zero
        return [
            FlatGroup({names[p]: tuple(p.shape) for p in group}, self.world.size, tuple(gaps))
            for group, gaps in zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_padding, strict=True)
        ]

    def step(
        self, micro_batches: Iterator[PackedBatch], rate: float, *, repeat: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Engine.step`."""
        for group in self._zero.param_groups:
            group["lr"] = rate
        total, delivery = self._micro_batches.run(self._engine(None), micro_batches, repeat=repeat)
        if self.world.size > 1:
            dist.all_reduce(total)
            total /= self.world.size
        self._engine.backward(delivery)
        norm = self._clip()
        withheld = self.guard.judge(total, norm, self._micro_batches.differing)
        self._optimizer.withheld = lambda: withheld
        self._engine.step()
        return total, norm

    def _clip(self) -> torch.Tensor:
        """Clip the gradients by their norm over all ranks, as `clip_grad_norm_` does; returns the norm, a scalar."""
        gradients = [part for parts in self._zero.averaged_gradients.values() for part in parts]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.world.size > 1:
            squared = norm.square()
            dist.all_reduce(squared)
            norm = squared.sqrt()
        torch._foreach_mul_(gradients, (self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def probe(self, batch: PackedBatch) -> tuple[float, float]:
        """See `Engine.probe`."""
        return self._micro_batches.probe(batch, self.world.size)

    def stage(self) -> Staging | None:
        """See `Engine.stage`."""
        if not self.world.is_main:
            return None
        shapes = {name: torch.Size(shape) for group in self._groups for name, shape in group.shapes.items()}
        return Staging.allocate(shapes, self.world.device)

    def gather(self, staging: Staging | None = None) -> TrainState | None:
        """See `Engine.gather`."""
        staging = staging or self.stage()
        step = 0
        for group, master in zip(self._groups, self._zero.single_partition_of_fp32_groups, strict=True):
            moments = self._optimizer.state.get(master)
            step = int(moments["step"]) if moments else 0
            held = {"weights": master.detach()} | ({kind: moments[kind] for kind in MOMENTS} if moments else {})
            for kind, partition in held.items():
                self._bring(partition, group, staging.views[kind] if staging else {})
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        if staging is None:
            return None
        return staging.state(
            step,
            described_groups(self._optimizer),
            tied_parameters(self.model),
            persistent_buffers(self.model),
            self.guard.state(),
        )

    def _bring(self, partition: torch.Tensor, group: FlatGroup, views: dict[str, torch.Tensor]) -> None:
        """Copy every rank's partition of a group into the host's views, on rank 0."""
        parts = [partition]
        if self.world.size > 1:
            parts = [torch.empty_like(partition) for _ in range(self.world.size)] if self.world.is_main else []
            dist.gather(partition, parts or None)
        if not self.world.is_main:
            return
        for name in group.shapes:
            flat = views[name].view(-1)
            for rank, offset, start, size in group.pieces(name):
                flat[start : start + size].copy_(parts[rank][offset : offset + size], non_blocking=True)

    def scatter(self, state: TrainState) -> None:
        """See `Engine.scatter`."""
        take_over_model(self.model, state)  # its parameters are views of DeepSpeed's flat groups
        self.guard.restore(state.guard)
        self._optimizer.state.clear()
        # With a = [1, 2, 3] and b = [[10, 20], [30, 40]] in one group of two ranks, `cut` gives rank 0 [1, 2, 3, 10]
        # and rank 1 [20, 30, 40, 0]. Each rank takes its part of the weights and of both moments in the same way, so a
        # checkpoint of any number of ranks is read by any other.
        step_device = self.world.device if self._optimizer.defaults["fused"] else torch.device("cpu")
        for group, master in zip(self._groups, self._zero.single_partition_of_fp32_groups, strict=True):
            master.data.copy_(cut(group, state.weights, self.world.rank))
            if state.exp_avg:
                self._optimizer.state[master] = {
                    "step": torch.tensor(float(state.optimizer_step), device=step_device),
                    "exp_avg": cut(group, state.exp_avg, self.world.rank).to(self.world.device),
                    "exp_avg_sq": cut(group, state.exp_avg_sq, self.world.rank).to(self.world.device),
                }
        if state.exp_avg:
            # DeepSpeed's own `safe_get_*` functions read the optimizer's former state until it is linked again.
            self._zero._link_all_hp_params()
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()
