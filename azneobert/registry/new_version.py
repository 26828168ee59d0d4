"""The last steps of every push: a folder becomes a LoggedModel of its run, and the model a registered version."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from azneobert.files import sha256_file, write_json
from azneobert.mlflow_store import as_default_store
from azneobert.recipe import Tracking
from azneobert.registry.contents import FORMAT_VERSION, VERSION_MANIFEST, read_contents
from azneobert.registry.stored import Stored
from azneobert.registry.versions import DIGEST_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_OF_A_CARD = 13  # lines of its beginning: what it is, and its figures


def seal(folder: Path, **more: object) -> str:
    """Write the manifest.json of a version's folder, with `more` beside the files' hashes; the manifest's sha256."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            file.chmod(0o644)  # whatever the umask or a library has set
            files[file.relative_to(folder).as_posix()] = {"sha256": sha256_file(file), "size": file.stat().st_size}
    content = {"format": "azneobert-version", "format_version": FORMAT_VERSION, **more, "files": files}
    write_json(folder / VERSION_MANIFEST, content)
    return sha256_file(folder / VERSION_MANIFEST)


@dataclass(frozen=True)
class Model:
    """A version about to be registered: its sealed folder, and what MLflow is told of it.

    `metrics` are logged for the model and for its run, at `step`. `kind` is MLflow's model type.
    """

    folder: Path
    name: str  # of the registered model
    called: str  # of the LoggedModel
    kind: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The sha256 of its manifest."""
        return sha256_file(self.folder / VERSION_MANIFEST)


def ensure_model(client: MlflowClient, name: str, description: str) -> None:
    """Make the registered model, if it is not there."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=description)


def create_version(client: MlflowClient, tracking: Tracking, model: Model, run_id: str) -> int:
    """Put the folder into the store, then make the version. Returns its number. Uses what a killed push stored."""
    experiment = client.get_run(run_id).info.experiment_id
    model_id = _stored_before(client, tracking, model, experiment, run_id)
    model_id = model_id or _put(client, model, experiment, run_id)
    with as_default_store(tracking):  # MLflow looks the model up in the store of its environment
        created = client.create_model_version(
            model.name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags=model.tags | {DIGEST_TAG: model.digest},
            description=_description(model.folder, experiment, run_id),
        )
    shown = json.dumps([{"name": model.name, "version": str(created.version)}])  # on MLflow's page of the model
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": shown})
    return int(created.version)


def has_sizes(stored: Stored, sizes: dict[str, int]) -> bool:
    """Whether a folder of the store has these files, as far as names and sizes tell."""
    found = stored.sizes()
    return all(found.get(name) == size for name, size in sizes.items())


def _stored_before(client: MlflowClient, tracking: Tracking, model: Model, experiment: str, run_id: str) -> str | None:
    """The model of a push that was killed before it made the version. Half-stored models are removed."""
    query = f"tags.`{DIGEST_TAG}` = '{model.digest}'"
    for found in client.search_logged_models([experiment], filter_string=query):
        if str(found.status) != "READY":
            client.delete_logged_model(found.model_id)
            continue
        contents = read_contents(model.name, model.folder)
        stored = Stored(found.artifact_location, tracking)
        if found.source_run_id == run_id and has_sizes(stored, {n: f["size"] for n, f in contents.files.items()}):
            return str(found.model_id)
    return None


def _put(client: MlflowClient, model: Model, experiment: str, run_id: str) -> str:
    from mlflow.entities import LoggedModelOutput, Metric

    made = client.create_logged_model(
        experiment,
        name=re.sub(r"[^A-Za-z0-9_-]", "-", model.called),
        source_run_id=run_id,
        model_type=model.kind,
        tags={DIGEST_TAG: model.digest},
        params=model.params,
    )
    client.log_model_artifacts(made.model_id, str(model.folder))
    client.finalize_logged_model(made.model_id, "READY")
    now = int(time.time() * 1000)
    metrics = [Metric(k, value, now, model.step, model_id=made.model_id) for k, value in model.metrics.items()]
    client.log_batch(run_id, metrics=metrics)
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, model.step)])
    return str(made.model_id)


def _description(folder: Path, experiment: str, run_id: str) -> str:
    """The card's first lines, and where MLflow shows the curves."""
    card = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in card[:_OF_A_CARD] if not line.startswith("!")]
    return "\n".join([*lines, "", f"[loss curves](#/experiments/{experiment}/runs/{run_id}/model-metrics)"])
