"""A fine-tuned model becomes a version of a model of its own, which says what it comes from and how well it does."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azneobert.files import read_json
from azneobert.mlflow_place import check_place, tracking_uri
from azneobert.mlflow_store import mlflow_client, mlflow_errors, uploading
from azneobert.recipe import Tracking
from azneobert.registry.champion import CHAMPION
from azneobert.registry.contents import read_contents
from azneobert.registry.mlmodel import write_mlmodel
from azneobert.registry.new_version import Model, create_version, ensure_model, has_sizes, seal
from azneobert.registry.stored import Stored
from azneobert.registry.versions import Version, find_digest, list_versions, place_of, version_of
from azneobert.scratch import scratch_folder

_SCRATCH = "azneobert-push-"
_TASK = "task.json"  # finetuning/saved.py writes it
FROM_TAG, DATA_TAG, TASK_TAG = "azneobert.from", "azneobert.data_sha256", "azneobert.task"
VALIDATION_TAG = "azneobert.validation"


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model's folder, and the report of its experiment: tune.py says what the report holds.

    `source` is the version that it was made from, as models:/azneobert/3, if the store has it, or another name.
    """

    folder: Path
    pictures: list[Path]
    report: dict[str, Any]
    source: str


def push_finetuned(tuned: Tuned, name: str, run_id: str, tracking: Tracking, *, promote: bool = True) -> Version:
    """Register a fine-tuned model as a version of the model `name`. Equal content returns the existing version.

    If the files of that version are missing or damaged in the store, they are stored again.

    The alias `champion` moves to the version if its validation score is better than the champion's on the same data, or
    if there is no champion. Without `promote` the alias stays where it is.

    Raises:
        RegistryError: MLflow does not answer, or the project was moved or copied since.
    """
    check_place(tracking)
    with scratch_folder(Path(tempfile.gettempdir()), _SCRATCH) as scratch, mlflow_errors(tracking_uri(tracking)):
        folder = scratch / "version"
        model = Model(
            folder=folder,
            name=name,
            called=name,
            kind="fine-tuned",
            metrics={f"test/{score}": found["mean"] for score, found in tuned.report["pretrained"].items()},
            tags=_tags(tuned),
        )
        digest = _assemble(tuned, name, folder)
        client = mlflow_client(tracking)
        ensure_model(client, name, f"An encoder fine-tuned on {tuned.report['task']}")
        version = find_digest(tracking, name, digest)
        with uploading():
            if version is None:
                version = version_of(client, name, str(create_version(client, tracking, model, run_id)))
            elif not _is_whole(version, folder, tracking):
                client.log_model_artifacts(str(version.model_id), str(folder))
        if promote and _is_best(version, tracking):
            client.set_registered_model_alias(name, CHAMPION, str(version.number))
        return version_of(client, name, str(version.number))


def is_finetuned(folder: Path) -> bool:
    """Whether a pulled version is a fine-tuned model: only such a version states its task."""
    return (folder / _TASK).is_file()


def _assemble(tuned: Tuned, name: str, folder: Path) -> str:
    shutil.copytree(tuned.folder, folder, copy_function=shutil.copyfile)
    architecture = read_json(folder / "config.json")["architectures"][0]
    tokens = architecture.endswith("ForTokenClassification")
    write_mlmodel(folder, "token-classification" if tokens else "text-classification", architecture)
    for picture in tuned.pictures:
        shutil.copyfile(picture, folder / picture.name)
    card = finetuned_card(tuned, name, tokens=tokens)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return seal(folder)


def finetuned_card(tuned: Tuned, name: str, *, tokens: bool) -> str:
    """The README.md of a version, in Markdown."""
    report, examples = tuned.report, tuned.report["examples"]
    pipeline = "token-classification" if tokens else "text-classification"
    how = ', aggregation_strategy="first"' if tokens else ""  # only a word's first piece was trained
    seeds = len(report["seeds"])
    lines = [
        f"# {name}",
        "",
        f"{report['encoder']} (sha256 {report['encoder_sha256'][:12]}), fine-tuned on {report['task']}: "
        f"{report['kind']}, {report['labels']} labels.",
        "",
        f"Test split, {seeds} {'seeds' if seeds > 1 else 'seed'}, with 95% intervals over seeds and test examples:",
        "",
        "| score | fine-tuned | the same network from random weights |",
        "|---|---|---|",
    ]
    for score, ours in report["pretrained"].items():
        floor = report["random"][score]["mean"]
        lines.append(f"| {score} | {ours['mean']:.4f} ({ours['low']:.4f} to {ours['high']:.4f}) | {floor:.4f} |")
    lines += [
        "",
        f"This is seed {report['best_seed']}, the best on the validation split. {examples['train']:,} examples to "
        f"learn from, {examples['validation']:,} to choose the epoch and the seed, {examples['test']:,} to test; "
        f"sha256 of the data: {report['data_sha256']}.",
        "",
        *_cut(report),
        *(f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in tuned.pictures),
        "",
        f"`azneobert predict models:/{name}@champion FILE` reads and writes files. In Python, of a pulled folder:",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'pipeline("{pipeline}", model="DIR"{how})',
        "```",
        "",
    ]
    return "\n".join(lines)


def _cut(report: dict[str, Any]) -> list[str]:
    if not report["truncated"]:
        return []
    counts = [f"{count:,} of {report['examples'][split]:,} {split}" for split, count in report["truncated"].items()]
    return [f"Examples longer than {report['max_length']} tokens were cut: {', '.join(counts)}.", ""]


def _tags(tuned: Tuned) -> dict[str, str]:
    report = tuned.report
    main = report["score"]
    return {
        TASK_TAG: report["task"],
        FROM_TAG: tuned.source,
        "azneobert.from_sha256": report["encoder_sha256"],
        DATA_TAG: report["data_sha256"],
        VALIDATION_TAG: str(report["validation"]),
        "azneobert.score": f"{main} {report['pretrained'][main]['mean']:.4f}",
    }


def _is_whole(version: Version, folder: Path, tracking: Tracking) -> bool:
    stored = Stored(place_of(mlflow_client(tracking), version), tracking)
    contents = read_contents(version.uri, folder)
    return has_sizes(stored, {name: stated["size"] for name, stated in contents.files.items()})


def _is_best(version: Version, tracking: Tracking) -> bool:
    others = [other for other in list_versions(tracking, version.name) if CHAMPION in other.aliases]
    if not others or others[0].number == version.number:
        return not others
    champion = others[0]
    same = champion.tags.get(DATA_TAG) == version.tags.get(DATA_TAG)
    return same and float(version.tags[VALIDATION_TAG]) > float(champion.tags.get(VALIDATION_TAG, "-inf"))
