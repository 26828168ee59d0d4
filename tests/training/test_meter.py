"""Tokens per second are of the time spent in steps, and of nothing else; the feed knows what it was waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from toy import toy_recipe

from azneobert.data.stream import PackedBatch
from azneobert.model.size import flops_per_token
from azneobert.training.meter import PEAK_FLOPS, Feed, Meter


def batch_of(starts: list[int], row: int = 16) -> PackedBatch:
    """A batch of windows that begin there; what is in them does not matter here."""
    tokens = starts[-1]
    cu_seqlens = torch.tensor(starts, dtype=torch.int32)
    rest = torch.arange(3 * tokens, dtype=torch.int32)
    return PackedBatch(torch.cat([cu_seqlens, rest]), (len(starts), tokens, tokens, tokens // 2, tokens // 2), row)


def slowly(batches: list[PackedBatch], seconds: float) -> Iterator[PackedBatch]:
    for batch in batches:
        time.sleep(seconds)
        yield batch


@pytest.fixture
def meter() -> Meter:
    return Meter(toy_recipe().model, 0.2, Feed(iter([])), torch.device("cpu"), 1)


def read_after(meter: Meter, seconds: float, tokens: int) -> dict[str, float]:
    """The figures of so many more tokens, taken in so many seconds."""
    meter.start(0)
    time.sleep(seconds)
    return meter.read(tokens)


def test_the_rate_is_wall_clock_from_one_reading_to_the_next_without_the_pauses(meter: Meter) -> None:
    meter.start(500)
    began = time.perf_counter()
    time.sleep(0.05)
    with meter.paused():
        time.sleep(0.5)  # a checkpoint, say
    time.sleep(0.05)
    rate = meter.read(2500)["train/tokens_per_second"]
    whole = time.perf_counter() - began
    assert 2000 / (whole - 0.5) <= rate <= 2000 / 0.1


def test_each_reading_is_of_the_steps_since_the_last(meter: Meter) -> None:
    meter.start(0)
    time.sleep(0.1)
    slow = meter.read(10)["train/tokens_per_second"]
    time.sleep(0.01)
    fast = meter.read(10_010)["train/tokens_per_second"]
    assert slow <= 100
    assert fast > 1000 * slow / 10


def test_a_pause_counts_in_no_later_reading(meter: Meter) -> None:
    meter.start(0)
    with meter.paused():
        time.sleep(0.3)
    meter.read(1)
    time.sleep(0.01)
    assert meter.read(1001)["train/tokens_per_second"] > 1000 / 0.2


@pytest.mark.parametrize("every", [1, 20])
def test_a_queue_of_steps_that_is_waited_for_at_the_end_is_timed_whole(every: int, meter: Meter) -> None:
    # What a GPU does: the host goes through 20 steps at once and then waits for them, here 10 ms each. The loop waits
    # at a reading, so the mean rate is the same however often that is.
    rates = []
    meter.start(0)
    for step in range(1, 21):
        if step % every == 0:
            time.sleep(0.01 * every)
            rates.append(meter.read(100 * step)["train/tokens_per_second"])
    assert len(rates) == 20 // every
    assert all(100 / 0.5 < rate <= 100 / 0.01 for rate in rates)  # a busy machine sleeps longer


def test_a_device_without_a_known_peak_reports_memory_and_no_utilisation(meter: Meter) -> None:
    figures = read_after(meter, 0.01, 10)
    assert "train/mfu" not in figures
    assert 0.01 < figures["train/memory_gib"] < 64


# The feed


def test_a_feed_passes_its_batches_on_and_ends_with_them() -> None:
    batches = [batch_of([0, 16]), batch_of([0, 4, 16])]
    assert [id(batch) for batch in Feed(iter(batches))] == [id(batch) for batch in batches]


def test_in_rows_of_one_full_window_a_token_attends_to_the_row_length() -> None:
    feed = Feed(iter([batch_of([0, 16, 32, 48]), batch_of([0, 16])]))
    for _ in feed:
        pass
    assert feed.read()[1] == 16


def test_in_packed_rows_a_token_attends_to_the_sum_of_squares_over_the_sum_of_lengths() -> None:
    # Windows of 1, 9, 6 and 16 tokens, and of 4 and 12 in another batch; the repeated entries are no windows.
    feed = Feed(iter([batch_of([0, 1, 10, 16, 32, 32, 32]), batch_of([0, 4, 16])]))
    for _ in feed:
        pass
    assert feed.read()[1] == (1 + 81 + 36 + 256 + 16 + 144) / 48


def test_a_feed_that_was_read_begins_anew() -> None:
    feed = Feed(slowly([batch_of([0, 16]), batch_of([0, 4, 16])], 0.02))
    next(feed)
    assert feed.read()[0] >= 0.02
    assert feed.read() == (0.0, 0.0)
    next(feed)
    assert feed.read()[1] == 10


def test_only_the_time_in_which_the_feed_is_waited_for_is_its_own() -> None:
    feed = Feed(slowly([batch_of([0, 16])] * 3, 0.03))
    began = time.perf_counter()
    for _ in range(3):
        next(feed)
    waited = time.perf_counter() - began
    time.sleep(0.5)  # the GPU at work, say
    assert 0.09 <= feed.read()[0] <= waited


def test_the_loader_s_share_is_of_the_time_in_steps() -> None:
    feed = Feed(slowly([batch_of([0, 16])] * 2, 0.1))
    meter = Meter(toy_recipe().model, 0.2, feed, torch.device("cpu"), 1)
    meter.start(0)
    for _ in range(2):
        next(feed)
        time.sleep(0.1)
    with meter.paused():
        time.sleep(0.5)  # a checkpoint, say
    assert 0.3 < meter.read(32)["train/loader_share"] < 0.75  # a half; of all the time it would be 0.22
    assert read_after(meter, 0.01, 16)["train/loader_share"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: none is visible to torch")
def test_utilisation_on_a_gpu_with_a_known_peak_is_flops_over_the_peak() -> None:
    if torch.cuda.get_device_name() not in PEAK_FLOPS:
        pytest.skip(f"the peak of {torch.cuda.get_device_name()} is not in PEAK_FLOPS")
    model = toy_recipe().model
    feed = Feed(iter([batch_of([0, 4, 16])]))
    meter = Meter(model, 0.2, feed, torch.device("cuda"), 2)
    next(feed)
    figures = read_after(meter, 0.05, 1000)
    peak = 2 * PEAK_FLOPS[torch.cuda.get_device_name()]
    expected = figures["train/tokens_per_second"] * flops_per_token(model, 10, 0.2) / peak
    assert figures["train/mfu"] == pytest.approx(expected)


def test_utilisation_is_of_the_windows_that_were_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 2**31)
    model = toy_recipe().model
    feed = Feed(iter([batch_of([0, 4, 16])]))
    meter = Meter(model, 0.2, feed, torch.device("cuda"), 2)
    next(feed)
    figures = read_after(meter, 0.01, 1000)
    expected = figures["train/tokens_per_second"] * flops_per_token(model, 10, 0.2) / (2 * 989e12)
    assert figures["train/mfu"] == pytest.approx(expected)
    assert figures["train/memory_gib"] == 2
