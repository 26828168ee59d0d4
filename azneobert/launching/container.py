"""The ranks of a job in a container of Apptainer: which image, and what of the host they see.

The project is mounted at its own path, so paths are the same inside and outside. The code that runs is the project's;
everything that it imports comes from the image.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from azneobert.dvc_files import cache_folder
from azneobert.errors import DataError, RecipeError
from azneobert.files import read_json, sha256_file
from azneobert.launching.settings import FILE

_NOT_MOUNTED = set(",:\n")  # Apptainer separates its mounts with these characters


@dataclass(frozen=True)
class Image:
    """An image file: its digest, and the stat that shows whether the file is still the same."""

    path: Path
    digest: str  # sha256:...
    stat: str  # size and modification time, as `stat -Lc '%s %Y'` prints them


def find_image(path: Path) -> Image:
    """The image of a job. Its digest is the one that containers/build recorded for this file, or is computed.

    Raises:
        RecipeError: there is none.
    """
    path = Path.cwd() / path
    try:
        if not path.is_file():
            raise FileNotFoundError
        found = path.stat()
        stat = f"{found.st_size} {int(found.st_mtime)}"
        return Image(path, _recorded(path, stat) or f"sha256:{sha256_file(path)}", stat)
    except FileNotFoundError:
        raise RecipeError(
            f"{FILE}: container: {path}: no such image; build it with containers/build, or use null for none"
        ) from None
    except OSError as error:
        raise RecipeError(f"{FILE}: container: {path}: cannot be read ({error.strerror}); see to that") from None


def _recorded(image: Path, stat: str) -> str | None:
    try:
        record = read_json(image.with_name(f"{image.name}.json"))
        return str(record["sha256"]) if record["stat"] == stat else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def within(image: Image, gpus: bool) -> list[str]:
    """The words before a command that make it run in an image, in this project's folder.

    Raises:
        RecipeError: Apptainer cannot mount a path of it.
    """
    project = Path.cwd()
    mounted = [project, *_elsewhere(project)]
    for path in (image.path, *mounted):
        if _NOT_MOUNTED & set(str(path)):
            raise RecipeError(f"{path}: Apptainer mounts no path with a comma or a colon; use another folder")
    command = ["apptainer", "--quiet", "exec", *(["--nv"] if gpus else [])]
    for path in mounted:
        command += ["--bind", str(path)]
    command += ["--pwd", str(project), "--env", f"PYTHONPATH={project}", "--env", "PYTHONNOUSERSITE=1"]
    return [*command, str(image.path)]


def _elsewhere(project: Path) -> list[Path]:
    """A project's folders that lie outside of it: outputs on another disk, DVC's cache, a worktree's git folder."""
    places = [project / "outputs", project / "data"]
    with suppress(DataError):  # DVC does not say
        places.append(project / cache_folder())
    command = ["git", "rev-parse", "--git-common-dir"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if said:
        places.append(project / said)
    found = {place.resolve() for place in places if place.exists()}
    return sorted(place for place in found if not place.is_relative_to(project))
