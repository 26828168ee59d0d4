"""The pictures of speed show the numbers of docs/results/train.md, and those in docs/figures are of today's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from PIL import Image
from refusals import refused
from typer.testing import CliRunner

from azneobert.bench.result_page import Page, Source, read_page
from azneobert.bench.speed_figures import draw_speed, pictures_of
from azneobert.cli import app
from azneobert.errors import AzNeoBertError
from azneobert.pictures import HASH, hash_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/train.md"
PICTURES = ("speed_ablation.png", "step_time.png", "tokens_per_second.png")


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    pyplot.close("all")


def changed(folder: Path, before: str, after: str) -> Page:
    """The page of results with one thing on it changed, wherever it stands."""
    text = RESULTS.read_text(encoding="utf-8")
    assert before in text
    file = folder / "train.md"
    file.write_text(text.replace(before, after), encoding="utf-8")
    return read_page(file)


def shown(page: Page, name: str) -> Any:
    return pictures_of(page)[name]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_in_docs_is_of_today_s_table(name: str) -> None:
    with Image.open(ROOT / "docs/figures" / name) as picture:
        drawn_from = picture.info.get(HASH)
    assert drawn_from == hash_of(shown(read_page(RESULTS), name)), "use `azneobert bench figures`, and commit it"


@pytest.mark.parametrize(
    ("before", "after", "stale"),
    [
        ("| + FA4 | 280.4 k", "| + FA4 | 280.5 k", "speed_ablation.png"),
        ("~37%", "~38%", "speed_ablation.png"),
        ("| 297.3 k |", "| 298.3 k |", "speed_ablation.png"),
        ("commit `3f9b8eb`; NVIDIA H200", "commit `3f9b8ec`; NVIDIA H200", "speed_ablation.png"),
        ("| gradients of weights (cuBLAS) | 28.9 |", "| gradients of weights (cuBLAS) | 27.9 |", "step_time.png"),
        ("| small sums, embedding |", "| small sums |", "step_time.png"),
        ("6 x 12 | 209.1 k", "6 x 12 | 209.2 k", "tokens_per_second.png"),
    ],
)
def test_a_change_on_the_page_makes_its_picture_stale_and_no_other(
    before: str, after: str, stale: str, tmp_path: Path
) -> None:
    now, then = pictures_of(changed(tmp_path, before, after)), pictures_of(read_page(RESULTS))
    assert [name for name in PICTURES if hash_of(now[name]) != hash_of(then[name])] == [stale]


def test_the_ablation_has_each_row_over_the_first_and_the_published_percentages(tmp_path: Path) -> None:
    page = changed(tmp_path, "| + torch.compile | 203.1 k", "| + torch.compile | 367.2 k")
    ablation = shown(page, "speed_ablation.png")
    assert ablation.source == Source("NVIDIA H200", "3f9b8eb")
    left, right = ablation.draw().axes
    assert left.patches[1].get_width() == pytest.approx(3)
    assert texts(left)[:2] == ["1.00 x,  122.4 k", "3.00 x,  367.2 k"]
    heights = [bar.get_height() for bar in right.patches]
    here, published = heights[:3], heights[3:]
    assert here == pytest.approx([200, 100 * (280.4 / 245.6 - 1), 100 * (297.3 / 300.5 - 1)])
    assert published == [37, 4, 10]
    assert texts(right) == ["+200%", "+14%", "-1%", "~37%", "~4%", "~10%"]
    ticks = [tick.get_text().replace("\n", " ") for tick in right.get_xticklabels()]
    assert ticks[2] == "ZeRO-2 (here over DDP) here: our kernels, ZeRO-2 on two NVIDIA H100, commit e25de62"


def test_the_parts_of_a_step_are_bars_with_their_share_of_the_sum(tmp_path: Path) -> None:
    page = changed(tmp_path, "forward 14.0 | 43.5 |", "forward 14.0 | 3.3 |")
    (axes,) = shown(page, "step_time.png").draw().axes
    widths = [bar.get_width() for bar in axes.patches]
    assert (widths[0], sum(widths)) == (3.3, pytest.approx(112))
    assert texts(axes)[0] == "3.3 ms,  2.9%"
    title = "Where a micro-step of 48 full rows goes: 112.0 ms in kernels\nNVIDIA H200, commit 7350ce0"
    assert axes.get_title() == title


def test_rates_are_ordered_by_length_and_packing_and_coloured_by_run(tmp_path: Path) -> None:
    page = changed(tmp_path, "6 x 144 | 321.2 k", "6 x 144 | 1,321.2 k")
    rates = shown(page, "tokens_per_second.png")
    assert [(rate.length, rate.packed) for rate in rates.rates] == [(1024, False)] * 10 + [(1024, True)] * 5 + [
        (4096, False)
    ] * 4
    assert {rate.source for rate in rates.rates} == {
        Source("NVIDIA H200", c) for c in ("7350ce0", "e6ff847", "c673254", "a273469")
    }
    figure = rates.draw()
    (axes,) = figure.axes
    bars = axes.patches[: len(rates.rates)]
    assert [bar.get_width() for bar in bars] == [rate.rate for rate in rates.rates]
    assert max(bar.get_width() for bar in bars) == 1321.2
    colours = {(bar.get_facecolor(), rate.source.commit) for bar, rate in zip(bars, rates.rates, strict=True)}
    assert len(colours) == 4
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "NVIDIA H200, commit 7350ce0",
        "NVIDIA H200, commit e6ff847",
        "NVIDIA H200, commit c673254",
        "NVIDIA H200, commit a273469",
    ]


def test_the_command_draws_equal_files_from_equal_tables(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        done = CliRunner().invoke(
            app, ["bench", "figures", "--results", str(RESULTS), "--output", f"{tmp_path}/{folder}"]
        )
        assert done.exit_code == 0, done.output
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert names == {*PICTURES, "packing.png", "samples.png", "checkpoint.png"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("## Two GPUs", "## Two cards", "no table under '## Two GPUs'"),
        ("| variant | tokens/s |", "| variant | rate |", "no column 'tokens/s'"),
        ("| ~10% | our kernels, ZeRO-2 on two |", "| ~10% | ZeRO-3 |", "row 'ZeRO-2 (here over DDP)': no row 'ZeRO-3'"),
        ("rows of ", "rows with ", "no table has tokens/s of a row such as 'full rows of 1,024'"),
        ("| 28.9 |", "| ? |", "ms is '?'"),
    ],
)
def test_a_page_that_lacks_something_is_refused_and_nothing_is_drawn(
    before: str, after: str, said: str, tmp_path: Path
) -> None:
    page = changed(tmp_path, before, after)
    with refused(AzNeoBertError, str(page.file), said, "expected"):
        draw_speed(page.file, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
