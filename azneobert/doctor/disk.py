"""Room for checkpoints, the disk's speed, and where caches lie."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.doctor.finding import Findings, Subject, nearest_folder, ok, problem, size_of, warning
from azneobert.doctor.mounts import mount_of
from azneobert.dvc_files import cache_folder
from azneobert.environment import CACHE, cache_of_user
from azneobert.layout import Layout
from azneobert.model.size import count_parameters
from azneobert.recipe import PHASES, PhaseName, Recipe

_PIECE = 1 << 20
_PIECES = 64
_SPARE = 4 * _PIECES * _PIECE  # free bytes that measuring the speed needs
_SECONDS_TO_MEASURE = 10.0
_SECONDS_TO_SAVE = 120.0  # how long a run that is asked to stop may save: training/stopping.py
_LITTLE = 100_000_000  # bytes


def look_for_room(subject: Subject) -> Findings:
    """Whether the outputs' file system has room for the checkpoints kept while the recipe runs, and one more."""
    place = subject.outputs()
    usage, entries = shutil.disk_usage(place), os.statvfs(place)
    free = f"{size_of(usage.free)} free on {mount_of(place)}"
    if entries.f_files and not entries.f_favail:
        yield problem(f"{free}, but no file can be made there: its inodes are used up", "remove small files there")
    if subject.recipe is None:
        yield ok(f"{free}; how much is needed a recipe would say")
        return
    size = checkpoint_bytes(subject.recipe)
    counts = {phase: checkpoints_to_come(subject.recipe, phase) for phase in PHASES}
    largest, both = max(counts.values()) * size, sum(count + 1 for count in counts.values()) * size
    needs = ", ".join(f"{phase} {count}" for phase, count in counts.items())
    found = f"{free}; {size_of(both)} for checkpoints of {size_of(size)}: {needs}, and a copy of the last of each"
    if usage.free < largest:
        yield problem(
            f"{found}; one phase takes {size_of(largest)}",
            "free some, lower runtime.keep_checkpoints, raise runtime.keep_every, or make outputs a link elsewhere",
        )
    elif usage.free < both:
        yield warning(
            f"{found}; enough for one phase, and the second may not start",
            "free some before the second phase, or lower runtime.keep_checkpoints",
        )
    else:
        yield ok(found)
    scratch = Path(tempfile.gettempdir())
    left = shutil.disk_usage(scratch).free
    if left < _LITTLE:
        yield warning(f"{scratch}, the temporary folder: {size_of(left)} free", "free some there, or set TMPDIR")


def checkpoint_bytes(recipe: Recipe) -> int:
    """The size of a checkpoint: weights and both moments in fp32."""
    return 4 * 3 * count_parameters(recipe.model)


def checkpoints_to_come(recipe: Recipe, phase: PhaseName) -> int:
    """How many more checkpoints a phase needs room for, as `CheckpointFolder.check_room` counts at its start."""
    keep, every = recipe.runtime.keep_checkpoints, recipe.runtime.keep_every
    steps = CheckpointFolder(Layout(recipe.name).running(phase).checkpoints, keep).steps()
    numbers = [int(folder.name.rpartition("-")[2]) for folder in steps]
    milestones = [number for number in numbers if every and number and number % every == 0]
    to_stay = recipe.phase(phase).steps // every - len(milestones) if every else 0
    return max(1, keep + 1 - (len(numbers) - len(milestones))) + max(0, to_stay)


def look_at_speed(subject: Subject) -> Findings:
    """Write 64 MiB on the outputs' file system, have them on disk, and read them back."""
    place = subject.outputs()
    free = shutil.disk_usage(place).free
    if free < _SPARE:
        yield warning(f"not measured: {size_of(free)} free, {size_of(_SPARE)} expected", "free some")
        return
    written, read, is_same = measure_speed(place)
    if not is_same:
        yield problem(f"{place}: other bytes were read than were written", "use another disk for outputs")
        return
    found = f"writes {size_of(written)}/s with fsync, reads {size_of(read)}/s"
    if subject.recipe is None:
        yield ok(found)
        return
    seconds = checkpoint_bytes(subject.recipe) / written
    found = f"{found}: a checkpoint takes {seconds:,.1f} s"
    if seconds > _SECONDS_TO_SAVE:
        yield warning(
            f"{found}, and a run that is asked to stop has {_SECONDS_TO_SAVE:.0f} s",
            "make outputs a link to a faster file system",
        )
    else:
        yield ok(found)


def measure_speed(folder: Path) -> tuple[float, float, bool]:
    """Bytes a second written with fsync, and read back; and whether both agree. A slow disk gets fewer bytes.

    The file has no name, or loses it before it is written, so nothing of it remains, whatever ends this process.
    """
    piece = os.urandom(_PIECE)
    with tempfile.TemporaryFile(dir=folder, prefix=".doctor-", buffering=0) as file:
        began = time.perf_counter()
        count = 0
        while count < _PIECES and time.perf_counter() - began < _SECONDS_TO_MEASURE:
            file.write(piece)
            count += 1
            if count % 8 == 0:
                os.fsync(file.fileno())  # otherwise a slow disk would show only at the end
        os.fsync(file.fileno())
        written = count * _PIECE / (time.perf_counter() - began)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # to read from disk, if it drops them
        file.seek(0)
        began = time.perf_counter()
        is_same = all(file.read(_PIECE) == piece for _ in range(count))
        return written, count * _PIECE / (time.perf_counter() - began), is_same


def look_at_caches(subject: Subject) -> Findings:
    """Where compiled kernels and the record of verified data are kept."""
    places = {f"{CACHE}, compiled kernels and verified data" if os.environ.get(CACHE) else "": cache_of_user()}
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        if os.environ.get(name):
            places[name] = Path(os.environ[name])
    for name, folder in places.items():
        place = nearest_folder(folder)
        mount = mount_of(place)
        found = f"{folder} ({name or 'compiled kernels, verified data'}) on {mount}"
        if mount.is_network:
            yield warning(
                f"{found}: a network file system, where compiled kernels meet stale handles",
                f"set {name if name.startswith('T') else CACHE} to a folder of this node",
            )
        elif not os.access(place, os.W_OK | os.X_OK):
            yield warning(f"{found}: not writable, so kernels are compiled at every start", f"set {CACHE}")
        elif shutil.disk_usage(place).free < _LITTLE:
            yield warning(f"{found}: {size_of(shutil.disk_usage(place).free)} free", f"free some, or set {CACHE}")
        else:
            yield ok(found)


def look_at_dvc_cache(subject: Subject) -> Findings:
    """Whether outputs can be hard links to DVC's cache; else they are links to it, or copies."""
    cache = cache_folder()
    place, outputs = nearest_folder(cache), subject.outputs()
    for folder in (place, outputs):
        if "ro" in mount_of(folder).options or not os.access(folder, os.W_OK | os.X_OK):
            yield problem(f"{folder}: not writable, so DVC can keep no outputs", "make it writable for this user")
            return
    with (
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as here,
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=outputs) as there,
    ):
        Path(here, "object").touch()
        try:
            os.link(Path(here, "object"), Path(there, "output"))
        except OSError as error:
            yield warning(
                f"cache {cache}: no hard links from there to the outputs ({error.strerror}), so DVC links by symlink, "
                "or copies",
                "have both on one file system: `dvc cache dir FOLDER`",
            )
            return
    yield ok(f"cache {cache}: outputs are hard links to it")
