"""Turn a pulled version into the folder for a model hub, and upload it only on request."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from azneobert.errors import CheckpointError, RegistryError
from azneobert.files import copy_regular, read_json, sha256_file, write_json
from azneobert.recipe import Tracking
from azneobert.registry.card import CARD
from azneobert.registry.contents import verify_version
from azneobert.registry.hub_card import Published, hub_card
from azneobert.registry.pull import pull

Dtype = Literal["bf16", "fp32"]
SUMS = "SHA256SUMS"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_TORCH_NAMES = {"bf16": "bfloat16", "fp32": "float32"}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"


def publish(version: Path, target: Path, dtype: Dtype = "bf16", license_id: str | None = None) -> Path:
    """Make the folder for a model hub from a pulled version. It appears whole, in a new or empty place.

    `license_id` is an identifier of the hub's list; by default it is the recipe's `registry.license`. In bf16 the
    weights are rounded to the nearest number, halves to even.

    Raises:
        RegistryError: the version is damaged or says too little of itself, there is no licence, a weight is not finite,
            or `target` is in the way.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RegistryError(f"{target}: is there already and not an empty folder; name a new one")
    if not version.is_dir():
        raise RegistryError(f"{version}: no such folder; use one that `azneobert registry pull` made, or models:/...")
    verify_version(str(version), version)
    facts = _facts(version)
    licensed = _license(license_id, facts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".publish-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        _write(version, folder, facts, dtype, licensed)
        if target.exists():
            target.rmdir()
        folder.rename(target)
    return target


def publish_uri(
    uri: str, target: Path, tracking: Tracking, dtype: Dtype = "bf16", license_id: str | None = None
) -> Path:
    """`publish` for a registry URI: the version is pulled, verified, published, and its copy removed again.

    Raises:
        RegistryError: as `pull` and `publish`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return publish(pull(uri, Path(scratch) / "version", tracking), target, dtype, license_id)


def check_upload(repository: str) -> None:
    """Check that an upload could begin: there is a valid repository name, and a token.

    Raises:
        RegistryError: one of them is missing; the hub has not been contacted.
    """
    from huggingface_hub import get_token

    if not _REPOSITORY.fullmatch(repository):
        raise RegistryError(f"--upload {repository}: no name of a repository; use OWNER/NAME")
    if not get_token():
        raise RegistryError(f"--upload {repository}: no token of the hub; set HF_TOKEN, or use `hf auth login`")


def upload(folder: Path, repository: str) -> str:
    """Upload a published folder as one commit. Returns its address. A missing repository is made, as a private one.

    Raises:
        RegistryError: there is no token, or the hub refuses the upload; what is there stays as it was.
    """
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi

    check_upload(repository)
    files = [CommitOperationAdd(file.name, str(file)) for file in sorted(folder.iterdir())]
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.create_commit(repository, files, commit_message=f"AzNeoBERT, {folder.name}").commit_url)
    except (HTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise RegistryError(
            f"{repository}: not uploaded ({reason}), but the folder is whole; use `hf upload {repository} {folder}`"
        ) from None


def _facts(version: Path) -> dict[str, Any]:
    """What the version says of itself."""
    try:
        facts = read_json(version / CARD)
        if not isinstance(facts, dict):
            raise ValueError("holds no facts by name")
        return facts
    except FileNotFoundError:
        raise RegistryError(
            f"{version}: has no {CARD}, as versions of an earlier commit; use `dvc repro register` and pull it again"
        ) from None
    except (OSError, ValueError) as error:
        raise RegistryError(f"{version / CARD}: cannot be read ({error}); pull it again") from None


def _license(asked: str | None, facts: dict[str, Any]) -> str:
    place, found = "--license", asked
    if not found:
        place, found = "registry.license", facts.get("recipe", {}).get("registry", {}).get("license")
    if not found:
        raise RegistryError(
            f"--license: no licence is stated; use --license apache-2.0, or another one of {_LICENSES}, or "
            "registry.license of the recipe"
        )
    if not _LICENSE.fullmatch(lowered := str(found).lower()):
        raise RegistryError(f"{place} {str(found)[:60]}: no identifier; expected one such as apache-2.0: {_LICENSES}")
    return lowered


def _write(version: Path, folder: Path, facts: dict[str, Any], dtype: Dtype, licensed: str) -> None:
    stated = read_json(version / "manifest.json")["files"]
    if missing := sorted({_CONFIG, _WEIGHTS, *_TOKENIZER} - stated.keys()):
        raise RegistryError(f"{version}: has no {missing[0]}; use a version that `azneobert registry pull` brought")
    pictures = sorted(name for name in stated if name.endswith(".png") and "/" not in name)
    try:
        config = read_json(version / _CONFIG)
        write_json(folder / _CONFIG, {**config, "dtype": _TORCH_NAMES[dtype]})
        for name in (*_TOKENIZER, *pictures):
            copy_regular(version / name, folder / name)
        sha256 = {
            f"`{_WEIGHTS}`, {dtype}": _write_weights(version / _WEIGHTS, folder / _WEIGHTS, dtype),
            f"the version's `{_WEIGHTS}`, fp32": stated[_WEIGHTS]["sha256"],
            "the version's `manifest.json`": sha256_file(version / "manifest.json"),
            "the tokenizer of the training": facts["identity"]["tokenizer"],
        }
        card = hub_card(facts, Published(dtype, licensed, pictures, sha256))
    except CheckpointError as error:
        raise RegistryError(f"{version / _WEIGHTS}: {error}") from None
    # For a version made by hand, whose hashes are right but whose content is wrong.
    except (AttributeError, IndexError, KeyError, SafetensorError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"[:200]
        raise RegistryError(
            f"{version}: is not laid out as `azneobert` makes a version ({reason}); pull it again"
        ) from None
    (folder / "README.md").write_text(card, encoding="utf-8")
    sums = "".join(f"{sha256_file(file)}  {file.name}\n" for file in sorted(folder.iterdir()))
    (folder / SUMS).write_text(sums, encoding="utf-8")


def _write_weights(source: Path, target: Path, dtype: Dtype) -> str:
    """Write the weights; fp32 copies the file. Returns the sha256 of what is written."""
    if dtype == "fp32":
        shutil.copyfile(source, target)
        return sha256_file(target)
    import torch

    from azneobert.checkpoint.tensors import LazyTensors, open_safetensors, write_safetensors

    weights = open_safetensors(source)

    def rounded(name: str) -> torch.Tensor:
        tensor = weights[name].to(torch.bfloat16)
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name}: holds numbers that are not finite in bf16; use --dtype fp32")
        return tensor

    written = write_safetensors(
        target, LazyTensors(weights.shapes, rounded), dict.fromkeys(weights.shapes, torch.bfloat16)
    )
    return str(written["sha256"])
