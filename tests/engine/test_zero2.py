"""ZeRO-2 computes what the plain engine computes, and a run may change engine and number of processes on its way."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from engines import new_engine, steps
from mlflow import MlflowClient
from torch.utils._python_dispatch import TorchDispatchMode
from toy import STEPS, Toy, equal_states, largest_difference, run_ranks

from azneobert.checkpoint.manifest import Manifest, read_manifest
from azneobert.checkpoint.universal import TrainState, read_checkpoint
from azneobert.course import Course
from azneobert.engine import zero2
from azneobert.engine.interface import Engine
from azneobert.engine.make import make_accelerator, make_engine
from azneobert.engine.state import tied_parameters
from azneobert.errors import CheckpointError, TrainingError
from azneobert.model.encoder import build_model
from azneobert.recipe import EngineName, PhaseName, Recipe
from azneobert.tracking.record import read_run_id
from azneobert.training.inputs import Inputs, open_streams
from azneobert.training.position import Position
from azneobert.training.saving import Saver

# The same sums in another order, in fp32: one unit in the last place of a loss near 5.7 is 4.8e-7.
REORDERED = 1e-6
ROWS, LENGTH, CUT = 12, 30, 10

# A batch that 1, 2, 3 and 4 processes divide, and checkpoints at every place where a run is cut.
CURVE = {
    "phase1": {"global_batch": ROWS, "steps": LENGTH},
    "phase2": {"global_batch": ROWS},
    "runtime": {"max_micro_batch": ROWS, "checkpoint_every": CUT, "keep_checkpoints": 9},
    "evaluation": {"every": LENGTH},
}
SHORT = {"phase1": {"steps": 8}, "runtime": {"checkpoint_every": 4}, "evaluation": {"every": 4}}
SETTINGS: dict[str, dict[str, Any]] = {
    "untied float32": {},
    "accumulation": {"runtime": {"max_micro_batch": 2}},
    "tight clipping": {"training": {"clip_norm": 1e-2}},
    "bfloat16": {"training": {"compute_dtype": "bfloat16"}},
    "tied": {"model": {"tie_embeddings": True}},
    "all of them": {
        "runtime": {"max_micro_batch": 2},
        "training": {"clip_norm": 1e-2, "compute_dtype": "bfloat16"},
        "model": {"tie_embeddings": True},
    },
}

MakeToy = Callable[..., Toy]
Side = tuple[str, int]  # an engine and its number of processes


def train(toy: Toy, side: Side, phase: PhaseName = "phase1", **options: Any) -> Toy:
    engine, processes = side
    moved = toy.with_({"runtime": {"engine": engine, "processes": processes}})
    assert moved.train(phase, processes=processes, **options) is ("stop_after" not in options)
    return moved


def cut_at(run: Toy, step: int, make_toy: MakeToy) -> Toy:
    """A run of its own that begins with nothing but the checkpoint which `run` left on its way at this step."""
    toy = make_toy()
    name = f"running/phase1/checkpoints/step-{step:08d}"
    shutil.copytree(run.folder / name, toy.folder / name)
    changed = run.recipe.model_copy(update={"tracking": toy.recipe.tracking})
    return Toy(run.corpus, toy.folder, changed)


def assert_same_end(toy: Toy, whole: Toy, step: int) -> None:
    """Whether the steps after `step`, and what they came to, are the same to the last bit."""
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        expected = {number: value for number, value in whole.losses(key=key).items() if number > step}
        assert expected
        assert {number: value for number, value in toy.losses(key=key).items() if number > step} == expected
    (mine, my_manifest), (theirs, their_manifest) = toy.result(), whole.result()
    assert (my_manifest.step, my_manifest.stream) == (their_manifest.step, their_manifest.stream)
    assert equal_states(mine, theirs)


# A resume on as many processes


@pytest.fixture(scope="module")
def curves(make_toy: MakeToy) -> Callable[[Side], Toy]:
    """The uninterrupted run of an engine and a number of processes; each is trained once."""
    trained: dict[Side, Toy] = {}

    def curve(side: Side) -> Toy:
        if side not in trained:
            trained[side] = train(make_toy(CURVE), side)
        return trained[side]

    return curve


def test_a_stopped_zero2_run_of_two_processes_goes_on_bit_for_bit(
    curves: Callable[[Side], Toy], make_toy: MakeToy
) -> None:
    toy = make_toy(CURVE)
    train(toy, ("zero2", 2), stop_after=7)
    assert_same_end(train(toy, ("zero2", 2)), curves(("zero2", 2)), step=0)


@pytest.mark.parametrize("engine", ["plain", "zero2"])
def test_three_ranks_add_up_in_the_order_of_a_run_that_was_not_interrupted(
    engine: str, curves: Callable[[Side], Toy], make_toy: MakeToy
) -> None:
    """Of two ranks any order gives the same sum."""
    whole = curves((engine, 3))
    assert_same_end(train(cut_at(whole, CUT, make_toy), (engine, 3)), whole, CUT)


def test_a_zero2_run_of_one_process_goes_on_bit_for_bit(curves: Callable[[Side], Toy], make_toy: MakeToy) -> None:
    whole = curves(("zero2", 1))
    assert_same_end(train(cut_at(whole, CUT, make_toy), ("zero2", 1)), whole, CUT)


@pytest.mark.long
@pytest.mark.parametrize(
    ("side", "settings"),
    [
        *(((engine, 2), name) for engine in ("zero2", "plain") for name in list(SETTINGS)[1:]),
        (("zero2", 1), "all of them"),
    ],
)
def test_a_run_with_other_settings_goes_on_bit_for_bit(side: Side, settings: str, make_toy: MakeToy) -> None:
    whole = train(make_toy(SHORT).with_(SETTINGS[settings]), side)
    assert_same_end(train(cut_at(whole, 4, make_toy), side), whole, step=4)
    norms = whole.losses(key="train/grad_norm").values()
    assert min(norms) > whole.recipe.training.clip_norm or "clip" not in settings
    assert ("head.weight" in whole.result()[0].tied) is whole.recipe.model.tie_embeddings


# A resume on another engine or another number of processes


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("plain", 2), ("zero2", 2)),
        (("plain", 1), ("zero2", 2)),
        (("zero2", 2), ("plain", 1)),
        (("plain", 2), ("zero2", 1)),
        (("zero2", 1), ("plain", 2)),
        (("zero2", 2), ("zero2", 1)),
        (("zero2", 2), ("zero2", 3)),
        (("zero2", 2), ("zero2", 4)),
        (("zero2", 4), ("zero2", 2)),
    ],
    ids=lambda side: f"{side[0]} {side[1]}",
)
def test_a_run_that_changes_engine_or_processes_continues_its_curve(
    before: Side, after: Side, curves: Callable[[Side], Toy], make_toy: MakeToy
) -> None:
    whole = curves(before)
    toy = train(cut_at(whole, CUT, make_toy), after)
    losses, expected = toy.losses(), {step: loss for step, loss in whole.losses().items() if step > CUT}
    assert len(expected) == LENGTH - CUT
    assert losses[CUT + 1] == expected[CUT + 1] or before[1] != after[1]  # as many ranks add up the same loss
    assert losses == pytest.approx(expected, abs=REORDERED)
    assert largest_difference(toy.result()[0], whole.result()[0]) < 1e-4
    manifest = toy.result()[1]
    assert manifest.stream == whole.result()[1].stream
    assert (manifest.segments[-1].engine, manifest.segments[-1].world_size) == after


def test_a_bfloat16_run_that_changes_engine_takes_up_its_loss_to_the_last_bit(make_toy: MakeToy) -> None:
    """Then a weight that differs in its last bit is now and then rounded to another bfloat16, as between plain runs."""
    whole = train(make_toy(CURVE).with_(SETTINGS["all of them"]), ("plain", 2))
    toy = train(cut_at(whole, CUT, make_toy), ("zero2", 2))
    losses, expected = toy.losses(), {step: loss for step, loss in whole.losses().items() if step > CUT}
    assert losses[CUT + 1] == expected[CUT + 1]
    assert losses == pytest.approx(expected, abs=1e-3)
    assert largest_difference(toy.result()[0], whole.result()[0]) < 1e-3


def test_the_rows_of_a_step_do_not_depend_on_engine_or_processes(curves: Callable[[Side], Toy]) -> None:
    """The loss of the first step is of the initial weights, so that it is the same for the same rows and masks only."""
    sides = [("plain", 1), ("plain", 2), ("zero2", 1), ("zero2", 2), ("zero2", 4)]
    first = [curves(side).losses()[1] for side in sides]
    assert first == pytest.approx([first[0]] * len(sides), abs=REORDERED)
    for one, other in pairwise(curves(side) for side in sides):
        assert one.losses() == pytest.approx(other.losses(), abs=REORDERED)
        assert one.result()[1].stream == other.result()[1].stream


# State in and out of a live engine


def accelerated(recipe: Recipe, accelerator: Any, seed: int) -> Engine:
    """A further engine of the same process: Accelerate takes DeepSpeed's plugin once."""
    model = build_model(recipe.model, seed)
    return make_engine(model, recipe.training, recipe.runtime, accelerator, ROWS // accelerator.num_processes, 1)


def saved_and_gathered(inputs: Inputs) -> TrainState | None:
    engine = new_engine(inputs.recipe, rows=ROWS)
    steps(engine, open_streams(inputs)[0], range(3), rows=ROWS)
    with Saver(inputs, engine, Position(None, False, 0, Course(8, 32), 0, None, {}), lambda: None) as saver:
        saver.save(3)
    return engine.gather()


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_what_a_checkpoint_holds_is_what_the_engine_held_and_what_the_plain_engine_holds(
    processes: int, make_toy: MakeToy
) -> None:
    toy = make_toy(CURVE)
    zero2 = toy.with_({"runtime": {"engine": "zero2"}})
    states = run_ranks(saved_and_gathered, zero2.inputs(), processes=processes, folder=toy.folder)
    assert states[1:] == [None] * (processes - 1)
    assert equal_states(states[0], zero2.result()[0])
    plain = run_ranks(saved_and_gathered, make_toy(CURVE).inputs(), processes=processes, folder=toy.folder)
    assert_close(states[0], plain[0])


def assert_close(one: TrainState, other: TrainState) -> None:
    """The same up to the order of sums: names, shapes, step, groups, and every number of every kind.

    Both must be of as many processes: Adam divides by what may be tiny, so that the first steps of three processes and
    of one differ by 3e-6 with the plain engine alone.
    """
    assert (one.optimizer_step, one.tied) == (other.optimizer_step, other.tied)
    assert one.groups == other.groups
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        mine, theirs = getattr(one, kind), getattr(other, kind)
        assert mine.keys() == theirs.keys()
        for name in theirs:
            assert mine[name].shape == theirs[name].shape
            difference = float((mine[name] - theirs[name]).abs().max())
            assert difference < REORDERED, (kind, name, difference)


def in_an_order_of_its_own(inputs: Inputs) -> tuple[list[list[str]], TrainState | None, TrainState | None]:
    make_plugin = zero2.deepspeed_plugin

    def round_robin(on_cpu: bool) -> Any:
        plugin = make_plugin(on_cpu)
        plugin.deepspeed_config["zero_optimization"]["round_robin_gradients"] = True
        return plugin

    zero2.deepspeed_plugin = round_robin
    stream = open_streams(inputs)[0]
    accelerator = make_accelerator("zero2", "cpu")
    engine = accelerated(inputs.recipe, accelerator, seed=0)
    steps(engine, stream, range(3), rows=ROWS)
    order = [list(group.shapes) for group in engine._groups]  # type: ignore[attr-defined]
    [taken] = shared(engine.gather())
    other = accelerated(inputs.recipe, accelerator, seed=9)
    steps(other, stream, range(1), rows=ROWS)
    other.scatter(taken)
    return order, taken, other.gather()


def shared(state: TrainState | None) -> list[TrainState]:
    """What the main rank has, on every rank."""
    everywhere = [state]
    torch.distributed.broadcast_object_list(everywhere)
    assert everywhere[0] is not None
    return [everywhere[0]]


@pytest.mark.parametrize("processes", [2, 3])
def test_state_finds_its_way_where_deepspeed_orders_the_parameters_by_round_robin(
    processes: int, make_toy: MakeToy
) -> None:
    toy = make_toy(CURVE)
    inputs = toy.with_({"runtime": {"engine": "zero2"}}).inputs()
    results = run_ranks(in_an_order_of_its_own, inputs, processes=processes, folder=toy.folder)
    order, taken, back = results[0]
    plain = run_ranks(saved_and_gathered, toy.inputs(), processes=processes, folder=toy.folder)[0]
    assert order[0] != plain.groups[0]["names"], "without another order this shows nothing"
    assert equal_states(taken, back)
    assert_close(taken, plain)


def without_moments(inputs: Inputs) -> tuple[TrainState | None, TrainState | None, Any]:
    engine = new_engine(inputs.recipe, rows=ROWS)
    stream = open_streams(inputs)[0]
    [before] = shared(engine.gather())
    first = steps(engine, stream, range(1), rows=ROWS)
    engine.scatter(before)
    return before, engine.gather(), (first, steps(engine, stream, range(1), rows=ROWS))


def test_a_state_without_moments_starts_zero2_s_optimizer_anew(make_toy: MakeToy) -> None:
    toy = make_toy(CURVE)
    inputs = toy.with_({"runtime": {"engine": "zero2"}}).inputs()
    before, after, (first, again) = run_ranks(without_moments, inputs, processes=2, folder=toy.folder)[0]
    assert (before.optimizer_step, before.exp_avg) == (0, {})
    assert equal_states(before, after)
    assert first == again


# What is refused


def scattered(inputs: Inputs, others: list[TrainState]) -> list[str]:
    """What the engine says to each of these states; none of them may leave a trace."""
    engine = new_engine(inputs.recipe, rows=ROWS)
    [before] = shared(engine.gather())
    messages = []
    for state in others:
        with pytest.raises(CheckpointError) as caught:
            engine.scatter(state)
        messages.append(str(caught.value))
    [after] = shared(engine.gather())
    assert equal_states(before, after)
    return messages


def test_a_state_of_another_model_is_refused_by_zero2_in_one_line_and_changes_nothing(make_toy: MakeToy) -> None:
    toy = make_toy(CURVE).with_({"runtime": {"engine": "zero2"}})
    changes = {
        "do not match": {"num_hidden_layers": 1},
        "head.weight do not match": {"tie_embeddings": True},
        "encoder.embedding.weight is (300, 16), not (300, 32)": {"hidden_size": 16},
    }
    others = []
    for change in changes.values():
        model = build_model(toy.with_({"model": change}).recipe.model, seed=0)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        others.append(TrainState(weights, {}, {}, 0, [], tied=tied_parameters(model)))
    for messages in run_ranks(scattered, toy.inputs(), others, processes=2, folder=toy.folder):
        for message, expected in zip(messages, changes, strict=True):
            assert message.startswith("checkpoint: is of another model, ")
            assert expected in message
            assert "\n" not in message


def accelerate_among_two(engine: EngineName) -> None:
    """Accelerate has settled that it is alone before it learns that the launcher started two."""
    PartialState(cpu=True)
    os.environ["WORLD_SIZE"] = "2"
    make_accelerator(engine, "cpu")


@pytest.mark.parametrize("engine", ["plain", "zero2"])
def test_ranks_that_each_take_themselves_for_the_only_one_are_refused_in_one_line(engine: str, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError,
        match=r"^launcher: 2 processes were asked for, it started 2, Accelerate sees 1, 1 have joined; .*$",
    ):
        run_ranks(accelerate_among_two, engine, folder=tmp_path)


# Another phase


@pytest.fixture(scope="module")
def phase1(make_toy: MakeToy) -> Toy:
    toy = make_toy()
    assert toy.train()
    return toy


@pytest.mark.parametrize("moments", [True, False])
def test_a_phase_2_under_zero2_begins_from_a_plain_phase_1_and_records_what_it_took_over(
    moments: bool, phase1: Toy, make_toy: MakeToy
) -> None:
    carry = {"moments": moments, "schedule": False, "position": False}
    runs = {}
    for side in (("plain", 1), ("zero2", 2)):
        toy = make_toy({"phase2": {"carry": carry}})
        toy.take_phase1(phase1)
        runs[side] = train(toy, side, "phase2")
    plain, zero2 = runs.values()
    assert zero2.losses("phase2") == pytest.approx(plain.losses("phase2"), abs=REORDERED)
    state, manifest = zero2.result("phase2")
    assert state.optimizer_step == 4 + (STEPS if moments else 0)
    assert largest_difference(state, plain.result("phase2")[0]) < 1e-5
    weights = phase1.result()[1].files["weights.safetensors"]["sha256"]
    expected = {"phase": "phase1", "step": STEPS, "weights": weights, "carry": carry}
    assert manifest.lineage["started_from"] == expected
    assert lineage_in_mlflow(zero2, manifest)["started_from"] == expected


def lineage_in_mlflow(toy: Toy, manifest: Manifest) -> dict[str, Any]:
    run_id = read_run_id(toy.run("phase2").tracking)
    assert run_id == manifest.lineage["mlflow_run_id"]
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    return json.loads(Path(client.download_artifacts(run_id, "lineage.json")).read_text())


# torch.compile


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: there is no g++")
def test_a_compiled_run_goes_on_bit_for_bit(make_toy: MakeToy) -> None:
    small = {"model": {"num_hidden_layers": 1}, "phase1": {"steps": 4, "warmup_steps": 1}, "runtime": {"compile": True}}
    whole = train(make_toy(SHORT).with_(small).with_({"runtime": {"checkpoint_every": 2}}), ("plain", 1))
    assert_same_end(train(cut_at(whole, 2, make_toy), ("plain", 1)), whole, step=2)
    names = read_checkpoint(whole.checkpoints().steps()[-1])[0].weights
    assert not [name for name in names if "_orig_mod" in name]
    assert read_manifest(whole.checkpoints().steps()[-1]).recipe["runtime"]["compile"] is True


# What the host learns of a step


class HostReads(TorchDispatchMode):
    """Where values of a device are read on the host, which on a GPU waits for all that the GPU has to do."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(function):
            self.places += [frame.filename for frame in traceback.extract_stack() if "deepspeed" in frame.filename]
        return function(*args, **(kwargs or {}))


def reads_of_a_step(inputs: Inputs) -> list[str]:
    engine = new_engine(inputs.recipe, rows=ROWS)
    stream = open_streams(inputs)[0]
    steps(engine, stream, range(1), rows=ROWS)
    engine._optimizer.step = lambda *_, **__: None  # a fused one, as on a GPU, reads nothing; this one does
    with HostReads() as found:
        steps(engine, stream, range(1, 2), rows=ROWS)
    return found.places


@pytest.mark.parametrize("processes", [1, 2])
def test_deepspeed_reads_nothing_of_a_step_on_the_host(processes: int, make_toy: MakeToy) -> None:
    toy = make_toy({**CURVE, "runtime": {"engine": "zero2", "processes": processes, "max_micro_batch": ROWS}})
    assert run_ranks(reads_of_a_step, toy.inputs(), processes=processes, folder=toy.folder) == [[]] * processes
