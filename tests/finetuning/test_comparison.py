"""Of made-up predictions: which model is best on a task, and which differences are chance."""

import csv
import json
from dataclasses import replace

import pytest

from azneobert.finetuning.comparison import Comparison, row_of, standings
from azneobert.finetuning.comparison_files import FILES, cells, legend, write_comparison
from azneobert.finetuning.scores import score
from azneobert.finetuning.speed import Speed
from azneobert.finetuning.task import Example, Task
from azneobert.finetuning.trials import Contender, Trial

GOLD = [0, 1] * 100
TASK = Task(
    "topics", "classification", ["a", "b"], {"test": [Example(f"t:{n}", f"text {n}", g) for n, g in enumerate(GOLD)]}
)
SPEED = Speed(1000, 2.0, "CPU")


def trial(seed: int, wrong: int, first: int = 0, speed: Speed = SPEED) -> Trial:
    """Predictions of which so many are wrong, from the example `first` on."""
    labels = [1 - gold if first <= n < first + wrong else gold for n, gold in enumerate(GOLD)]
    return Trial(seed, score(TASK, GOLD, labels), labels, 1_500_000, speed)


FOUND = {
    "poor": [trial(1, 80), trial(2, 82)],
    "good": [trial(1, 20), trial(2, 22)],
    "near": [trial(1, 22, first=100), trial(2, 23, first=100)],
}


def compared(found: dict[str, list[Trial]] = FOUND, tasks: tuple[str, ...] = ("topics",)) -> Comparison:
    stand = standings(TASK, found)
    rows = [
        row_of(Contender(name, None, "0" * 64, "pretrained"), of, dict.fromkeys(tasks, stand[name]), 1.25, "CPU")
        for name, of in found.items()
    ]
    return Comparison(
        suite="made-up",
        seeds=(1, 2),
        device="CPU",
        scores=dict.fromkeys(tasks, "macro_f1"),
        examples=dict.fromkeys(tasks, 200),
        data_sha256=dict.fromkeys(tasks, TASK.sha256),
        left_out={"gone": "no such set"},
        rows=rows,
    )


def test_the_best_is_marked_and_what_is_inside_the_noise_of_it():
    found = standings(TASK, FOUND)
    assert {name: standing.mark for name, standing in found.items()} == {
        "poor": "behind",
        "good": "best",
        "near": "noise",
    }
    assert found["good"].mean == pytest.approx((FOUND["good"][0].scores["macro_f1"] + found["good"].by_seed[2]) / 2)
    assert found["good"].low < found["good"].mean < found["good"].high
    assert found["poor"].lead.low > 0.2


def test_of_equal_models_the_first_is_the_best_and_the_other_inside_the_noise():
    found = standings(TASK, {"one": [trial(1, 10)], "other": [trial(1, 10)]})
    assert {name: standing.mark for name, standing in found.items()} == {"one": "best", "other": "noise"}


def test_a_speed_is_of_the_tests_on_this_device_alone():
    contender = Contender("m", None, "", "pretrained")
    here, there = trial(1, 1), trial(2, 1, speed=Speed(9, 0.001, "a GPU"))
    assert row_of(contender, [here, there], {}, 1.0, "CPU").tokens_per_second == 500
    assert row_of(contender, [there], {}, 1.0, "CPU").tokens_per_second is None


def test_the_average_is_there_where_all_models_have_all_of_several_tasks():
    assert compared().average(compared().rows[0]) is None
    both = compared(tasks=("topics", "tones"))
    assert both.average(both.rows[1]) == pytest.approx(both.rows[1].standings["topics"].mean)
    first, *others = both.rows
    lacking = replace(first, standings={"topics": first.standings["topics"]})
    partly = replace(both, rows=[lacking, *others])
    assert partly.average(partly.rows[1]) is None


def test_the_table_has_scores_in_percent_with_their_marks_and_says_what_they_mean():
    header, rows = cells(compared())
    assert [cell.text for cell in header] == ["model", "topics", "tokens", "tokens", "parameters"]
    assert [(row[0].text, row[1].text, row[1].best) for row in rows] == [
        ("poor", "59.5", False),
        ("good", "89.5", True),
        ("near", "88.7 ≈", False),
    ]
    assert [cell.text for cell in rows[0][2:]] == ["1.25", "500", "1.5"]
    assert any(line.startswith("≈: inside the noise") for line in legend(compared()))
    assert legend(compared())[-1] == "Left out: gone: no such set"


def test_the_files_hold_the_same_figures(tmp_path):
    write_comparison(compared(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    (_, good, near) = json.loads((tmp_path / "results.json").read_text())["models"]
    assert good["tasks"]["topics"]["mark"] == "best"
    assert good["tasks"]["topics"]["lead_of_the_best"] is None
    assert near["tasks"]["topics"]["lead_of_the_best"]["difference"] > 0
    lines = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(line["model"], line["mark"]) for line in lines] == [
        ("poor", "behind"),
        ("good", "best"),
        ("near", "noise"),
    ]
    assert lines[2]["mean"] == str(near["tasks"]["topics"]["mean"])
    assert "| good | **89.5** (" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
