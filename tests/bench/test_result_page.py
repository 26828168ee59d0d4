"""A page of results is read back as it is written, and what is not on it is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from azneobert.bench.report import Row, as_markdown
from azneobert.bench.result_page import Page, Source, read_page
from azneobert.errors import AzNeoBertError

PAGE = """# Speed

One NVIDIA H200 (700 W).

## Without a table

Words alone.

## Own card

- commit `0123abc`; two NVIDIA H100 80GB HBM3

| variant | tokens/s | ms |
|---|---|---|
| `plain` | 1,234.5 k | 7 |
| a \\| b | **~0.5 k** | -3 |

| a second | table |
|---|---|
| is | left out |

## Card of the page

commit `fedcba9`, then commit `0123abc`

| | x |
|---|---|
| one | 2.5 x |

## No commit

| what | x |
|---|---|
| one | 1 x |
"""


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return written(tmp_path, PAGE)


def written(folder: Path, text: str) -> Page:
    file = folder / "page.md"
    file.write_text(text, encoding="utf-8")
    return read_page(file)


def test_each_section_gives_its_first_table(page: Page) -> None:
    assert [table.heading for table in page.tables] == ["Own card", "Card of the page", "No commit"]
    table = page.table("Own card")
    assert table.labels == ["plain", "a \\| b"]
    assert table.numbers("tokens/s", "k") == [1234.5, 0.5]
    assert table.numbers("ms") == [7, -3]
    assert page.table("Card of the page").numbers("x", "x") == [2.5]


def test_the_card_is_the_section_s_or_else_the_page_s(page: Page) -> None:
    assert page.source(page.table("Own card")) == Source("NVIDIA H100", "0123abc")
    assert page.source(page.table("Card of the page")) == Source("NVIDIA H200", "fedcba9")


def test_what_a_bench_writes_is_read_back(tmp_path: Path) -> None:
    rows = [Row("eager", "122.4 k tokens/s", note="49.3 GiB"), Row("ours", "313.4 k tokens/s", ">= 300 k", True)]
    page = written(tmp_path, as_markdown("Training", rows).replace("# Training", "# Training\n\n## Rows"))
    assert page.table("Rows").labels == ["eager", "ours"]
    assert page.table("Rows").numbers("figure", "k tokens/s") == [122.4, 313.4]


def test_what_is_missing_is_named_with_its_place(page: Page) -> None:
    for heading in ("Without a table", "Nowhere"):
        with refused(AzNeoBertError, str(page.file), f"no table under '## {heading}'", "expected a section"):
            page.table(heading)
    with refused(AzNeoBertError, "'## Own card'", "no column 'GiB'", "expected one beside variant, tokens/s, ms"):
        page.table("Own card").numbers("GiB")
    with refused(AzNeoBertError, "'## No commit'", "names no commit"):
        page.source(page.table("No commit"))


@pytest.mark.parametrize("cell", ["", "fast", "1.2 M", "1.2.3 k", "12"])
def test_a_cell_that_is_no_number_of_the_unit_is_refused(cell: str, tmp_path: Path) -> None:
    page = written(tmp_path, PAGE.replace("1,234.5 k", cell))
    with refused(AzNeoBertError, "'## Own card', row 'plain'", f"tokens/s is {cell!r}", "such as 12.3 k"):
        page.table("Own card").numbers("tokens/s", "k")


def test_a_page_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with refused(AzNeoBertError, "page.md", "row 'one'", "3 cells; expected 2"):
        written(tmp_path, PAGE.replace("| one | 1 x |", "| one | 1 x | more |"))
    with refused(AzNeoBertError, "gone.md: No such file"):
        read_page(tmp_path / "gone.md")
    (tmp_path / "page.md").write_bytes(b"\xff\xfe")
    with refused(AzNeoBertError, "page.md: no UTF-8"):
        read_page(tmp_path / "page.md")


def test_a_page_that_names_no_card_at_all_is_refused(tmp_path: Path) -> None:
    page = written(tmp_path, PAGE.replace("One NVIDIA H200 (700 W).", ""))
    with refused(AzNeoBertError, "'## Card of the page'", "names no card"):
        page.source(page.table("Card of the page"))
