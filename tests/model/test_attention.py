"""The reference kernel is a loop over windows, written without one; and the choice of a kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from refusals import refused

from azneobert.errors import TrainingError
from azneobert.kernels.flash import installed
from azneobert.model.attention import FLASH, choose_attention, reference


def window_by_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: list[int]) -> torch.Tensor:
    """What attention over packed windows means, in float64."""
    pieces = []
    for first, last in pairwise(starts):
        q_NSH, k_NSH, v_NSH = (x[first:last].double().transpose(0, 1) for x in (q, k, v))
        scores = q_NSH @ k_NSH.transpose(1, 2) / q.shape[-1] ** 0.5
        pieces.append((scores.softmax(-1) @ v_NSH).transpose(0, 1))
    return torch.cat(pieces)


def random_qkv(tokens: int, heads: int = 2, size: int = 16, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, heads, size, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


WINDOWS = {
    "one row, one window": ([0, 32], 32),
    "one row, three windows": ([0, 5, 6, 32], 32),
    "three rows, aligned": ([0, 32, 40, 64, 65, 66, 96], 32),
    "as many tokens as two rows, a window across the border": ([0, 20, 40, 64], 32),
    "not a whole number of rows": ([0, 10, 31, 45], 32),
    "fewer tokens than a row": ([0, 3, 11], 32),
    "windows of one token": ([0, 1, 2, 3, 4], 2),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_reference_kernel_agrees_with_a_loop_over_windows(name: str) -> None:
    starts, longest = WINDOWS[name]
    q, k, v = random_qkv(starts[-1])
    found = reference(q, k, v, torch.tensor(starts, dtype=torch.int32), longest)
    torch.testing.assert_close(found.double(), window_by_window(q, k, v, starts), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", WINDOWS)
def test_the_gradients_of_the_reference_kernel_agree_with_the_loops(name: str) -> None:
    starts, longest = WINDOWS[name]
    inputs = random_qkv(starts[-1], dtype=torch.float64)
    weights = torch.randn(starts[-1], 2, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(
        (reference(*inputs, torch.tensor(starts, dtype=torch.int32), longest) * weights).sum(), inputs
    )
    expected = torch.autograd.grad((window_by_window(*inputs, starts) * weights).sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", ["three rows, aligned", "not a whole number of rows"])
def test_the_padded_end_of_cu_seqlens_changes_nothing(name: str) -> None:
    starts, longest = WINDOWS[name]
    q, k, v = random_qkv(starts[-1])
    padded = torch.tensor(starts + [starts[-1]] * 7, dtype=torch.int32)
    assert torch.equal(
        reference(q, k, v, padded, longest), reference(q, k, v, torch.tensor(starts, dtype=torch.int32), longest)
    )


def test_no_gradient_crosses_the_border_of_a_window() -> None:
    q, k, v = random_qkv(64)
    out = reference(q, k, v, torch.tensor([0, 10, 32, 50, 64], dtype=torch.int32), 32)
    out[10:32].square().sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad is not None
        assert tensor.grad[10:32].abs().sum() > 0
        assert not tensor.grad[:10].any()
        assert not tensor.grad[32:].any()


@pytest.mark.parametrize("name", FLASH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_flash_kernel_on_a_cpu_is_refused_in_one_line(name: str, dtype: torch.dtype) -> None:
    with refused(TrainingError, f"runtime.attention: {name} needs CUDA", f"found cpu and {dtype}", "use auto"):
        choose_attention(name, torch.device("cpu"), dtype)


@pytest.mark.parametrize("name", FLASH)
def test_a_flash_kernel_in_fp32_is_refused_in_one_line(name: str) -> None:
    with refused(TrainingError, f"{name} needs CUDA and bfloat16", "found cuda and torch.float32", "use auto"):
        choose_attention(name, torch.device("cuda"), torch.float32)


@pytest.mark.parametrize(
    ("asked", "device", "dtype"),
    [
        ("auto", "cpu", torch.bfloat16),
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.float32),
        ("reference", "cpu", torch.float32),
        ("reference", "cuda", torch.bfloat16),
    ],
)
def test_the_reference_kernel_is_used_where_no_other_runs_and_where_it_is_asked_for(
    asked: str, device: str, dtype: torch.dtype
) -> None:
    assert choose_attention(asked, torch.device(device), dtype) == ("reference", reference)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, set[str]], torch.device]:
    """A CUDA device of this generation, as torch would describe it, and these kernels' libraries installed."""

    def make(generation: int, kernels: set[str]) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU sm_{generation}0")
        monkeypatch.setattr("azneobert.model.attention.installed", kernels.__contains__)
        return torch.device("cuda")

    return make


@pytest.mark.parametrize(
    ("generation", "kernels", "chosen"),
    [
        (9, {"fa4", "fa3", "fa2"}, "fa4"),
        (9, {"fa3", "fa2"}, "fa3"),
        (9, {"fa2"}, "fa2"),
        (10, {"fa3", "fa2"}, "fa2"),
        (10, {"fa4", "fa3", "fa2"}, "fa4"),
        (8, {"fa4", "fa3", "fa2"}, "fa2"),
        (7, {"fa4", "fa3", "fa2"}, "reference"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_auto_takes_the_newest_kernel_that_the_gpu_and_the_installation_have(
    generation: int, kernels: set[str], chosen: str, dtype: torch.dtype, gpu: Callable[[int, set[str]], torch.device]
) -> None:
    assert choose_attention("auto", gpu(generation, kernels), dtype)[0] == chosen


def test_a_kernel_asked_for_is_used_though_a_faster_one_is_there(
    gpu: Callable[[int, set[str]], torch.device],
) -> None:
    assert choose_attention("fa2", gpu(9, {"fa4", "fa3", "fa2"}), torch.bfloat16)[0] == "fa2"


def test_a_kernel_for_another_gpu_is_refused_in_one_line(gpu: Callable[[int, set[str]], torch.device]) -> None:
    with refused(TrainingError, "runtime.attention: fa3 needs another GPU than Some GPU sm_80", "use auto"):
        choose_attention("fa3", gpu(8, {"fa3"}), torch.bfloat16)


@pytest.mark.parametrize(("name", "package"), [("fa4", "flash-attn-4"), ("fa3", "hopper/")])
def test_a_kernel_whose_library_is_missing_is_refused_in_one_line(
    name: str, package: str, gpu: Callable[[int, set[str]], torch.device]
) -> None:
    with refused(TrainingError, f"runtime.attention: {name} needs its library", "not installed", package):
        choose_attention(name, gpu(9, {"fa2"}), torch.bfloat16)


def test_torch_brings_fa2_and_a_package_that_is_absent_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("fa2")
    for name in [name for name in sys.modules if name.startswith("flash_attn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [])  # nothing else can be found
    assert not installed("fa4")
    assert not installed("fa3")


def test_the_fa3_in_xformers_wheels_is_found_without_importing_xformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "xformers"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert not installed("fa3")  # newer wheels are without it
    library = package / "flash_attn_3" / "_C.so"
    library.parent.mkdir()
    library.write_bytes(b"")
    assert installed("fa3")
