"""The encoder that a name means: a registered version, a folder, or a model of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from azneobert.errors import AzNeoBertError
from azneobert.files import sha256_file
from azneobert.pretrained import load_config, load_tokenizer
from azneobert.recipe import Tracking
from azneobert.registry.contents import VERSION_MANIFEST
from azneobert.registry.pull import Expect, in_silence, pull
from azneobert.registry.versions import find_version

_OF_A_MODEL = ["*.json", "*.safetensors", "*.txt", "*.model"]  # no pickles, which are programs
_REGISTERED = "models:/"


@dataclass(frozen=True)
class Encoder:
    """A folder that transformers loads, what it is called, and the sha256 of what is in it.

    `name` is a version by its number, such as models:/azneobert/3, a folder, or a name on the hub.
    """

    name: str
    folder: Path
    sha256: str


def is_registered(name: str) -> bool:
    """Whether a name is that of a registered version."""
    return name.startswith(_REGISTERED)


@contextmanager
def open_encoder(name: str, tracking: Tracking | None, expect: Expect = in_silence) -> Iterator[Encoder]:
    """The encoder for the block: a `models:/` URI is pulled, a folder is used as it is, another name is the hub's.

    Raises:
        RegistryError: the registry does not have the version, or it is damaged.
        AzNeoBertError: there is no such model, or transformers cannot read it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if is_registered(name):
            assert tracking is not None, "a registry is in an MLflow store"
            name = find_version(name, tracking).uri
            folder = pull(name, Path(scratch) / "model", tracking, expect)
        else:
            folder = Path(name) if Path(name).is_dir() else _from_hub(name)
        load_config(folder)
        if not any(folder.glob("*.safetensors")):
            raise AzNeoBertError(f"{name}: has no weights as .safetensors; use a model that has")
        yield Encoder(name, folder, _sha256_of(folder))


def check_encoder(name: str, tracking: Tracking) -> str:
    """Check before work begins that there is such an encoder; of a registered one, only the version is looked up.

    Returns its name as `Encoder` has it: of a registered one the version by its number, whatever alias was given.

    Raises:
        RegistryError: the registry does not have the version, or does not answer.
        AzNeoBertError: there is no such model, or transformers cannot read it.
    """
    if is_registered(name):
        return find_version(name, tracking).uri
    with open_encoder(name, tracking) as encoder:
        load_tokenizer(encoder.folder)
        return encoder.name


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_OF_A_MODEL))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise AzNeoBertError(
            f"{name}: no such folder, and the hub does not give it ({said}); expected models:/NAME@ALIAS, a folder, or "
            "a name of the hub, as xlm-roberta-base"
        ) from None
    return folder


def _sha256_of(folder: Path) -> str:
    """For a version, that of its manifest, which names all hashes; for another folder, that of its files' hashes."""
    if (folder / VERSION_MANIFEST).is_file():
        return sha256_file(folder / VERSION_MANIFEST)
    found = hashlib.sha256()
    for file in sorted(file for pattern in _OF_A_MODEL for file in folder.glob(pattern)):
        found.update(f"{file.name} {sha256_file(file)}\n".encode())
    return found.hexdigest()
