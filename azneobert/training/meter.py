"""What a step costs: tokens per second, model FLOP utilisation, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from azneobert.data.stream import PackedBatch
from azneobert.model.size import flops_per_token
from azneobert.recipe import Model

# Dense bf16 peak by the vendor's data sheet, FLOP/s; a device that is not listed reports no utilisation.
PEAK_FLOPS = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12}


class Feed:
    """Passes micro-batches to the engine, and measures how long it waits for them and how long their windows are."""

    def __init__(self, batches: Iterator[PackedBatch]):
        self._batches = batches
        self.seconds = 0.0
        self._tokens = self._seen = 0.0

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> PackedBatch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.seconds += time.perf_counter() - start
        windows = batch.packed[: batch.sizes[0]].diff().double()
        self._tokens += float(windows.sum())
        self._seen += float(windows.square().sum())
        return batch

    def read(self) -> tuple[float, float]:
        """Seconds waited, and the mean number of tokens that a token attended to, since the last reading."""
        seconds, attended = self.seconds, self._seen / max(self._tokens, 1.0)
        self.seconds = self._tokens = self._seen = 0.0
        return seconds, attended


class Meter:
    """Wall-clock time and tokens from one reading to the next; evaluation and checkpoints do not count.

    A reading follows the loss, for which the host waits for the GPU, so that it measures the GPU's time. The loop only
    queues the steps: a clock around each of them would measure the host's time.
    """

    def __init__(self, model: Model, masking_rate: float, feed: Feed, device: torch.device, world: int):
        self._model = model
        self._masking_rate = masking_rate
        self._feed = feed
        self._device = device
        self._world = world
        self._peak = PEAK_FLOPS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._tokens = 0
        self._began = self._paused = 0.0

    def start(self, tokens: int) -> None:
        """Start the clock; `tokens` were trained on before."""
        self._began, self._paused, self._tokens = time.perf_counter(), 0.0, tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside does not count. The steps that a GPU still has in its queue do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        began = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._paused += time.perf_counter() - began

    def read(self, tokens: int) -> dict[str, float]:
        """The figures since the last reading, when `tokens` have been trained on, over all ranks.

        `train/tokens_per_second` is of all ranks together; `train/loader_share` is the part of the time for which the
        host waited for the next micro-batch.
        """
        now = time.perf_counter()
        seconds = max(now - self._began - self._paused, 1e-9)
        rate = (tokens - self._tokens) / seconds
        self._began, self._paused, self._tokens = now, 0.0, tokens
        waited, attended = self._feed.read()
        figures = {
            "train/tokens_per_second": rate,
            "train/memory_gib": self._memory_gib(),
            "train/loader_share": waited / seconds,
        }
        if self._peak:
            flops = flops_per_token(self._model, attended, self._masking_rate)
            figures["train/mfu"] = rate * flops / (self._peak * self._world)
        return figures

    def _memory_gib(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
