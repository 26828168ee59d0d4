"""Tensors by name that are read when they are asked for, and a safetensors file written while it is hashed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from azneobert.errors import CheckpointError
from azneobert.files import open_regular, parse_json

_CHUNK = 1 << 24
_LARGEST_HEADER = 8 << 20  # bytes; a tensor takes a hundred
_DTYPES = {torch.bool: "BOOL", torch.bfloat16: "BF16", torch.complex64: "C64", torch.int8: "I8", torch.uint8: "U8"} | {
    getattr(torch, f"{kind}{bits}"): f"{kind[0].upper()}{bits}"
    for kind in ("float", "int", "uint")
    for bits in (16, 32, 64)
}


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors that `load` brings one at a time, so that a checkpoint larger than memory can be read."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], load: Callable[[str], torch.Tensor]):
        self.shapes = shapes
        self._load = load

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        try:
            return self._load(name).detach()
        except CheckpointError:
            raise
        # Any error that parts which do not fit each other cause in torch.
        except (ArithmeticError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise CheckpointError(f"{name}: cannot be read ({str(error)[:200]}); use another checkpoint") from None

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
        ValueError: it is no regular file, or its header is too large, damaged, or names a kind of number unknown here.
        SafetensorError: the file is not of this format, or is truncated.
        OSError: it cannot be read.
    """
    read_header(file)
    opened = safe_open(file, framework="pt")
    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return LazyTensors(shapes, opened.get_tensor)


def read_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: its tensors by name, and other notes under `__metadata__`.

    Raises:
        ValueError, OSError: as `open_safetensors`.
    """
    with open_regular(file) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError(f"a header of {size:,} bytes; at most {_LARGEST_HEADER:,} expected")
        header = parse_json(stream.read(size))
    notes = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ValueError("its header is no list of tensors")
    for name, stated in header.items():
        if name != "__metadata__" and (not isinstance(stated, dict) or stated.get("dtype") not in _DTYPES.values()):
            raise ValueError(f"{name[:60]}: expected a dtype of {', '.join(sorted(_DTYPES.values()))}")
    return header


def write_safetensors(
    file: Path,
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype] | None = None,
    metadata: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write tensors durably as a safetensors file, one at a time, and hash what is written; returns sha256 and size.

    They become fp32, except those that `dtypes` names. The library's own writer holds copies of all of them at once,
    and the hash would need a second reading.
    """
    chosen = {name: (dtypes or {}).get(name, torch.float32) for name in tensors}
    order = sorted(tensors, key=lambda name: -chosen[name].itemsize)  # which aligns them
    digest = hashlib.sha256()
    size = 0
    with file.open("wb", buffering=0) as raw:
        for chunk in _chunks(tensors, order, chosen, metadata or {}):
            digest.update(chunk)
            written = 0
            while written < len(chunk):
                written += raw.write(chunk[written:])
            size += len(chunk)
        os.fsync(raw.fileno())
    return {"sha256": digest.hexdigest(), "size": size}


def _chunks(
    tensors: Mapping[str, torch.Tensor], order: list[str], dtypes: dict[str, torch.dtype], metadata: dict[str, str]
) -> Iterator[memoryview]:
    shapes = shapes_of(tensors)
    yield memoryview(_header({name: (dtypes[name], shapes[name]) for name in order}, metadata))
    for name in order:
        flat = tensors[name].detach().to("cpu", dtypes[name]).contiguous().view(-1)
        content = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
        for start in range(0, len(content), _CHUNK):
            yield content[start : start + _CHUNK]


def _header(entries: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, (dtype, shape) in entries.items():
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
