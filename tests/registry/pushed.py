"""What the tests of the registry push, and where the store keeps it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mlflow import MlflowClient
from toy import Toy

from azneobert.registry.push import push
from azneobert.registry.versions import Version

FIGURES = {
    "eval/loss": 5.25,
    "eval/accuracy": 0.125,
    "eval/loss/news": 5.5,
    "eval/accuracy/news": 0.0625,
}


def push_newest(toy: Toy, aliases: list[str], figures: dict[str, float] = FIGURES) -> Version:
    picture = toy.folder / "phase1.png"
    picture.write_bytes(b"\x89PNG a picture")
    return push(toy.checkpoints().steps()[-1], toy.recipe, figures, [picture], aliases)


def artifacts_of(toy: Toy, version: Version) -> Path:
    """Where the store keeps a version's files."""
    uri = MlflowClient(toy.recipe.tracking.mlflow_uri).get_model_version_download_uri(version.name, str(version.number))
    match = re.fullmatch(r"runs:/(?P<run>\w+)/(?P<place>.+)", uri)
    assert match
    run = MlflowClient(toy.recipe.tracking.mlflow_uri).get_run(match["run"])
    return Path(run.info.artifact_uri.removeprefix("file://")) / match["place"]


def forget_places() -> None:
    """A process of MLflow's keeps in mind where a run's artifacts are; another process would ask the store."""
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    _artifact_repos_cache.clear()


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
