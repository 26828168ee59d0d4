"""The choice of kernels follows from what is asked for and from what runs here, and says why it refuses."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from refusals import refused
from toy import toy_recipe

from azneobert.errors import TrainingError
from azneobert.model.attention import reference
from azneobert.model.backend import Backend, choose_backend, obstacle_to_fused
from azneobert.recipe import Model, Runtime

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16
EVERYTHING = frozenset({"quack", "flash_attn.cute", "flash_attn_interface"})

MakeGpu = Callable[..., None]


def runtime_of(**settings: str) -> Runtime:
    return toy_recipe({"runtime": settings}).runtime


def model_of(hidden_size: int = 64, heads: int = 2) -> Model:
    return toy_recipe({"model": {"hidden_size": hidden_size, "num_attention_heads": heads}}).model


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> MakeGpu:
    """Makes this look like a machine with such a GPU, on which these packages for it are installed, and no others."""
    find_spec = importlib.util.find_spec

    def make(generation: int = 9, packages: frozenset[str] = EVERYTHING) -> None:
        def found(name: str, package: str | None = None) -> ModuleSpec | None:
            if name in EVERYTHING:
                return ModuleSpec(name, None) if name in packages else None
            return find_spec(name, package)

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU sm_{generation}0")
        monkeypatch.setattr(importlib.util, "find_spec", found)

    return make


@pytest.mark.parametrize("attention", ["auto", "reference"])
@pytest.mark.parametrize("blocks", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_on_a_cpu_torch_computes_everything(attention: str, blocks: str, dtype: torch.dtype) -> None:
    chosen = choose_backend(runtime_of(attention=attention, blocks=blocks), model_of(), CPU, dtype)
    assert chosen == Backend("reference", reference, fused=False)


@pytest.mark.parametrize("attention", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_fused_blocks_on_a_cpu_are_refused_in_one_line(attention: str, dtype: torch.dtype) -> None:
    with refused(TrainingError, "runtime.blocks: fused needs a Hopper GPU, found cpu", "use auto"):
        choose_backend(runtime_of(attention=attention, blocks="fused"), model_of(), CPU, dtype)


def test_an_attention_that_cannot_run_is_refused_before_blocks_are_looked_at() -> None:
    with refused(TrainingError, "runtime.attention: fa4 needs CUDA", "found cpu"):
        choose_backend(runtime_of(attention="fa4", blocks="fused"), model_of(), CPU, BF16)


def test_a_hopper_gpu_with_everything_installed_fuses_blocks(gpu: MakeGpu) -> None:
    gpu()
    assert obstacle_to_fused(model_of(), "fa4", CUDA, BF16) is None
    for blocks in ("auto", "fused"):
        chosen = choose_backend(runtime_of(blocks=blocks), model_of(), CUDA, BF16)
        assert (chosen.attention_name, chosen.fused) == ("fa4", True)


@pytest.mark.parametrize("attention", ["fa3", "fa2"])
def test_blocks_are_fused_around_the_flash_kernel_that_was_asked_for(attention: str, gpu: MakeGpu) -> None:
    gpu()
    chosen = choose_backend(runtime_of(attention=attention), model_of(), CUDA, BF16)
    assert str(chosen) == f"attention {attention}, blocks fused"


def test_blocks_asked_for_in_torch_are_in_torch_where_fused_ones_would_run(gpu: MakeGpu) -> None:
    gpu()
    assert str(choose_backend(runtime_of(blocks="torch"), model_of(), CUDA, BF16)) == "attention fa4, blocks torch"


def test_fp8_runs_in_fused_blocks_and_is_named(gpu: MakeGpu) -> None:
    gpu()
    for blocks in ("auto", "fused"):
        chosen = choose_backend(runtime_of(blocks=blocks), model_of(), CUDA, BF16, fp8=True)
        assert (chosen.fused, chosen.fp8, str(chosen)) == (True, True, "attention fa4, blocks fused, fp8")


def test_fp8_is_never_left_out_silently(gpu: MakeGpu) -> None:
    with refused(TrainingError, "training.fp8: true needs a Hopper GPU, found cpu", "use false"):
        choose_backend(runtime_of(), model_of(), CPU, BF16, fp8=True)
    gpu(8)
    with refused(TrainingError, "training.fp8: true needs a Hopper GPU, found Some GPU sm_80", "use false"):
        choose_backend(runtime_of(), model_of(), CUDA, BF16, fp8=True)
    gpu()
    with refused(TrainingError, "training.fp8: true needs fused blocks, found runtime.blocks: torch", "use auto"):
        choose_backend(runtime_of(blocks="torch"), model_of(), CUDA, BF16, fp8=True)


@pytest.mark.parametrize(
    ("generation", "attention", "dtype", "packages", "named"),
    [
        (8, "auto", BF16, EVERYTHING, ["a Hopper GPU", "found Some GPU sm_80"]),
        (10, "auto", BF16, EVERYTHING, ["a Hopper GPU", "found Some GPU sm_100"]),
        (9, "auto", torch.float16, EVERYTHING, ["training.compute_dtype bfloat16", "found torch.float16"]),
        (9, "auto", torch.float32, EVERYTHING, ["training.compute_dtype bfloat16", "found torch.float32"]),
        (9, "reference", BF16, EVERYTHING, ["a flash-attention kernel"]),
        (9, "auto", BF16, EVERYTHING - {"quack"}, ["quack-kernels", "not installed"]),
    ],
)
def test_what_fused_blocks_lack_is_named_where_they_are_asked_for_and_done_without_under_auto(
    generation: int, attention: str, dtype: torch.dtype, packages: frozenset[str], named: list[str], gpu: MakeGpu
) -> None:
    gpu(generation, packages)
    with refused(TrainingError, "runtime.blocks: fused needs", "use auto", *named):
        choose_backend(runtime_of(attention=attention, blocks="fused"), model_of(), CUDA, dtype)
    assert not choose_backend(runtime_of(attention=attention), model_of(), CUDA, dtype).fused


@pytest.mark.parametrize(("hidden_size", "heads"), [(48, 2), (32, 2), (512, 2), (160, 2)])
def test_a_head_size_that_no_kernel_takes_is_refused_by_its_number(hidden_size: int, heads: int, gpu: MakeGpu) -> None:
    gpu()
    model = model_of(hidden_size, heads)
    found = f"found {hidden_size // heads}"
    with refused(TrainingError, "runtime.blocks: fused needs a head size of 32, 64 or 128", found, "use auto"):
        choose_backend(runtime_of(blocks="fused"), model, CUDA, BF16)
    assert str(choose_backend(runtime_of(), model, CUDA, BF16)) == "attention fa4, blocks torch"


@pytest.mark.parametrize(("hidden_size", "heads"), [(32, 1), (768, 12), (1024, 8), (96, 3)])
def test_heads_of_32_64_and_128_are_no_obstacle(hidden_size: int, heads: int, gpu: MakeGpu) -> None:
    gpu()
    assert obstacle_to_fused(model_of(hidden_size, heads), "fa3", CUDA, BF16) is None


def test_a_backend_says_in_words_what_it_is() -> None:
    assert str(Backend()) == "attention reference, blocks torch"
    assert str(Backend("fa4", reference, fused=True)) == "attention fa4, blocks fused"


def documented_rows() -> list[tuple[str, str, str]]:
    """Compute capability, attention and blocks of each kind of GPU in the table of docs/speed.md."""
    lines = Path(__file__).parents[2].joinpath("docs/speed.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| GPU | compute capability |"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    rows = [[cell.strip().strip("`") for cell in line.split("|")[2:5]] for line in table]
    return [(number, attention, blocks) for numbers, attention, blocks in rows for number in numbers.split(", ")]


def test_the_documentation_says_which_kernels_each_generation_gets(gpu: MakeGpu) -> None:
    rows = documented_rows()
    assert {number.split(".")[0] for number, *_ in rows if number} == {"8", "9", "10", "12"}
    for number, attention, blocks in rows:
        gpu(int(number.split(".")[0]) if number else 9)
        device, dtype = (CUDA, BF16) if number else (CPU, BF16)
        chosen = choose_backend(runtime_of(attention="auto", blocks="auto"), model_of(), device, dtype)
        assert (chosen.attention_name, "fused" if chosen.fused else "torch") == (attention, blocks)
    in_fp32 = choose_backend(runtime_of(attention="auto", blocks="auto"), model_of(), CUDA, torch.float32)
    assert in_fp32 == Backend("reference", reference, fused=False)
