"""`azneobert doctor`: what this machine can do for a recipe, and for each thing in the way what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from azneobert.cli.console import console
from azneobert.cli.recipe import RecipeName
from azneobert.cli.remote import opened, place, probe
from azneobert.doctor.checkup import Check, examine, problem_of
from azneobert.doctor.disk import look_at_caches, look_at_dvc_cache, look_at_speed, look_for_room
from azneobert.doctor.features import look_at_file_system
from azneobert.doctor.finding import Finding, Findings, Subject, ok, warning
from azneobert.doctor.gpu import look_at_deepspeed, look_at_gpus, look_at_kernels, look_at_torch
from azneobert.doctor.host import look_at_apptainer, look_at_clock, look_at_git, look_at_limits
from azneobert.doctor.slurm import look_at_launch, look_at_slurm
from azneobert.doctor.tracking import look_at_mlflow
from azneobert.errors import RecipeError, RemoteError
from azneobert.recipe_files import open_recipe

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def look_at_remote(subject: Subject) -> Findings:
    """Whether DVC's remote answers; whether it has everything `azneobert remote check` says."""
    try:
        with opened() as repo:
            if not repo.config["core"].get("remote"):
                yield warning("no remote: outputs are on this machine alone", "azneobert remote set URL")
                return
            storage, where = probe(repo), place(repo)
            if storage.fs.protocol == "local" and not storage.fs.exists(storage.path):
                yield warning(f"{where}: is not there yet, the first push makes it", "dvc push")
            else:
                yield ok(f"{where}: answers")
    except RemoteError as error:
        yield problem_of(error, "run this in the project's folder")


CHECKS = (
    Check("GPUs", look_at_gpus, 60),
    Check("torch", look_at_torch, 60),
    Check("kernels", look_at_kernels, 120),
    Check("DeepSpeed", look_at_deepspeed, 120),
    Check("launch", look_at_launch),
    Check("SLURM", look_at_slurm, 45),
    Check("Apptainer", look_at_apptainer),
    Check("disk speed", look_at_speed, 40),
    Check("room", look_for_room),
    Check("file system", look_at_file_system, 30),
    Check("caches", look_at_caches),
    Check("MLflow", look_at_mlflow, 45),
    Check("DVC cache", look_at_dvc_cache),
    Check("DVC remote", look_at_remote, 30),
    Check("limits", look_at_limits),
    Check("clock", look_at_clock),
    Check("git", look_at_git),
)
_WIDTH = max(len(check.area) for check in CHECKS)


def check_up(
    name: RecipeName = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Say what this machine can do for a recipe, and what is in the way; exit code 1 if there is a problem."""
    counts: Counter[str] = Counter()
    findings = []
    for finding in _findings(name):
        counts[finding.status] += 1
        if as_json:
            findings.append(asdict(finding))
        else:
            _show(finding)
    if as_json:
        typer.echo(json.dumps({"findings": findings, "problems": counts["problem"], "warnings": counts["warning"]}))
    else:
        console.print(f"problems: {counts['problem']}, warnings: {counts['warning']}")
    if counts["problem"]:
        raise typer.Exit(1)


def _findings(name: str | None) -> Findings:
    recipe = None
    try:
        path, recipe = open_recipe(name)
        yield Finding("ok", f"{path}: {recipe.name}", area="recipe")
    except RecipeError as error:
        found = problem_of(error, "correct it, or put another in place: azneobert recipe use NAME")
        yield Finding(found.status, found.found, found.remedy, "recipe")
    yield from examine(CHECKS, Subject(recipe))


def _show(finding: Finding) -> None:
    style = _STYLES[finding.status]
    console.print(Text.assemble((f"{finding.status:<8}", style), f"{finding.area:<{_WIDTH + 2}}", finding.found))
    if finding.remedy:
        console.print(Text(f"{'':<{_WIDTH + 10}}{finding.remedy}", "dim" if finding.status == "ok" else ""))
