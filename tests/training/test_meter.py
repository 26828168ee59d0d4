"""Tokens per second are of the time spent in steps, and of nothing else."""

from __future__ import annotations

import time

import pytest
import torch
from toy import toy_recipe

from azneobert.model.encoder import flops_per_token
from azneobert.training.meter import PEAK_FLOPS, Meter


@pytest.fixture
def meter() -> Meter:
    return Meter(toy_recipe().model, 32, 0.2, torch.device("cpu"), 1)


def take(meter: Meter, seconds: float, tokens: int) -> None:
    meter.start()
    time.sleep(seconds)
    meter.stop(tokens)


def test_time_between_steps_does_not_count(meter: Meter) -> None:
    began = time.perf_counter()
    take(meter, 0.05, 1000)
    inside = time.perf_counter() - began
    time.sleep(0.5)  # a checkpoint, say
    began = time.perf_counter()
    take(meter, 0.05, 1000)
    inside += time.perf_counter() - began
    rate = meter.read()["train/tokens_per_second"]
    assert 2000 / inside <= rate <= 2000 / 0.1


def test_each_reading_is_of_the_steps_since_the_last(meter: Meter) -> None:
    take(meter, 0.1, 10)
    slow = meter.read()["train/tokens_per_second"]
    take(meter, 0.01, 10_000)
    fast = meter.read()["train/tokens_per_second"]
    assert slow <= 100
    assert fast > 1000 * slow / 10


def test_a_device_without_a_known_peak_reports_memory_and_no_utilisation(meter: Meter) -> None:
    take(meter, 0.01, 10)
    figures = meter.read()
    assert "train/mfu" not in figures
    assert 0.01 < figures["train/memory_gib"] < 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch")
def test_utilisation_on_a_gpu_with_a_known_peak_is_flops_over_the_peak() -> None:
    if torch.cuda.get_device_name() not in PEAK_FLOPS:
        pytest.skip(f"the peak of {torch.cuda.get_device_name()} is not in PEAK_FLOPS")
    model = toy_recipe().model
    meter = Meter(model, 32, 0.2, torch.device("cuda"), 2)
    take(meter, 0.05, 1000)
    figures = meter.read()
    peak = 2 * PEAK_FLOPS[torch.cuda.get_device_name()]
    expected = figures["train/tokens_per_second"] * flops_per_token(model, 32, 0.2) / peak
    assert figures["train/mfu"] == pytest.approx(expected)
