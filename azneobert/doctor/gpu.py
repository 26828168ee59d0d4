"""GPUs and their driver, what torch is built for, the kernels that will be chosen, DeepSpeed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from azneobert.doctor.checkup import problem_of
from azneobert.doctor.finding import Finding, Findings, Subject, ok, problem, warning
from azneobert.doctor.programs import ask
from azneobert.errors import TrainingError
from azneobert.recipe import PHASES, Recipe

if TYPE_CHECKING:
    import torch

_QUERY = "--query-gpu=name,driver_version,memory.total,memory.used,ecc.errors.uncorrected.volatile.total"
_IN_USE = 0.1  # of a GPU's memory
_SLOWER = {
    "NCCL_P2P_DISABLE": "1",
    "NCCL_IB_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "CUDA_LAUNCH_BLOCKING": "1",
}
_OF_THE_PROJECT = "pip install 'azneobert[gpu]'"


def look_at_gpus(subject: Subject) -> Findings:
    """What the driver says of GPUs, and whether torch sees them."""
    import torch

    rows = []
    if shutil.which("nvidia-smi"):
        try:
            said = ask("nvidia-smi", _QUERY, "--format=csv,noheader,nounits")
            rows = [[field.strip() for field in line.split(",")] for line in said.splitlines()]
        except TrainingError as error:
            yield problem(f"the driver does not answer: {error}", "load or update the NVIDIA driver, or restart")
    yield from _look_at_rows(rows)
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if rows and not seen:
        yield _why_unseen()
    elif not seen:
        wants = subject.recipe is not None and subject.recipe.training.compute_dtype == "bfloat16"
        where = "use a machine with a GPU; on a cluster ask within a job: srun --gpus=1 azneobert doctor"
        none = "no GPU: training runs on the CPU"
        yield warning(f"{none}, and the recipe computes in bfloat16, as on GPUs", where) if wants else ok(none)
    elif subject.recipe and subject.recipe.runtime.processes > seen:
        yield problem(
            f"runtime.processes is {subject.recipe.runtime.processes}, and torch sees {seen} GPUs here",
            f"set runtime.processes: {seen}, or use a machine or a job with more GPUs",
        )


def _look_at_rows(rows: list[list[str]]) -> Findings:
    kinds = Counter((name, driver, total) for name, driver, total, *_ in rows)
    for (name, driver, total), count in kinds.items():
        yield ok(f"{count} x {name}, {_number(total) / 1024:.0f} GiB, driver {driver}")
    for index, (_, _, total, used, errors) in enumerate(rows):
        if _number(used) > _IN_USE * _number(total) > 0:
            yield warning(
                f"GPU {index}: {used} of {total} MiB are in use by others",
                "nvidia-smi names them; set CUDA_VISIBLE_DEVICES, or ask SLURM for GPUs of your own",
            )
        if _number(errors):
            yield problem(f"GPU {index}: {errors} memory errors that were not corrected", "have it reset or replaced")


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0  # [N/A]


def _why_unseen() -> Finding:
    import torch

    if torch.version.cuda is None:
        return problem(
            f"there is a GPU, and torch {torch.__version__} is built for the CPU alone",
            "install a CUDA build: uv pip install torch --torch-backend=auto",
        )
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "all"):
        return warning("CUDA_VISIBLE_DEVICES is empty: GPUs are hidden", "unset CUDA_VISIBLE_DEVICES")
    try:
        torch.cuda.init()
        said = "it does not say why"
    except Exception as error:  # of torch or of the driver
        said = next(iter(str(error).splitlines()), type(error).__name__)[:300]
    return problem(
        f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees no GPU: {said}",
        "update the driver, or install a torch for it: uv pip install torch --torch-backend=auto",
    )


def look_at_torch(subject: Subject) -> Findings:
    """Whether torch, CUDA, NCCL and the GPUs' generation fit each other."""
    import torch
    import torch.distributed as dist

    if torch.version.cuda is None:
        parallel = "gloo between processes" if dist.is_available() and dist.is_gloo_available() else "one process only"
        yield ok(f"torch {torch.__version__}, built for the CPU; {parallel}")
        return
    cuda = torch.version.cuda
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else None
    pairs = f"torch {torch.__version__}, CUDA {cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl or 'none'}"
    yield ok(pairs) if nccl else warning(f"{pairs}: built without NCCL", "use a build of pytorch.org")
    if nccl:
        yield from _look_at_nccl(cuda.split(".")[0], nccl)
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if not any(_runs(architecture, major, minor) for architecture in torch.cuda.get_arch_list()):
            yield problem(
                f"GPU {index} is of generation {major}.{minor}, and this torch has kernels for "
                f"{', '.join(torch.cuda.get_arch_list())}",
                "install a torch built for it: uv pip install torch --torch-backend=auto",
            )
    for name, value in _SLOWER.items():
        if os.environ.get(name) == value:
            yield warning(f"{name}={value} makes it slower", f"unset {name}, unless it mends something here")


def _runs(architecture: str, major: int, minor: int) -> bool:
    """Whether a GPU runs what was compiled for sm_XY (its own generation, no newer one) or compute_XY (any older)."""
    kind, _, digits = architecture.partition("_")
    number = int("".join(filter(str.isdigit, digits)) or 0)
    if kind == "compute":
        return number <= 10 * major + minor
    return number // 10 == major and number % 10 <= minor


def _look_at_nccl(cuda_major: str, loaded: str) -> Findings:
    for suffix in ("12", "13"):
        try:
            installed = version(f"nvidia-nccl-cu{suffix}")
        except PackageNotFoundError:
            continue
        if suffix != cuda_major:
            yield warning(
                f"nvidia-nccl-cu{suffix} {installed} is installed beside a torch for CUDA {cuda_major}",
                f"pip uninstall nvidia-nccl-cu{suffix}",
            )
        elif not installed.startswith(loaded):
            yield warning(
                f"NCCL {loaded} is loaded, and {installed} came with torch: another library goes before it",
                "look into LD_LIBRARY_PATH and LD_PRELOAD",
            )


