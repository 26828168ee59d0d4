"""The folder of a version: the encoder as transformers and MLflow load it, its card, golden ids and manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from azneobert.checkpoint.finite import check_finite
from azneobert.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from azneobert.checkpoint.universal import all_weights, copy_without_moments, read_checkpoint
from azneobert.errors import RegistryError
from azneobert.files import copy_regular, sha256_file, write_json, write_whole
from azneobert.layout import WEIGHTS_FIGURE
from azneobert.model.export import export_transformers
from azneobert.recipe import Recipe
from azneobert.registry.card import CARD, card_facts, model_card
from azneobert.registry.corpus import Counts
from azneobert.registry.golden import GOLDEN, make_golden
from azneobert.registry.mlmodel import write_mlmodel
from azneobert.registry.new_version import seal


def checkpoint_to_store(checkpoint: Path, scratch: Path, *, with_moments: bool) -> tuple[Path, Manifest]:
    """The checkpoint in the form that a version holds, possibly a copy in a scratch folder; and its manifest.

    Raises:
        CheckpointError: it is damaged, or holds numbers that are not finite.
    """
    moments = with_moments and read_manifest(checkpoint).moments
    state, manifest = read_checkpoint(checkpoint, moments=moments)
    check_finite(state, checkpoint)
    if with_moments or not manifest.moments:
        return checkpoint, manifest
    light = scratch / "checkpoint"
    light.mkdir()
    return light, copy_without_moments(checkpoint, light)


def check_evaluated(checkpoint: Path, manifest: Manifest, figures: dict[str, Any]) -> None:
    """Check that the figures belong to these weights, if the figures say to which they belong.

    Raises:
        RegistryError: they belong to other weights.
    """
    evaluated, found = figures.get(WEIGHTS_FIGURE), manifest.files["weights.safetensors"]["sha256"]
    if evaluated not in (None, found):
        raise RegistryError(
            f"{checkpoint}: its weights ({found[:12]}) are not those that were evaluated ({str(evaluated)[:12]}); "
            "evaluate it first, as with `dvc repro evaluate`"
        )


def check_complete(checkpoint: Path, manifest: Manifest) -> None:
    """Check that a checkpoint is the last one of its phase.

    Raises:
        RegistryError: the phase has more steps.
    """
    steps = manifest.identity.get("phase", {}).get("steps", manifest.step)
    if manifest.step < steps:
        raise RegistryError(
            f"{checkpoint}: step {manifest.step:,} of the {steps:,} of {manifest.phase}; train it to the end, "
            "or register it all the same with --force"
        )


def assemble(
    checkpoint: Path,
    recipe: Recipe,
    figures: dict[str, Any],
    pictures: list[Path],
    folder: Path,
    golden: Path | None = None,
    counts: Counts | None = None,
) -> Manifest:
    """Make the folder of a version from a verified checkpoint. Returns the checkpoint's manifest.

    `golden` is a file that keeps the golden ids and logits: they are read from it, or computed and written to it.
    Another processor would compute other last digits, and so make another version.
    """
    state, manifest = read_checkpoint(checkpoint, moments=False)
    export_transformers(
        all_weights(state), recipe.model, checkpoint / "tokenizer.json", folder, recipe.data.cleaning.language
    )
    write_mlmodel(folder)
    if golden is not None and golden.is_file():
        copy_regular(golden, folder / GOLDEN)
    else:
        write_json(folder / GOLDEN, make_golden(folder))
    if golden is not None and not golden.exists():
        write_whole(golden, (folder / GOLDEN).read_bytes())
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
    facts = card_facts(recipe, manifest, figures, counts or {})
    write_json(folder / CARD, facts)
    card = model_card(facts, [picture.name for picture in pictures])
    (folder / "README.md").write_text(card, encoding="utf-8")
    seal(
        folder,
        phase=manifest.phase,
        checkpoint={"manifest_sha256": sha256_file(checkpoint / MANIFEST), "moments": manifest.moments},
    )
    return manifest
