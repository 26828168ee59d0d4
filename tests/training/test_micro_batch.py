"""`runtime.max_micro_batch: auto`: what fits is found, written down and kept, and changes nothing that is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from refusals import refused
from toy import Toy, equal_states, run_ranks, toy_recipe

from azneobert.engine.interface import World
from azneobert.errors import TrainingError
from azneobert.model.backend import REFERENCE
from azneobert.model.encoder import build_model
from azneobert.recipe import Recipe
from azneobert.training import micro_batch
from azneobert.training.device_memory import (
    Memory,
    control_group_limits,
    memory_of,
    needed,
    rows_by_prediction,
)
from azneobert.training.inputs import Inputs, open_streams
from azneobert.training.micro_batch import find_largest, micro_batch_rows, rehearse

MakeToy = Callable[..., Toy]
CPU = torch.device("cpu")
AUTO: dict[str, Any] = {"runtime": {"max_micro_batch": "auto"}}
ROOM = 1 << 40


def ask(inputs: Inputs, free: tuple[int, ...] = (ROOM,)) -> tuple[int, str]:
    """In a rank of its own: the rows that it is given, where so many bytes are free to each; and what it says."""
    from azneobert.engine.interface import world_of
    from azneobert.engine.make import make_accelerator

    world = world_of(make_accelerator(inputs.recipe.runtime.engine))
    micro_batch.memory_of = lambda device: Memory(ROOM, free[world.rank])
    micro_batch.MARGIN = 0.0
    model = build_model(inputs.recipe.model, inputs.recipe.seed)
    with redirect_stdout(StringIO()) as said:
        rows = micro_batch_rows(inputs, model, open_streams(inputs)[0], world)
    return rows, said.getvalue()


def rows_of(toy: Toy, *free: int) -> tuple[int, str]:
    """`ask` in one rank for each number of bytes; all are given the same, and the first one speaks."""
    answers = run_ranks(ask, toy.inputs(), free or (ROOM,), processes=len(free) or 1, folder=toy.folder)
    assert len({rows for rows, _ in answers}) == 1
    assert not any(said for _, said in answers[1:])
    return answers[0]


def room_for(recipe: Recipe, rows: int, processes: int = 1) -> int:
    """What must be free for so many rows in each process, with the copy that a checkpoint is written from."""
    need = needed(recipe, "phase1", REFERENCE, World(0, processes, CPU))
    return processes * (need.peak_bytes(rows) + 3 * need.gradient_bytes())


def test_a_number_is_taken_as_it_is_and_nothing_is_written(make_toy: MakeToy) -> None:
    toy = make_toy({"runtime": {"max_micro_batch": 3}})
    assert rows_of(toy) == (3, "")
    assert not toy.run().micro_batch_file.exists()


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_the_largest_that_is_predicted_to_fit_is_found_and_written_down(rows: int, make_toy: MakeToy) -> None:
    toy = make_toy(AUTO)
    free = room_for(toy.recipe, rows)
    found, said = rows_of(toy, free)
    assert found == rows
    assert said == f"phase1: micro-batch {rows} is predicted to fit (0.0 of 1,024.0 GiB)\n"
    written = json.loads(toy.run().micro_batch_file.read_text())
    assert written["micro_batch"] == rows
    assert written["bytes"] == needed(toy.recipe, "phase1", REFERENCE, World(0, 1, CPU)).peak_bytes(rows)
    assert written["found_for"]["sequence_length"] == 32
    if rows > 1:
        assert rows_of(Toy(toy.corpus, toy.folder / "smaller", toy.recipe), free - 1)[0] == rows // 2


def test_what_stands_in_the_folder_is_taken_until_something_it_depends_on_is_another(make_toy: MakeToy) -> None:
    toy = make_toy(AUTO)
    assert rows_of(toy, room_for(toy.recipe, 2))[0] == 2
    rows, said = rows_of(toy)
    assert rows == 2
    assert said.startswith("phase1: micro-batch 2, as ")
    changed = toy.with_({"phase1": {"global_batch": 16}})
    rows, said = rows_of(changed)
    assert rows == 16
    assert "is for other settings (global_batch: 8 there, 16 here); the micro-batch is looked for anew\n" in said
    assert rows_of(changed, room_for(toy.recipe, 1))[0] == 16


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"micro_batch": 0, "found_for": {}}'])
def test_a_damaged_file_is_replaced(content: str, make_toy: MakeToy) -> None:
    toy = make_toy(AUTO)
    file = toy.run().micro_batch_file
    file.parent.mkdir(parents=True)
    file.write_text(content)
    rows, said = rows_of(toy)
    assert rows == 8
    assert "micro_batch.json is damaged; the micro-batch is looked for anew" in said
    assert json.loads(file.read_text())["micro_batch"] == 8


def test_all_ranks_take_what_fits_on_the_one_with_the_least_memory(make_toy: MakeToy) -> None:
    toy = make_toy(AUTO)
    assert rows_of(toy, ROOM, room_for(toy.recipe, 2, processes=2))[0] == 2


def test_where_no_row_fits_one_line_says_what_is_needed_and_what_is_there(make_toy: MakeToy) -> None:
    toy = make_toy(AUTO)
    with refused(TrainingError, "phase1: no micro-batch fits: one row of 32 tokens", "are free on the CPU", "use "):
        rows_of(toy, room_for(toy.recipe, 1) - 1)
    assert not toy.run().micro_batch_file.exists()


def test_a_cpu_is_not_given_more_than_32_rows(make_toy: MakeToy) -> None:
    assert rows_of(make_toy({**AUTO, "phase1": {"global_batch": 320}}))[0] == 32


def test_a_run_with_auto_is_the_run_with_the_number_that_it_found(make_toy: MakeToy) -> None:
    """To the last bit, also when it is stopped and started again; and MLflow is told the number."""
    automatic = make_toy(AUTO)
    assert not automatic.train(stop_after=4)
    assert automatic.train()
    found = json.loads(automatic.run().micro_batch_file.read_text())["micro_batch"]
    by_number = make_toy({"runtime": {"max_micro_batch": found}})
    assert by_number.train()
    assert automatic.losses() == by_number.losses()
    assert automatic.losses(key="train/grad_norm") == by_number.losses(key="train/grad_norm")
    assert equal_states(automatic.result()[0], by_number.result()[0])
    client = MlflowClient(automatic.recipe.tracking.mlflow_uri)
    [run] = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert run.data.params["runtime.max_micro_batch"] == "auto"
    assert run.data.params["batch.micro_batch"] == str(found)


def test_a_rehearsal_leaves_weights_gradients_and_generators_as_they_were(make_toy: MakeToy) -> None:
    toy = make_toy(AUTO)
    inputs = toy.inputs()
    model = build_model(toy.recipe.model, 0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    generator = torch.get_rng_state()
    need = needed(toy.recipe, "phase1", REFERENCE, World(0, 1, CPU))
    assert rehearse(model, toy.recipe.runtime, open_streams(inputs)[0].packed_batch(0, 4), need, 1024)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


CANDIDATES = [1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 36, 48, 72, 144]


@pytest.mark.parametrize("capacity", [10, 11, 15, 29, 30, 70, 100, 110, 250, 491, 10_000])
@pytest.mark.parametrize("error", [0.5, 0.8, 1.0, 1.1, 1.5])
def test_the_largest_that_fits_is_found_however_wrong_the_prediction(capacity: int, error: float) -> None:
    """`error` x (10 + 10 a row) bytes are taken of a device that has `capacity`."""
    tried = []

    def attempt(rows: int) -> tuple[int | None, float]:
        tried.append(rows)
        taken = round(error * (10 + 10 * rows))
        return (taken if taken <= capacity else None), 0.0

    found = find_largest(CANDIDATES, lambda rows: 10 + 10 * rows, capacity, attempt)
    fitting = [rows for rows in CANDIDATES if round(error * (10 + 10 * rows)) <= capacity]
    assert (found[0] if found else None) == max(fitting, default=None)
    assert len(tried) == len(set(tried))
    if error == 1.0:
        assert len(tried) == 1


def test_no_larger_one_is_tried_once_a_minute_is_over_and_one_fits() -> None:
    found = find_largest(CANDIDATES, lambda rows: 10 * rows, 100, lambda rows: (rows, 61.0))
    assert found == (9, 9)
    late = find_largest(CANDIDATES, lambda rows: 10 * rows, 100, lambda rows: (rows if rows < 9 else None, 61.0))
    assert late == (8, 8)


def test_a_stage_outside_of_a_run_computes_as_many_rows_as_fit() -> None:
    here = World(0, 1, CPU)
    assert rows_by_prediction(toy_recipe({"runtime": {"max_micro_batch": 5}}), "phase1", REFERENCE, here) == 5
    assert rows_by_prediction(toy_recipe(AUTO), "phase1", REFERENCE, here) == 32


def test_the_memory_of_this_machine_is_some_and_part_of_it_is_free() -> None:
    memory = memory_of(CPU)
    assert 0 < memory.free <= memory.total


def write_group(folder: Path, limit: str, used: int, cached: int, version: int = 2) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{content}\n")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 7\n{key} {cached}\n")


def test_every_control_group_on_the_way_up_may_limit(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("0::/job/step\n")
    write_group(root / "job" / "step", "max", 5, 1)
    write_group(root / "job", "1000", 400, 100)
    write_group(root, "5000", 100, 0)
    assert list(control_group_limits(membership, root)) == [Memory(1000, 700), Memory(5000, 4900)]


def test_a_container_sees_its_own_control_group_at_the_root(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("4:cpu:/\n3:cpuset,memory:/docker/abc\n")
    write_group(root / "memory", "2000", 300, 50, version=1)
    assert list(control_group_limits(membership, root)) == [Memory(2000, 1750)]


def test_without_control_groups_nothing_limits(tmp_path: Path) -> None:
    assert list(control_group_limits(tmp_path / "none", tmp_path)) == []
