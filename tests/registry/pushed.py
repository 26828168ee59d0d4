"""What the tests of the registry push, and where the store keeps it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlflow import MlflowClient
from toy import Toy

from azneobert.registry.corpus import Counts
from azneobert.registry.push import push
from azneobert.registry.versions import Version

FIGURES = {
    "eval/loss": 5.25,
    "eval/accuracy": 0.125,
    "eval/loss/news": 5.5,
    "eval/accuracy/news": 0.0625,
}


def push_newest(
    toy: Toy, aliases: list[str], figures: dict[str, float] = FIGURES, counts: Counts | None = None
) -> Version:
    picture = toy.folder / "phase1.png"
    picture.write_bytes(b"\x89PNG a picture")
    return push(toy.checkpoints().steps()[-1], toy.recipe, figures, [picture], aliases, counts=counts)


def artifacts_of(toy: Toy, version: Version) -> Path:
    """Where the store keeps a version's encoder."""
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    return Path(client.get_model_version_download_uri(version.name, str(version.number)).removeprefix("file://"))


def checkpoint_of(toy: Toy, version: Version) -> Path:
    """Where it keeps its checkpoint."""
    run = MlflowClient(toy.recipe.tracking.mlflow_uri).get_run(version.run_id)
    [folder] = Path(run.info.artifact_uri.removeprefix("file://")).glob("checkpoint-*")
    return folder


def forget_places() -> None:
    """A process of MLflow's keeps in mind where a run's artifacts are; another process would ask the store."""
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    _artifact_repos_cache.clear()


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
