"""docs/log.md has one shape, and its index says what stands in it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

LOG = (Path(__file__).parents[1] / "docs" / "log.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (\d{4}-\d\d-\d\d): (.+)\n((?:(?!^## ).*\n?)*)", LOG, re.M)


def findings(section: str) -> list[str]:
    """The bullets of a section, each on one line."""
    bullets = re.findall(r"^- (.*(?:\n  .*)*)", section, re.M)
    return [" ".join(bullet.split()) for bullet in bullets]


def test_every_finding_is_a_question_what_was_tried_what_came_out_and_a_verdict() -> None:
    assert SECTIONS
    for date, area, text in SECTIONS:
        assert findings(text), f"{date}: {area} is empty"
        for finding in findings(text):
            assert re.fullmatch(r"\*\*.+?\*\* — .+ — .+ — \*(Kept|Dropped|Open)\.\*", finding), finding[:100]


def test_the_index_counts_what_there_is() -> None:
    counts: dict[str, Counter[str]] = {}
    for _, area, text in SECTIONS:
        verdicts = (re.search(r"\*(\w+)\.\*$", finding) for finding in findings(text))
        counts.setdefault(area, Counter()).update(found[1] for found in verdicts if found)
    counts["all"] = sum(counts.values(), Counter())
    rows = re.findall(r"^\| ([\w -]+) \| .*\| (\d+) \| (\d+) \| (\d+) \|$", LOG, re.M)
    shown = {area: tuple(map(int, numbers)) for area, *numbers in rows}
    assert shown == {area: (c.total(), c["Dropped"], c["Open"]) for area, c in counts.items()}


def test_lines_wrap() -> None:
    assert max(len(line) for line in LOG.splitlines() if not line.startswith("|")) <= 160
