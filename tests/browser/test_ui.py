"""MLflow's pages as a person sees them, in a headless Chromium: the runs, the training loss first, both curves."""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import toy_recipe

from azneobert.tracking.record import RunInfo
from azneobert.tracking.tracker import Tracker
from azneobert.yaml_files import write_yaml

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS_OF_A_PAGE = 30
SCRIPT = "from azneobert.cli import main; main()"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose MLflow holds two runs with 40 steps each, as training records them."""
    folder = tmp_path_factory.mktemp("project")
    recipe = toy_recipe({"tracking": {"mlflow_uri": f"sqlite:///{folder}/mlflow.db"}})
    write_yaml(folder / "params.yaml", recipe.model_dump(mode="json"))
    for number, name in enumerate(("toy-phase1", "toy-phase2")):
        info = RunInfo(name, {"phase": {"peak_learning_rate": 1e-3 / (number + 1)}, "seed": 7})
        tracker = Tracker(folder / name, recipe.tracking, info)
        for step in range(1, 41):
            loss = 3 + (5 - number) * math.exp(-step / 12)
            figures = {"loss": loss, "grad_norm": 1.0, "lr": 1e-3, "tokens": step * 4096.0 * (number + 1)}
            figures |= {"tokens_per_second": 1e5, "memory_gib": 10.0, "loader_share": 0.01}
            tracker.log(step, {f"train/{key}": value for key, value in figures.items()})
            if step % 10 == 0:
                collections = [f"/{name}" for name in ("cc100", "news", "wikipedia")]
                held_out = {f"eval/{what}{part}": loss for what in ("loss", "accuracy") for part in ["", *collections]}
                tracker.log(step, held_out)
        tracker.finish("FINISHED")
    return folder


@pytest.fixture(scope="module")
def runs_page(project: Path) -> Iterator[str]:
    """The address that `azneobert ui` prints, while it runs."""
    command = [sys.executable, "-u", "-c", SCRIPT, "ui", "--port", "0"]
    started = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stdout is not None
    said = []
    for line in started.stdout:
        said.append(line)
        if line.startswith("runs: "):
            break
    assert said[-1].startswith("runs: http://127.0.0.1:"), said
    server = said[-1].split("/#/")[0].removeprefix("runs: ")
    yield said[-1].removeprefix("runs: ").strip()
    started.send_signal(signal.SIGINT)
    assert started.wait(30) == 0, "Ctrl-C is no error"
    assert not answers(server), "its workers have ended with it"


def answers(server: str) -> bool:
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        urlopen(f"{server}/health", timeout=5).close()
    except URLError:
        return False
    return True


def browse(page: str, *how: str) -> str:
    """What Chromium has made of a page by the time that it asks for nothing more."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += [f"--virtual-time-budget={SECONDS_OF_A_PAGE * 1000}", *how, page]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout


def seen(page: str, *expected: str) -> str:
    """The page's elements, once all of these stand there: a busy machine may need a second look."""
    for _ in range(3):
        found = browse(page, "--window-size=1600,3200", "--dump-dom")
        if all(text in found for text in expected):
            break
        time.sleep(1)
    missing = [text for text in expected if text not in found]
    assert not missing, (page, missing, len(found))
    return found


def test_the_address_that_ui_prints_shows_the_runs(runs_page: str) -> None:
    seen(runs_page, "toy-phase1", "toy-phase2", "matching runs")


def test_the_chart_page_shows_the_training_loss_first_by_steps_and_by_tokens(runs_page: str) -> None:
    found = seen(f"{runs_page}&compareRunsMode=CHART", "train/loss_by_tokens", "validation/loss")
    titles = re.findall(r'title="((?:train|validation)/[^"]+)"|>((?:train|validation)/[a-z_0-9/]+)<', found)
    names = list(dict.fromkeys(first or second for first, second in titles))
    assert names[:2] == ["train/loss", "train/loss_by_tokens"], names
    assert names.index("train/optimizer/grad_norm") < names.index("validation/loss"), names


def test_the_page_that_compare_names_shows_both_curves(runs_page: str, project: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, "runs", "compare", "toy-phase1", "toy-phase2", "--output", "both.png"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=True)
    assert "phase.peak_learning_rate" in done.stdout
    assert (project / "both.png").read_bytes().startswith(b"\x89PNG")
    server = runs_page.split("/#/")[0]
    for against in ("steps", "tokens"):
        [page] = re.findall(f"both curves against {against}: (.*)", done.stdout)
        page = page.strip().replace("http://127.0.0.1:5000", server)
        found = seen(page, "toy-phase1", "toy-phase2", "scatterlayer")
        assert curves(found) == 2, page


def curves(found: str) -> int:
    """How many different lines Plotly has drawn; it may draw each one twice, smoothed and as it is."""
    [layer] = re.findall(r'<g class="scatterlayer.*?(?=<g class="overplot"|<g class="polarlayer")', found, re.DOTALL)[
        :1
    ]
    paths = re.findall(r'class="js-line"[^>]* d="([^"]+)"', layer)
    return len({path for path in paths if path.count(",") > 10})
