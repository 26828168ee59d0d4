"""What `azneobert next` says of figures is true whichever way they fall."""

import json
import shlex
from pathlib import Path

import pytest
from toy import toy_recipe
from typer.testing import CliRunner

from azneobert.cli import app
from azneobert.cli.next import explain, standard_error
from azneobert.layout import Layout
from azneobert.recipe import PARAMS
from azneobert.registry.registered import Registered, write_registered
from azneobert.yaml_files import write_yaml

PHASE = {"eval/loss": 5.9438, "eval/accuracy": 0.0913}


def task(pretrained, random, *, deviation=0.02, seeds=3, test=400):
    return {
        "pretrained": {"accuracy": pretrained, "accuracy_deviation": deviation},
        "random": {"accuracy": random, "accuracy_deviation": deviation},
        "examples": {"train": 900, "validation": 120, "test": test},
        "seeds": seeds,
        "chance": 0.3333,
    }


def test_the_loss_is_held_against_guessing():
    assert explain(2048, PHASE, {}) == [
        "phase2, texts that training did not see: a hidden token costs 5.94 nats, less than the 7.62 of guessing among "
        "2,048 tokens; 9.1% of them are found."
    ]
    assert "8.00 nats, no less than the 7.62" in explain(2048, PHASE | {"eval/loss": 8.0}, {})[0]


@pytest.mark.parametrize(
    ("pretrained", "random", "verdict"),
    [
        (0.60, 0.44, "+16.0 points, two standard errors (3 seeds) are 7.7; it is beyond that: pretraining helps here."),
        (0.44, 0.60, "-16.0 points, two standard errors (3 seeds) are 7.7; it is beyond that: pretraining does harm"),
        (0.50, 0.44, "+6.0 points, two standard errors (3 seeds) are 7.8; it is within that: this task does not tell"),
        (0.44, 0.50, "-6.0 points, two standard errors (3 seeds) are 7.8; it is within that: this task does not tell"),
        (0.50, 0.50, "+0.0 points, two standard errors (3 seeds) are 7.8; it is within that: this task does not tell"),
    ],
)
def test_a_difference_is_held_against_its_noise(pretrained, random, verdict):
    line = explain(2048, PHASE, {"genre": task(pretrained, random)})[1]
    assert line.startswith("genre, 900 examples to learn from, 400 to test: ")
    assert f"{pretrained:.1%} right from pretrained weights, {random:.1%} from random ones, 33.3% by chance" in line
    assert verdict in line


def test_seeds_and_examples_both_count_as_noise():
    assert standard_error(task(0.5, 0.5, deviation=0.0, seeds=1, test=100)) == pytest.approx((0.5 / 100) ** 0.5)
    assert standard_error(task(1.0, 0.0, deviation=0.03, seeds=3)) == pytest.approx((2 * 0.03**2 / 3) ** 0.5)
    assert "(1 seed)" in explain(2048, PHASE, {"genre": task(0.5, 0.5, seeds=1)})[1]


def test_every_task_has_its_line_and_weights_that_never_err_are_no_division_by_zero():
    lines = explain(2048, PHASE, {"a": task(1.0, 1.0, deviation=0.0), "b": task(1.0, 0.0, deviation=0.0)})
    assert len(lines) == 3
    assert "within that" in lines[1]
    assert "beyond that: pretraining helps" in lines[2]


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A folder with what `azneobert next` reads of a finished recipe; no labelled task yet."""
    monkeypatch.chdir(tmp_path)
    for file in (PARAMS, Path("recipes/toy.yaml")):
        file.parent.mkdir(exist_ok=True)
        write_yaml(file, toy_recipe().model_dump(mode="json"))
    layout = Layout("toy")
    write_registered(layout.registered, {"phase2": Registered("toybert", "phase2", "c0ffee")})
    write(layout.report("evaluate/phase2"), PHASE)
    return layout


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def shown(*options):
    result = CliRunner().invoke(app, ["next", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("tuned", [False, True], ids=["without a task", "with a task"])
def test_the_last_line_is_the_one_thing_to_try(finished, tuned):
    if tuned:
        write(finished.report("finetune/punctuation"), task(0.6, 0.44))
    output = shown()
    assert ("pretraining helps here" in output) == tuned
    assert "registered: models:/toybert@phase2\n" in output
    words = shlex.split(output.splitlines()[-1])
    assert words[:2] == ["azneobert", "fill-mask"]
    assert words[2].count("[MASK]") == 2
    assert words[3:] == []


def test_another_recipe_s_model_is_named(finished):
    words = shlex.split(shown("--recipe", "toy").splitlines()[-1])
    assert words[3:] == ["--model", "models:/toybert@phase2"]
