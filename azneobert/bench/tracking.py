"""`azneobert bench tracking`: a million figures on their way to MLflow, and what that costs the steps meanwhile."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from azneobert.bench.measure import in_child
from azneobert.bench.report import Row
from azneobert.mlflow_store import check_store
from azneobert.recipe import Tracking
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.pages import HOST
from azneobert.tracking.record import RunInfo, open_record, update_record
from azneobert.tracking.server import free_port, running_server
from azneobert.tracking.spool import DELIVERED, Spool
from azneobert.tracking.tracker import Tracker

_NAMES = ("loss", "grad_norm", "lr", "tokens", "tokens_per_second", "memory_gib", "loader_share", "mfu")
_TOKENS_A_STEP = 524_288
_BAR_SECONDS = 300.0
_BAR_SHARE = 0.01
_SECONDS_TO_END = 5.0  # for a sending process to end, once nobody reads its output


@dataclass(frozen=True)
class Amounts:
    """How many steps of eight figures are delivered; how many steps run beside a delivery, and their length (s)."""

    steps: int = 125_000
    beside: int = 200
    step_seconds: float = 0.154  # of the published model on an H200


def bench_tracking(amounts: Amounts, *, server: bool) -> Iterator[Row]:
    """Every row of the table, as it is measured."""
    with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as scratch:
        folder, points = Path(scratch), Path(scratch) / "points"
        points.mkdir()
        yield _recording_row(points, amounts)
        yield _delivery_row("SQLite", _tracking(f"sqlite:///{folder}/mlflow.db"), points, amounts)
        if server:
            _forget_delivery(points)
            port = free_port(0)
            with running_server(_tracking(f"sqlite:///{folder}/server.db"), port):
                yield _delivery_row(
                    "a server of one worker on SQLite", _tracking(f"http://{HOST}:{port}"), points, amounts
                )
        _forget_delivery(points)
        yield from _cost_rows(_tracking(f"sqlite:///{folder}/beside.db"), points, amounts)


def _recording_row(folder: Path, amounts: Amounts) -> Row:
    open_record(folder, RunInfo("bench"))
    spool = Spool(folder)
    began = time.perf_counter()
    for step in range(1, amounts.steps + 1):
        spool.append(step, _figures(step))
    each = (time.perf_counter() - began) / amounts.steps
    spool.close()
    return Row(
        "hand a step of 8 figures to the tracker, which writes it to disk",
        f"{each * 1e6:.0f} µs",
        f"<= {_BAR_SHARE:.0%} of a step of {amounts.step_seconds * 1000:.0f} ms",
        each <= _BAR_SHARE * amounts.step_seconds,
        f"{each / amounts.step_seconds:.3%}; mean of {amounts.steps:,} steps",
    )


def _delivery_row(where: str, tracking: Tracking, folder: Path, amounts: Amounts) -> Row:
    check_store(tracking)  # makes the tables
    began, computed = time.perf_counter(), time.process_time()
    delivered = deliver_folder(folder, tracking)
    seconds, computed = time.perf_counter() - began, time.process_time() - computed
    assert delivered == amounts.steps
    return Row(
        f"{amounts.steps * len(_NAMES):,} figures into {where}",
        f"{seconds:.0f} s",
        f"<= {_BAR_SECONDS:.0f} s",
        seconds <= _BAR_SECONDS,
        f"{amounts.steps * (len(_NAMES) + 1) / seconds:,.0f} points a second, the loss by tokens among them; "
        f"{computed:.0f} s of this process's processor",
    )


def _cost_rows(tracking: Tracking, folder: Path, amounts: Amounts) -> Iterator[Row]:
    """Steps of pure Python, the hardest case: a step on a GPU is outside the interpreter for most of its time."""
    check_store(tracking)
    cost: _Cost = in_child(_measure_cost, tracking, folder, amounts).result  # the delivery ends with this child process
    time.sleep(_SECONDS_TO_END)
    when = "which was under way to the last step" if cost.under_way else "which ended before the last step"
    share = cost.beside / cost.alone - 1
    yield Row(
        "a step of Python beside a delivery of all, over one alone",
        f"{share:+.2%}",
        f"<= {_BAR_SHARE:.0%}",
        share <= _BAR_SHARE,
        f"medians of {amounts.beside}: {cost.beside * 1000:.1f} ms, {cost.alone * 1000:.1f} ms alone; {when}",
    )
    yield Row(
        "what the training process computes for that delivery, over the time",
        f"{cost.delivering / cost.wall:.2%}",
        f"<= {_BAR_SHARE:.0%}",
        cost.delivering <= _BAR_SHARE * cost.wall,
        f"{cost.delivering:.2f} s of {cost.wall:.0f} s of its processor; the rest is a process of its own",
    )


@dataclass(frozen=True)
class _Cost:
    """Seconds: a step alone, a step beside the delivery, the work of other threads meanwhile, and the wall clock."""

    alone: float
    beside: float
    delivering: float
    wall: float
    under_way: bool


def _measure_cost(tracking: Tracking, folder: Path, amounts: Amounts) -> _Cost:
    work = _calibrated(amounts.step_seconds)
    alone = _timed_steps(work, amounts, None)
    tracker = Tracker(folder, tracking, RunInfo("bench"))  # begins with all the points
    wall, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
    beside = _timed_steps(work, amounts, tracker)
    wall = time.perf_counter() - wall
    delivering = (time.process_time() - process) - (time.thread_time() - thread)
    under_way = tracker.spool.backlog()["start"] < 0.9 * tracker.spool.backlog()["end"]
    return _Cost(statistics.median(alone), statistics.median(beside), delivering, wall, under_way)


def _timed_steps(work: int, amounts: Amounts, tracker: Tracker | None) -> list[float]:
    seconds = []
    for step in range(amounts.steps + 1, amounts.steps + 1 + amounts.beside):
        began = time.perf_counter()
        _compute(work)
        if tracker:
            tracker.log(step, _figures(step))
        seconds.append(time.perf_counter() - began)
    return seconds


def _calibrated(seconds: float) -> int:
    """The number of rounds that take this many seconds here."""
    rounds = 100_000
    while True:
        began = time.perf_counter()
        _compute(rounds)
        if (took := time.perf_counter() - began) > seconds / 4:
            return max(1, round(rounds * seconds / took))
        rounds *= 2


def _compute(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += number & 7
    return total


def _figures(step: int) -> dict[str, float]:
    return {f"train/{name}": float(step * _TOKENS_A_STEP) if name == "tokens" else 1 / step for name in _NAMES}


def _forget_delivery(folder: Path) -> None:
    """Mark all points as undelivered, for a run that does not exist yet."""
    (folder / DELIVERED).unlink()
    update_record(folder, run_id=None, key=None, described=False, settled=False)


def _tracking(uri: str) -> Tracking:
    return Tracking(mlflow_uri=uri, experiment="bench", wandb="off")