def look_at_kernels(subject: Subject) -> Findings:
    """Which attention and blocks the recipe will get here, and why none that is faster."""
    if subject.recipe is None:
        yield warning("not asked: the recipe says what it wants", "mend the recipe")
        return
    import torch

    from azneobert.model.backend import choose_backend

    recipe = subject.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, recipe.training.compute_dtype)
    try:
        backend = choose_backend(recipe.runtime, recipe.model, device, dtype, fp8=recipe.training.fp8)
    except TrainingError as error:
        yield problem_of(error)
        return
    found = f"{backend}, {recipe.training.compute_dtype}"
    if device.type == "cpu":
        yield ok(f"{found}; all others need a GPU")
        return
    obstacles = faster(recipe, backend.attention_name, backend.fused, device, dtype)
    yield ok(f"{found}{'; not ' if obstacles else ''}{'; not '.join(obstacles)}")
    missing = [obstacle for obstacle in obstacles if "not installed" in obstacle and "hopper/" not in obstacle]
    if missing:
        yield warning(f"slower than it could be: not {'; not '.join(missing)}", _OF_THE_PROJECT)
    elif dtype != torch.bfloat16:
        yield warning(
            f"slower than it could be: {recipe.training.compute_dtype}", "set training.compute_dtype: bfloat16"
        )
    elif "auto" not in (recipe.runtime.attention, recipe.runtime.blocks) and obstacles:
        yield warning("slower than it could be: the recipe asks for these by name", "set them to auto")
    total = torch.cuda.get_device_properties(device).total_memory
    yield from look_at_memory(recipe, backend.attention_name, total, fused=backend.fused)
    yield from _look_at_pins()
    yield from _load(backend.attention_name)


def faster(recipe: Recipe, attention: str, fused: bool, device: torch.device, dtype: torch.dtype) -> list[str]:
    """The kernels that are faster than the chosen ones, each with why it is not chosen."""
    from azneobert.model.attention import FLASH, obstacle_to_flash
    from azneobert.model.backend import obstacle_to_fused

    found = []
    before = FLASH[: FLASH.index(attention)] if attention in FLASH else FLASH
    for name in before:
        obstacle = obstacle_to_flash(name, device, dtype)
        found.append(f"{name}: needs {obstacle}" if obstacle else f"{name}: runtime.attention asks for {attention}")
    if not fused:
        obstacle = obstacle_to_fused(recipe.model, attention, device, dtype)
        found.append(f"fused: needs {obstacle}" if obstacle else "fused: runtime.blocks asks for torch")
    return found


def look_at_memory(recipe: Recipe, attention: str, total: int, *, fused: bool) -> Findings:
    """Phases predicted to need more than a GPU of `total` bytes, less a margin; with `auto`, even at one row."""
    from azneobert.course import divide_batch
    from azneobert.model.memory import MARGIN, StepMemory, blocks_of

    runtime = recipe.runtime
    blocks = blocks_of(runtime, attention, fused=fused)
    for phase in PHASES:
        most = 1 if runtime.max_micro_batch == "auto" else runtime.max_micro_batch
        rows, _ = divide_batch(recipe.phase(phase).global_batch, runtime.processes, most)
        predicted = StepMemory.of(recipe, phase, blocks, runtime.processes, attention).peak_bytes(rows)
        if predicted > (1 - MARGIN) * total:
            yield warning(
                f"{phase} is predicted to take {predicted / 2**30:,.1f} GiB with micro-batches of {rows} rows, and the "
                f"GPU has {total / 2**30:,.1f}, of which {MARGIN:.0%} have to stay free",
                "use shorter rows, a smaller model or a larger GPU"
                if rows == 1
                else "set runtime.max_micro_batch: auto, or less",
            )


def _look_at_pins() -> Findings:
    """Kernel packages in a version other than the measured one: their internal functions are used."""
    try:
        stated = requires("azneobert") or []
    except PackageNotFoundError:
        return
    for requirement in stated:
        name, mark, rest = requirement.partition("==")
        pinned = rest.partition(";")[0].strip()
        if not mark or 'extra == "gpu"' not in requirement:
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if installed != pinned:
            yield warning(f"{name} {installed} is installed, {pinned} was measured", f"pip install {name}=={pinned}")


def _load(attention: str) -> Findings:
    """Try to import an attention library: an installed one may still fail to import."""
    from azneobert.kernels.flash import flash_kernel

    if attention == "reference":
        return
    try:
        flash_kernel(attention)
    except Exception as error:  # importing the library may raise anything
        said = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        yield problem(
            f"{attention} is installed and cannot be loaded: {type(error).__name__}: {said}",
            f"{_OF_THE_PROJECT}, or set runtime.attention: reference",
        )


def look_at_deepspeed(subject: Subject) -> Findings:
    """Whether the engine that uses DeepSpeed's internal functions can be imported."""
    wanted = subject.recipe is not None and subject.recipe.runtime.engine == "zero2"
    try:
        import azneobert.engine.zero2  # noqa: F401 - that it can be imported is what is asked
    except Exception as error:  # DeepSpeed's own, torch's, or of a compiler that it looks for
        said = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        kind = problem if wanted else warning
        yield kind(
            f"cannot be imported: {type(error).__name__}: {said}",
            "pip install -c constraints.txt deepspeed, or set runtime.engine: plain",
        )
        return
    use = "which the recipe uses" if wanted else "for runtime.engine: zero2"
    yield ok(f"{version('deepspeed')}, {use}")
