"""No password and no token of the environment stands in anything that a project writes or prints."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from toy import Toy

CANARY = "kanareyka"
NAMES = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "SLURM_JWT", "PGPASSWORD", "SOME_PASSWORD"),
)
# What `make repro` does from the first step to a fine-tuned model, but for DVC, in one process.
_PATH = """
import os, pickle, sys
from pathlib import Path
from azneobert.environment import quiet_barriers
from azneobert.printable import log_in_lines
log_in_lines()
import torch
torch.set_num_threads(1)
from azneobert.errors import AzNeoBertError
from azneobert.training.report import publish
from azneobert.training.run import pretrain
from azneobert.tracking.delivery import deliver_folder
from azneobert.provenance import run_provenance
toy = pickle.loads(Path("toy.pickle").read_bytes())
inputs = toy.inputs("phase1")
pretrain(inputs)
publish(inputs.run, toy.folder / "phase1")
try:
    print("delivered", deliver_folder(inputs.run.tracking, toy.recipe.tracking))
except AzNeoBertError as error:
    sys.exit(f"error: {error}")
from pushed import push_newest
from azneobert.registry.pull import pull
version = push_newest(toy, ["phase1"])
encoder = pull(version.uri, toy.folder / "pulled", toy.recipe.tracking)
from azneobert.encoders import Encoder
from azneobert.finetuning.task import Example, Task
from azneobert.task_settings import TaskSettings
from azneobert.tune import Tuning, tune
examples = [Example("here", "salam", 0), Example("here", "dünya", 1)] * 4
task = Task("greetings", "classification", ["a", "b"], {split: examples for split in ("train", "validation", "test")})
folder = toy.folder / "finetuned"
tuning = Tuning(
    encoder=Encoder(version.uri, encoder, "e" * 64),
    called=version.uri,
    task=task,
    task_settings=TaskSettings(),
    settings=toy.recipe.finetuning,
    tracking=toy.recipe.tracking,
    folder=folder,
    running=folder / "running" / "tracking",
    model="toybert-greetings",
)
tune(tuning, print)
print("done")
"""
ROOT = Path(__file__).parents[2]


class _Refuses(BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"no such user: " + self.headers.get("Authorization", "").encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Refuses) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def _run(toy: Toy, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "toy.pickle").write_bytes(pickle.dumps(toy))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "registry")])
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    canaries = {name: f"{CANARY}-{name}" for name in NAMES}
    environment = kept | canaries | {"MLFLOW_TRACKING_USERNAME": "leyla", "PYTHONPATH": path} | variables
    return subprocess.run(
        [sys.executable, "-c", _PATH],
        cwd=folder,
        env=environment | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def _found(folder: Path) -> list[str]:
    """The files that hold a canary, in whatever form the file has."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    assert len(files) > 20
    return [str(file.relative_to(folder)) for file in files if CANARY.encode() in file.read_bytes()]


@pytest.fixture
def project(make_toy: Callable[..., Toy]) -> Toy:
    """A toy run in a git repository whose remote's address holds a token."""
    toy = make_toy({"tracking": {"wandb": "offline"}})
    for command in (["init", "-q"], ["remote", "add", "origin", f"https://leyla:{CANARY}-git@example.org/x.git"]):
        subprocess.run(["git", *command], cwd=toy.folder, check=True)
    return toy


def test_neither_files_nor_words_hold_a_secret(project: Toy) -> None:
    done = _run(project, project.folder)
    assert done.stdout.endswith("done\n"), done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert _found(project.folder) == [".git/config"]


@pytest.mark.parametrize("address", ["http://leyla:{canary}-uri@{server}", "http://leyla:{canary}@127.0.0.1:9"])
def test_a_store_that_refuses_is_named_without_its_password(project: Toy, address: str, server: str) -> None:
    uri = address.format(canary=CANARY, server=server)
    done = _run(project, project.folder, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: MLflow at http://leyla:***@127.0.0.1:"), done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert _found(project.folder) == [".git/config"]


@pytest.mark.parametrize("command", [["registry", "list"], ["runs", "deliver"], ["registry", "relocate"]])
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_command_names_a_store_without_its_password(recipes: Path, command: list[str], scheme: str) -> None:
    tracking = recipes / "outputs" / "sample" / "running" / "phase1" / "tracking"
    tracking.mkdir(parents=True)
    (tracking / "points.jsonl").touch()
    uri = f"{scheme}://leyla:{CANARY}@127.0.0.1:9/store?password={CANARY}"
    done = subprocess.run(
        [sys.executable, "-c", "from azneobert.cli import main; main()", *command],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert CANARY not in done.stdout + done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert "leyla:***@127.0.0.1:9" in done.stderr
