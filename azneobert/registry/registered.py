"""What a recipe's pipeline has registered, by content: without numbers, runs or places of one MLflow store.

So the file means the same on every machine, and a version can be found in any store that has it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from azneobert.errors import RegistryError
from azneobert.files import read_json, write_json
from azneobert.mlflow_place import tracking_uri
from azneobert.recipe import Tracking
from azneobert.registry.versions import Version, find_digest


@dataclass(frozen=True)
class Registered:
    """A version that a phase has become: the model's name, the phase's alias, the sha256 of the version's manifest."""

    model: str
    alias: str
    manifest_sha256: str

    @property
    def uri(self) -> str:
        """The alias, as MLflow and this project write it."""
        return f"models:/{self.model}@{self.alias}"


def write_registered(file: Path, registered: dict[str, Registered]) -> None:
    """Write what each phase has become."""
    write_json(file, {phase: asdict(each) for phase, each in registered.items()})


def read_registered(file: Path) -> dict[str, Registered]:
    """What each phase has become.

    Raises:
        RegistryError: the file is missing or is no such file.
    """
    try:
        content = read_json(file)
        return {str(phase): Registered(**{k: str(v) for k, v in each.items()}) for phase, each in content.items()}
    except FileNotFoundError:
        raise RegistryError(f"{file}: no such file; `dvc repro register` writes it") from None
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise RegistryError(f"{file}: damaged ({error}); `dvc repro -f -s register` writes it anew") from None


def registered_version(asked: str, registered: dict[str, Registered], tracking: Tracking) -> str:
    """The URI to pull for `asked`: for an alias of this pipeline, the very version that the pipeline registered.

    The alias itself may point at another version by now, such as one of an experiment.

    Raises:
        RegistryError: the store does not have that version.
    """
    for each in registered.values():
        if asked == each.uri:
            return require_version(each, tracking).uri
    return asked


def require_version(registered: Registered, tracking: Tracking) -> Version:
    """The version of that content.

    Raises:
        RegistryError: the store does not have it.
    """
    version = find_digest(tracking, registered.model, registered.manifest_sha256)
    if version is None:
        raise RegistryError(
            f"{registered.uri}: the version that this pipeline has registered is not in {tracking_uri(tracking)}; "
            "use `azneobert registry restore`"
        )
    return version
