"""Running a function as the ranks of a training world, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from azneobert.errors import TrainingError

_PRELOADED = ["azneobert.training.plain_engine", "azneobert.training.zero2_engine", "torch._dynamo"]


def run_ranks(function: Callable[..., Any], *arguments: Any, world: int, scratch: Path) -> list[Any]:
    """The results of a module's function that runs as `world` ranks: on a GPU each if there are any, else with gloo.

    Raises:
        TrainingError: a rank failed; its own message is on standard error.
    """
    # Forking what has imported everything saves seconds a rank; CUDA does not survive it.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(_PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        file = scratch / f".rank-{rank}"
        file.unlink(missing_ok=True)
        environment = {name: str(value) for name, value in place.items()} if world > 1 else {}
        child = context.Process(target=_rank, args=(environment, function, arguments, file))
        child.start()
        children.append((child, file))
    for child, _ in children:
        child.join()
    if not all(file.exists() for _, file in children):
        raise TrainingError(f"{function.__name__}: a rank of {world} failed; its message stands above")
    return [pickle.loads(file.read_bytes()) for _, file in children]


def _rank(environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...], file: Path) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1 if environment else torch.get_num_threads())
    try:
        file.write_bytes(pickle.dumps(function(*arguments)))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other ranks may wait for this one in a collective: do not wait for them in turn
