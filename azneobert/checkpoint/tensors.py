"""Tensors by name that are read when they are asked for, and a safetensors file written while it is hashed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_CHUNK = 1 << 24


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors that `load` brings one at a time, so that a checkpoint larger than memory can be gone through."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], load: Callable[[str], torch.Tensor]):
        self.shapes = shapes
        self._load = load

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._load(name).detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor; lazy ones are not loaded."""
    return tensors.shapes if isinstance(tensors, LazyTensors) else {n: tuple(t.shape) for n, t in tensors.items()}


def open_safetensors(file: Path) -> LazyTensors:
    """The tensors of a safetensors file, each mapped into memory when it is asked for.

    Raises:
        SafetensorError: the file is not of this format, or is truncated.
    """
    opened = safe_open(file, framework="pt")
    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return LazyTensors(shapes, opened.get_tensor)


def write_fp32(file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write tensors as a safetensors file in fp32, durably, and hash what is written on its way; its sha256 and size.

    The library's own writer makes a copy of each tensor and leaves the hash to a second reading. Besides, it holds
    all of them at once.
    """
    digest = hashlib.sha256()
    size = 0
    with file.open("wb", buffering=0) as raw:
        for chunk in _chunks(tensors):
            digest.update(chunk)
            written = 0
            while written < len(chunk):
                written += raw.write(chunk[written:])
            size += len(chunk)
        os.fsync(raw.fileno())
    return {"sha256": digest.hexdigest(), "size": size}


def _chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    yield memoryview(_header(shapes_of(tensors)))
    for name in tensors:
        flat = tensors[name].detach().to("cpu", torch.float32).contiguous().view(-1)
        content = flat.numpy().data.cast("B") if flat.numel() else memoryview(b"")
        for start in range(0, len(content), _CHUNK):
            yield content[start : start + _CHUNK]


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
