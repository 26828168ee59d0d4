"""What `azneobert next` says of figures is true whichever way they fall."""

import json
import shlex
from pathlib import Path

import pytest
from toy import toy_recipe
from typer.testing import CliRunner

from azneobert.cli import app
from azneobert.cli.next import explain
from azneobert.layout import Layout
from azneobert.recipe import PARAMS
from azneobert.registry.registered import Registered, write_registered
from azneobert.yaml_files import write_yaml

PHASE = {"eval/loss": 5.9438, "eval/accuracy": 0.0913}


def task(pretrained, random, *, low=0.0, high=0.0, seeds=3):
    return {
        "score": "macro_f1",
        "pretrained": {"macro_f1": {"mean": pretrained}},
        "random": {"macro_f1": {"mean": random}},
        "gain": {"difference": pretrained - random, "low": low, "high": high, "noise": low <= 0 <= high},
        "examples": {"train": 900, "validation": 120, "test": 400},
        "seeds": list(range(seeds)),
        "chance": {"macro_f1": 0.1667},
    }


def test_the_loss_is_held_against_guessing():
    assert explain(2048, PHASE, {}) == [
        "phase2, texts that training did not see: a hidden token costs 5.94 nats, less than the 7.62 of guessing among "
        "2,048 tokens; 9.1% of them are found."
    ]
    assert "8.00 nats, no less than the 7.62" in explain(2048, PHASE | {"eval/loss": 8.0}, {})[0]


@pytest.mark.parametrize(
    ("pretrained", "random", "low", "high", "verdict"),
    [
        (
            0.60,
            0.44,
            0.09,
            0.21,
            "+0.160, its 95% interval over 3 seeds and the test's examples +0.090 to +0.210, all of",
        ),
        (0.60, 0.44, 0.09, 0.21, "all of it above 0: pretraining helps here."),
        (0.44, 0.60, -0.21, -0.09, "all of it below 0: pretraining does harm here."),
        (0.50, 0.44, -0.01, 0.12, "which holds 0: this task does not tell whether pretraining helps."),
        (0.50, 0.50, 0.0, 0.0, "which holds 0: this task does not tell whether pretraining helps."),
    ],
)
def test_a_difference_is_held_against_its_noise(pretrained, random, low, high, verdict):
    line = explain(2048, PHASE, {"genre": task(pretrained, random, low=low, high=high)})[1]
    assert line.startswith("genre, 900 examples to learn from, 400 to test: ")
    assert f"macro_f1 {pretrained:.3f} from pretrained weights, {random:.3f} from random ones, 0.167 by chance" in line
    assert verdict in line


def test_every_task_has_its_line():
    lines = explain(2048, PHASE, {"a": task(1.0, 1.0), "b": task(1.0, 0.0, low=0.9, high=1.0, seeds=1)})
    assert len(lines) == 3
    assert "which holds 0" in lines[1]
    assert "over 1 seed and" in lines[2]


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
        write(finished.report("finetune/punctuation"), task(0.6, 0.44, low=0.1, high=0.2))
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
