"""What is written down names what is there: the workflow, the hooks of pre-commit, every page's commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from azneobert.cli import app
from azneobert.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
SETUP = ROOT / ".github/actions/setup/action.yml"
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
DOCUMENTS = [*PAGES, ROOT / "README.md", ROOT / "models/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A command that begins a line, after a prompt or what it sets in the environment for itself.
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*azneobert ([^|;&#>]+)")
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
JOBS: dict[str, Any] = read_yaml(WORKFLOW)["jobs"]


def steps() -> Iterator[dict[str, Any]]:
    for job in JOBS.values():
        yield from job["steps"]
    yield from read_yaml(SETUP)["runs"]["steps"]


def code_of(page: Path) -> list[str]:
    """What stands in backticks, and the lines of its blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.findall(r"`([^`]+)`", rest) + [line for block in blocks for line in block.splitlines()]


def made(lines: list[str]) -> list[str]:
    return [target for line in lines for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", line)]


def test_every_job_runs_targets_of_the_makefile_and_programs_that_are_there() -> None:
    lines = [line for step in steps() for line in step.get("run", "").splitlines()]
    assert {"lint", "test", "report", "setup"} < set(made(lines)) <= TARGETS
    assert {line.split()[0] for line in lines} <= {"make", "printf", "cat", "gh", "sudo"}


def test_the_workflow_runs_what_every_submission_must_pass() -> None:
    asked = set(made((ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()))
    assert asked <= set(made([step.get("run", "") for step in steps()]))


def test_only_official_actions_run_each_by_its_major_version() -> None:
    used = {step["uses"] for step in steps() if "uses" in step}
    assert {action for action in used if action.startswith("./")} == {f"./{SETUP.parent.relative_to(ROOT)}"}
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used if not action.startswith("./"))


def test_a_token_that_writes_is_given_to_the_comment_alone_and_never_for_a_fork() -> None:
    assert read_yaml(WORKFLOW)["permissions"] == {"contents": "read"}
    assert [name for name, job in JOBS.items() if "permissions" in job] == ["report"]
    (checkout,) = [step for step in JOBS["report"]["steps"] if "checkout" in step.get("uses", "")]
    assert checkout["with"]["persist-credentials"] is False
    (comment,) = [step for step in steps() if "github.token" in str(step)]
    assert "gh pr comment" in comment["run"]
    assert "head.repo.full_name == github.repository" in comment["if"]


def test_what_a_pull_request_is_called_never_stands_in_a_command() -> None:
    assert not [step["run"] for step in steps() if "${{" in step.get("run", "")]


def test_the_report_is_read_from_where_it_is_written() -> None:
    (upload,) = [step for step in steps() if "upload-artifact" in step.get("uses", "")]
    script = (ROOT / ".github/report.py").read_text(encoding="utf-8")
    assert f'REPORT = Path("{upload["with"]["path"]}")' in script
    assert all(f'"{name}"' in script for name in ("comment.md", "report.md"))


def test_the_hooks_run_programs_of_the_environment_on_the_files_that_they_are_for() -> None:
    hooks = {hook["id"]: hook for hook in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]}
    assert all(hook["language"] == "system" and ".venv/bin/" in hook["entry"] for hook in hooks.values())
    recipes = hooks["recipes"]
    names = ["params.yaml", *(f"recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")), "dvc.yaml"]
    checked = {n for n in names if re.search(recipes["files"], n) and not re.search(recipes["exclude"], n)}
    assert checked == set(names) - {"dvc.yaml", "recipes/template.yaml"}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_every_target_command_and_option_of_a_page_is_there(page: Path) -> None:
    lines = code_of(page)
    assert set(made(lines)) <= TARGETS
    root = typer.main.get_command(app)
    for words in [found[1].split() for line in lines if (found := COMMAND.match(line))]:
        command: Any = root
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        asked = {word.partition("=")[0].rstrip(")`,") for word in words if word.startswith("-") and len(word) > 2}
        assert asked <= known | {"--help"}, (command.name, asked - known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_a_page_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    for path in re.findall(r"`((?:tests|docs|data|pipelines|azneobert|\.github)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
