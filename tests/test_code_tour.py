"""The tour of the code names files and functions that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs" / "code-tour.md").read_text(encoding="utf-8")
STOPS = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", TOUR)


def test_the_tour_has_four_walks_of_several_stops() -> None:
    walks = re.findall(r"^## .* becomes? .*$", TOUR, flags=re.MULTILINE)
    assert len(walks) == 4
    assert len(STOPS) > 30


@pytest.mark.parametrize(("file", "name"), STOPS)
def test_a_stop_is_there(file: str, name: str) -> None:
    place: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        defined = [
            node
            for node in ast.iter_child_nodes(place)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
        ]
        assert defined, f"docs/code-tour.md: {file} has no {name}"
        place = defined[0]


def test_every_other_file_of_the_package_that_the_tour_names_is_there() -> None:
    for named in re.findall(r"`((?:\w+/)+\w+\.py)`", TOUR):
        places = [ROOT / named, ROOT / "azneobert" / named]
        assert any(place.is_file() for place in places), f"docs/code-tour.md: no {named}"
