"""Running a function as the ranks of a training world, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from azneobert.errors import TrainingError


def run_ranks(function: Callable[..., Any], *arguments: Any, world: int) -> None:
    """Run a module's function as `world` ranks: on a GPU each if there are any, else with gloo.

    Raises:
        TrainingError: a rank failed; its own message is on standard error.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in place.items()} if world > 1 else {}
        ranks.append(context.Process(target=_rank, args=(environment, function, arguments)))
        ranks[-1].start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise TrainingError(f"{function.__name__}: a rank of {world} failed; see its message above")


def _rank(environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    if environment and not torch.cuda.is_available():
        torch.set_num_threads(1)
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other ranks may wait for this one in a collective: do not wait for them in turn
