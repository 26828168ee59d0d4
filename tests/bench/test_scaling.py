"""What `bench scaling` says that a step sends is what it sends, and its sums are the sums that it names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from engines import new_engine, steps
from refusals import refused
from torch.profiler import ProfilerActivity, profile
from toy import Toy, run_ranks
from typer.testing import CliRunner

from azneobert.bench import scaling
from azneobert.bench.models import small_model
from azneobert.bench.result_page import read_page
from azneobert.bench.scaling import Plan, exchanged, full_plan, moved, step_rows
from azneobert.bench.train import Shape
from azneobert.cli import app
from azneobert.errors import AzNeoBertError
from azneobert.recipe import EngineName
from azneobert.training.inputs import Inputs, open_streams

ROOT = Path(__file__).parents[2]


# What a step sends


def sent(inputs: Inputs) -> list[tuple[str, int]]:
    """The collectives of a training step of gloo's, by its own trace; an all-gather's size is that of a rank's part."""
    engine = new_engine(inputs.recipe)
    stream = open_streams(inputs)[0]
    steps(engine, stream, range(1))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        steps(engine, stream, range(1, 2))
    return [
        (event.name.removeprefix("gloo:"), torch.Size(event.input_shapes[0]).numel())
        for event in trace.events()
        if event.name.startswith("gloo:")
    ]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("engine", get_args(EngineName))
def test_a_step_sends_what_the_prediction_counts_and_beside_it_single_numbers(
    engine: EngineName, tied: bool, make_toy: Callable[..., Toy]
) -> None:
    toy = make_toy({"runtime": {"engine": engine, "processes": 2}, "model": {"tie_embeddings": tied}})
    found = run_ranks(sent, toy.inputs(), processes=2, folder=toy.folder)[0]
    assert {kind for kind, _ in found} <= {"all_reduce", "all_gather"}
    large = [(kind, 2 * size if kind == "all_gather" else size) for kind, size in found if size > 1]
    assert large == exchanged(engine, toy.recipe.model)


@pytest.mark.parametrize(("world", "sum_gb", "gather_gb"), [(2, 1.0, 0.5), (4, 1.5, 0.75), (8, 1.75, 0.875)])
def test_what_a_rank_sends_of_a_gigabyte(world: int, sum_gb: float, gather_gb: float) -> None:
    elements = 250_000_000
    assert moved("all_reduce", elements, world) == pytest.approx(sum_gb * 1e9)
    assert moved("all_gather", elements, world) == pytest.approx(gather_gb * 1e9)


# What is made of figures


def plan(world: int, ahead: int) -> Plan:
    return Plan(("plain",), world, ahead, 3, small_model(), (Shape(),))


def test_a_step_of_two_is_the_slowest_with_its_collectives_and_eight_send_more() -> None:
    parts = [("all_reduce", 100, 0.008), ("all_gather", 100, 0.004)]
    here, share, ahead = step_rows(plan(2, 8), "plain", Shape(), [0.900, 0.880], 0.920, parts)
    assert here.figure == "920.0 ms"
    assert "900.0 ms of the slowest by itself (880.0 of the fastest) + 12.0 ms" in here.note
    assert "= 912.0 ms predicted, +0.88%" in here.note
    assert "0.641 M tokens/s" in here.note  # 2 x 288 x 1,024 / 0.92 s
    assert (share.figure, share.met) == ("97.8%", True)
    assert ahead.figure == "921.0 ms"  # seven eighths instead of one half: 1.75 times 12 ms
    assert "2,304 rows a step; 2.562 M tokens/s" in ahead.note


@pytest.mark.parametrize(("together", "met"), [(0.94, True), (0.96, False)])
def test_eight_are_held_against_the_bars_of_the_published_run(together: float, met: bool) -> None:
    parts = [("all_reduce", 100, 0.008)]
    _, share, rate, step = step_rows(plan(8, 8), "plain", Shape(), [0.9] * 8, together, parts)
    assert (share.bar, rate.bar, step.bar) == (">= 95%", ">= 2.5 M", "<= 0.95 s")
    assert (rate.met, step.met) == (met, met)


def test_a_share_below_the_bar_is_not_met() -> None:
    _, share, _ = step_rows(plan(2, 8), "plain", Shape(), [0.9, 0.9], 0.96, [("all_reduce", 100, 0.008)])
    assert (share.figure, share.met) == ("93.8%", False)


# What is asked for


@pytest.mark.parametrize(("there", "gpus"), [(1, None), (0, None), (2, 3)])
def test_more_gpus_than_there_are_or_one_alone_are_refused(
    there: int, gpus: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with refused(AzNeoBertError, f"--gpus {gpus or there}", f"torch sees {there}", "expected two or more"):
        full_plan(["plain"], gpus, 8, 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is of machines without a GPU")
def test_without_a_gpu_the_command_says_what_shows_that_it_runs() -> None:
    done = CliRunner().invoke(app, ["bench", "scaling"])
    assert isinstance(done.exception, AzNeoBertError)
    assert "use --quick" in str(done.exception)


def test_the_links_are_measured_over_real_ranks() -> None:
    seconds = scaling.link_seconds([("all_reduce", 1000), ("all_gather", 999)], world=2)
    assert len(seconds) == 2
    assert min(seconds) > 0


@pytest.mark.long
def test_the_command_measures_both_engines_and_writes_the_table(tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    command = [sys.executable, "-c", "from azneobert.cli import main; main()", "bench", "scaling", "--quick"]
    done = subprocess.run(
        [*command, "--output", str(page)], cwd=ROOT, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr
    table = page.read_text(encoding="utf-8")
    for what in ("all_reduce of", "all_gather of", "plain; full rows of 64, 2 x 4: a step on 2", "zero2; ", "for 4"):
        assert what in table
    assert " yes |" not in table, "toy sizes meet no bar"


# The page of results


@pytest.mark.parametrize("number", range(6))
def test_the_page_of_eight_gpus_has_the_sums_that_it_names(number: int) -> None:
    page = read_page(ROOT / "docs/results/eight-gpus.md")
    links = page.table("The model").numbers("on two GPUs", "ms")
    here, there = page.table("Measured on two"), page.table("Predicted for eight")
    assert here.labels == there.labels
    engine, length, _ = here.labels[number].split(", ")
    alone, two, measured = (here.numbers(name, "ms")[number] for name in ("slowest alone", "predicted", "measured"))
    eight = there.numbers("predicted", "ms")[number]
    crossing = sum(links if engine == "ZeRO-2" else links[:1])
    further = moved("all_reduce", 1, 8) / moved("all_reduce", 1, 2)
    assert two == pytest.approx(alone + crossing, abs=0.11)
    assert eight == pytest.approx(alone + further * crossing, abs=0.11)
    off, share, share_of_eight = (
        float(table.texts(column)[number].removesuffix("%"))
        for table, column in ((here, "off"), (here, "of twice the slowest"), (there, "of eight times the slowest"))
    )
    assert off == pytest.approx(100 * (measured / two - 1), abs=0.02)
    assert share == pytest.approx(100 * alone / measured, abs=0.06)
    assert share_of_eight == pytest.approx(100 * alone / eight, abs=0.06)
    tokens = 2304 * 1024 if length == "1,024" else 512 * 4096
    assert there.numbers("tokens/s", "M")[number] == pytest.approx(tokens / eight / 1e3, abs=1e-3)
