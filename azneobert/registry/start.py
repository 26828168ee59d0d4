"""A phase that starts from a registered version: its checkpoint is pulled once, and stays the same from then on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from azneobert.checkpoint.manifest import read_manifest
from azneobert.errors import RegistryError
from azneobert.files import read_json, write_json
from azneobert.layout import CHECKPOINT, Layout
from azneobert.recipe import PhaseName, Recipe
from azneobert.registry.pull import Expect, in_silence, pull_checkpoint
from azneobert.registry.versions import DIGEST_TAG, find_version

_VERSION = "version.json"  # names the version


def bring_start(recipe: Recipe, layout: Layout, phase: PhaseName, expect: Expect = in_silence) -> str | None:
    """Pull the checkpoint of the version that a phase starts from, if any. Returns a line that names the version.

    An alias is resolved at this pull: an interrupted run goes on from the version that it began with, wherever the
    alias points by then. If the URI in the recipe has changed, the new version is pulled.

    Raises:
        RegistryError: as `pull_checkpoint`; or the version has another model or tokenizer than the recipe.
    """
    settings, folder = recipe.phase(phase), layout.start(phase)
    if settings.version is None or settings.carry is None:
        return None
    moments = settings.carry.moments
    known = _known(folder / _VERSION) if (folder / CHECKPOINT).is_dir() else {}
    if known.get("uri") != settings.version or (moments and not known.get("moments")):
        version = find_version(settings.version, recipe.tracking)
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        pull_checkpoint(version.uri, folder / CHECKPOINT, recipe.tracking, expect, moments=moments)
        known = {
            "uri": settings.version,
            "version": version.uri,
            "manifest_sha256": version.tags.get(DIGEST_TAG, ""),
            "moments": moments,
        }
        write_json(folder / _VERSION, known)
    _check(recipe, phase, folder / CHECKPOINT, known)
    return f"{phase}: starts from {known['version']} ({settings.version}), sha256 {known['manifest_sha256'][:12]}"


def _known(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _check(recipe: Recipe, phase: PhaseName, checkpoint: Path, known: dict[str, Any]) -> None:
    """Check, before hours of work on the data, that the version has the recipe's model."""
    theirs, ours = read_manifest(checkpoint).identity["model"], recipe.model.model_dump(mode="json")
    for key, value in ours.items():
        if key in theirs and theirs[key] != value:
            raise RegistryError(
                f"{phase}.start_from: {known['version']} has model.{key} {theirs[key]}, this recipe {value}; "
                "use the version's model, or another version"
            )
