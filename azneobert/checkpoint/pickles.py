"""Foreign files that torch pickled, read without running anything that they bring along.

Tensors stay mapped into memory; classes are refused unless they are on a short list, and those become stand-ins, so
that neither DeepSpeed nor Accelerate is imported.
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


class _StandIn:
    """What an object of DeepSpeed's becomes: its attributes, and no behaviour."""

    def __init__(self, *values: Any):
        self.values = values


# All that ZeRO's optimizer files hold beside tensors and plain values.
_ALLOWED: list[Any] = [
    (type(name.rpartition(".")[2], (_StandIn,), {}), name)
    for name in (
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    )
]
_libc = ctypes.CDLL(None, use_errno=True)


def load_pickle(file: Path) -> Any:
    """What `torch.save` wrote, its tensors mapped into memory.

    Raises:
        CheckpointError: the file is missing, truncated or changed, or holds what might run code.
    """
    try:
        if not zipfile.is_zipfile(file):
            with file.open("rb") as stream:
                torn = stream.read(2) in (b"", b"PK")
            reason = "truncated; copy it again" if torn else "not a file of torch.save (torch 1.6 or later would do)"
            raise CheckpointError(f"{file}: {reason}")
        _check_sums(file)
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{file}: is missing; copy it beside the others") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: {_refused(error)}; nothing of it was run") from None
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
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
        for record in archive.infolist():
            try:
                with archive.open(record) as stream:
                    while stream.read(1 << 22):
                        pass
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, RuntimeError) as error:
                raise CheckpointError(f"{file}: changed since it was written ({error}); copy it again") from None


def _refused(error: Exception) -> str:
    text = " ".join(str(error).split())
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if marker in text:
            return f"holds {text.split(marker)[1].split(' ')[0]}, which is not on the list of what may be loaded"
    return f"cannot be read ({text[:120]})"
