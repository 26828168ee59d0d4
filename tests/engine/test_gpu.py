"""What is set before a GPU is touched: in processes of their own, since the environment belongs to a whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "QUACK_CACHE_DIR": "quack",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash-attention",
}
SETTINGS = {
    "AZNEOBERT_CACHE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED",
    *CACHES,
}
PROGRAM = """
import json, os, torch
from azneobert.engine.gpu import prepare_gpu
before = dict(os.environ)
{call}
changed = {{name: value for name, value in os.environ.items() if before.get(name) != value}}
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(json.dumps([changed, torch.get_float32_matmul_precision(), cache_dir()]))
"""


def prepared(home: Path, settings: dict[str, str], call: str = "prepare_gpu()") -> tuple[dict[str, str], str, str]:
    """What a process with this home and these settings changes in its environment, how exact its fp32 products are,
    and where its compiler keeps what it compiles."""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment = {**inherited, "HOME": str(home), **settings}
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    changed, precision, inductor = json.loads(
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    )
    return changed, precision, inductor


def folders(cache: Path) -> dict[str, str]:
    return {name: str(cache / folder) for name, folder in CACHES.items()}


def test_memory_grows_in_segments_fp32_products_are_tf32_and_kernels_are_kept_at_home(tmp_path: Path) -> None:
    changed, precision, inductor = prepared(tmp_path, {})
    assert changed == {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
        **folders(tmp_path / ".cache" / "azneobert"),
    }
    assert precision == "high"
    assert inductor == str(tmp_path / ".cache" / "azneobert" / "inductor")


def test_importing_it_sets_nothing(tmp_path: Path) -> None:
    changed, precision, _ = prepared(tmp_path, {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}, call="")
    assert (changed, precision) == ({}, "highest")


def test_kernels_are_kept_in_the_folder_that_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "elsewhere"
    changed, _, inductor = prepared(tmp_path, {"AZNEOBERT_CACHE": str(cache)})
    assert {name: changed[name] for name in CACHES} == folders(cache)
    assert inductor == str(cache / "inductor")


def test_a_folder_whose_name_is_empty_counts_as_none(tmp_path: Path) -> None:
    changed, _, _ = prepared(tmp_path, {"AZNEOBERT_CACHE": ""})
    assert {name: changed[name] for name in CACHES} == folders(tmp_path / ".cache" / "azneobert")


def test_what_the_environment_sets_goes_before(tmp_path: Path) -> None:
    own = {name: str(tmp_path / "mine" / folder) for name, folder in CACHES.items()}
    own["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] = "0"
    changed, _, inductor = prepared(tmp_path, {**own, "AZNEOBERT_CACHE": str(tmp_path)})
    assert changed == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert inductor == own["TORCHINDUCTOR_CACHE_DIR"]


def test_one_folder_that_the_environment_sets_leaves_the_others_where_they_were(tmp_path: Path) -> None:
    own = {"TRITON_CACHE_DIR": str(tmp_path / "mine")}
    changed, _, _ = prepared(tmp_path, {**own, "AZNEOBERT_CACHE": str(tmp_path)})
    assert {name: changed.get(name) for name in CACHES} == {**folders(tmp_path), "TRITON_CACHE_DIR": None}


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_either_name_of_the_allocator_s_settings_goes_before(name: str, tmp_path: Path) -> None:
    changed, _, _ = prepared(tmp_path, {name: "max_split_size_mb:64", "AZNEOBERT_CACHE": str(tmp_path)})
    assert not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & changed.keys()
