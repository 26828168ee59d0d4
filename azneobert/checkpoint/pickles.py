"""Foreign files that torch pickled, read without running anything that they bring along.

Tensors stay mapped into memory; classes are refused unless they are on a short list, and those become stand-ins, so
that neither DeepSpeed nor Accelerate is imported. Nothing costs more than the bytes of its file: torch does not
compress, no tensor may be larger than its stored data, and everything else is small.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from azneobert.errors import CheckpointError
from azneobert.files import open_regular


class _StandIn:
    """Stands for an object of DeepSpeed: it has the attributes, and no behaviour."""

    def __init__(self, *values: Any):
        self.values = values


def _member(owner: Any, name: str) -> Any:
    """Stands for `getattr`, by which Python 3.11.2 pickles a member of an Enum; it looks up nothing."""
    if not (isinstance(owner, type) and issubclass(owner, _StandIn)):
        raise pickle.UnpicklingError("Unsupported global: GLOBAL getattr")
    return owner(name)


# All that ZeRO's optimizer files hold beside tensors and plain values.
_ALLOWED: list[Any] = [
    (_member, "builtins.getattr"),
    *(
        (type(name.rpartition(".")[2], (_StandIn,), {}), name)
        for name in (
            "deepspeed.runtime.fp16.loss_scaler.LossScaler",
            "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
            "deepspeed.runtime.zero.config.ZeroStageEnum",
            "deepspeed.utils.tensor_fragment.fragment_address",
        )
    ),
]
_LARGEST_PICKLE = 8 << 20  # bytes of all but the tensors; DeepSpeed's of the published model has 60,000
_MOST_VALUES, _DEEPEST = 1 << 20, 50
_libc = ctypes.CDLL(None, use_errno=True)


def load_pickle(file: Path) -> Any:
    """The content that `torch.save` wrote, its tensors mapped into memory.

    Raises:
        CheckpointError: the file is missing, truncated or changed, or holds what might run code.
    """
    try:
        with open_regular(file) as stream:
            torn = stream.read(2) in (b"", b"PK")
        if not zipfile.is_zipfile(file):
            reason = (
                "truncated; copy it again" if torn else "not a file of torch.save; expected one of torch 1.6 or later"
            )
            raise CheckpointError(f"{file}: {reason}")
        _check_sums(file)
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        _check_values(file, content)
        return content
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{file}: is missing; copy it beside the others") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: {_refused(error)}, nothing of it was run; use another file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}); copy it again") from None
    # Any error that a changed pickle causes in torch's own reader.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{file}: cannot be read ({reason}); copy it again") from None


def save_pickle(content: Any, file: Path) -> None:
    """Write with `torch.save`, durably."""
    with file.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())


def drop_pages(tensor: torch.Tensor) -> None:
    """Give back the memory of a mapped tensor that will not be read again soon; its content stays in the file."""
    page = mmap.PAGESIZE
    first = -(-tensor.data_ptr() // page) * page
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if last > first:
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _check_sums(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        stored = sum(record.file_size for record in records)
        if stored > file.stat().st_size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise CheckpointError(f"{file}: unpacks to more than it holds, and torch.save packs nothing; do not use it")
        pickled = [record for record in records if record.filename.endswith(".pkl")]
        if any(record.file_size > _LARGEST_PICKLE for record in pickled):
            raise CheckpointError(f"{file}: more than {_LARGEST_PICKLE:,} bytes beside its tensors; do not use it")
        for record in records:
            try:
                with archive.open(record) as stream:
                    while stream.read(1 << 22):
                        pass
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, RuntimeError) as error:
                raise CheckpointError(f"{file}: changed since it was written ({error}); copy it again") from None


def _check_values(file: Path, content: Any) -> None:
    """Check that no tensor is larger than its stored data, and that the rest is small, even when written out."""
    sizes: dict[int, int | None] = {}  # of each container; None while its values are counted

    def size_of(value: Any, depth: int) -> int:
        if isinstance(value, torch.Tensor):
            _check_tensor(file, value)
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = None
            inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size_of(each, depth + 1) for each in inner) if depth < _DEEPEST else None
        size = sizes[id(value)]
        if size is None or size > _MOST_VALUES:
            raise CheckpointError(f"{file}: holds itself, or too much beside its tensors; do not use it")
        return size

    size_of(content, 0)


def _check_tensor(file: Path, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise CheckpointError(f"{file}: holds a tensor that is not dense; expected plain numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{file}: a tensor of shape {tuple(tensor.shape)} is larger than what is stored of it; copy it again"
        )


def _refused(error: Exception) -> str:
    text = " ".join(str(error).split())
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if marker in text:
            return f"holds {text.split(marker)[1].split(' ')[0]}, which is not on the list of what may be loaded"
    return f"cannot be read ({text[:120]})"
