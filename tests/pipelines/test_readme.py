"""The documentation's commands run, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from project import ROOT, Project, Reproduced, environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Of the sample's project, in this order; docs/data.md and docs/cluster.md have tests of their own.
EXECUTED = [ROOT / "README.md", ROOT / "docs/recipes.md"]
# `make setup` and activating are what the test's environment does; `make repro` has run when `reproduced` is ready;
# `make test` is this; a server runs until it is ended.
ELSEWHERE = {"make setup", "make repro", "make test", ". .venv/bin/activate", "azneobert ui"}


def commands() -> list[str]:
    """What stands in blocks of `bash`; `console` marks what a test cannot run as it stands."""
    texts = [page.read_text(encoding="utf-8") for page in EXECUTED]
    blocks = [block for text in texts for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)]
    return [line for block in blocks for line in block.splitlines() if line]


def test_the_quick_start_is_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n## Two commands\n\n```bash\nmake repro\nmake test\n```\n" in text


@pytest.mark.parametrize("command", [c for c in commands() if c not in ELSEWHERE])
def test_a_command_of_the_documentation_runs(reproduced: Reproduced, command: str) -> None:
    reproduced.project.run("bash", "-c", command)


def test_the_graph_is_the_one_that_dvc_draws(tmp_path: Path) -> None:
    project = Project.take(tmp_path / "project")
    project.run("git", "init", "-q")
    assert project.run("dvc", "dag", "--md").stdout.strip() in (ROOT / "docs/pipeline.md").read_text(encoding="utf-8")


def test_mlflow_ui_in_the_project_shows_the_runs(reproduced: Reproduced) -> None:
    port = str(20000 + os.getpid() % 20000)
    server = subprocess.Popen(
        ["mlflow", "ui", "--port", port, "--workers", "1"],
        cwd=reproduced.project.folder,
        env=environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        body = b'{"filter": "name = \'azneobert\'", "max_results": 10}'
        found = _post(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", body)
        assert '"azneobert"' in found
        assert '"phase2"' in _get(f"http://127.0.0.1:{port}/api/2.0/mlflow/registered-models/get?name=azneobert-sample")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def _post(url: str, body: bytes) -> str:
    return _answer(urllib.request.Request(url, body, {"Content-Type": "application/json"}))


def _get(url: str) -> str:
    return _answer(urllib.request.Request(url))


def _answer(request: urllib.request.Request) -> str:
    deadline = time.monotonic() + 90
    while True:
        try:
            return urllib.request.urlopen(request, timeout=20).read().decode()
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
