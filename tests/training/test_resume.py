"""A run that was interrupted is the run that was not: the same losses, the same weights, the same MLflow run."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from refusals import refused
from toy import (
    ENDLESS,
    STEPS,
    Toy,
    equal_states,
    largest_difference,
    outcome,
    prepare,
    run_ranks,
    start_ranks,
    train_rank,
    write_corpus,
)

from azneobert.checkpoint.manifest import read_manifest
from azneobert.checkpoint.universal import all_weights, read_checkpoint
from azneobert.engine.interface import World
from azneobert.errors import CheckpointError, DataError, RecipeError
from azneobert.model.encoder import build_model
from azneobert.training.evaluation import evaluate
from azneobert.training.inputs import open_streams
from azneobert.training.position import find_position

# The same sums in another order, in fp32: one unit in the last place of a loss near 5.7 is 4.8e-7.
REORDERED = 1e-6

MakeToy = Callable[..., Toy]


@pytest.fixture(scope="module")
def uninterrupted(make_toy: MakeToy) -> Toy:
    toy = make_toy()
    assert toy.train()
    return toy


@pytest.fixture(scope="module")
def two_phases(uninterrupted: Toy, make_toy: MakeToy) -> Callable[..., Toy]:
    """Makes a finished phase 1 with other settings for the phase 2 that follows."""

    def make(phase2: dict) -> Toy:
        toy = make_toy()
        toy.take_phase1(uninterrupted)
        return toy.with_({"phase2": phase2})

    return make


def assert_same_run(toy: Toy, reference: Toy) -> None:
    assert toy.losses() == reference.losses()
    assert toy.losses(key="train/grad_norm") == reference.losses(key="train/grad_norm")
    assert toy.losses(key="eval/loss") == reference.losses(key="eval/loss")
    mine, my_manifest = toy.result()
    theirs, their_manifest = reference.result()
    assert my_manifest.step == their_manifest.step == STEPS
    assert my_manifest.stream == their_manifest.stream
    assert equal_states(mine, theirs)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 9])
def test_stopping_and_starting_again_gives_the_uninterrupted_run_bit_for_bit(
    stop_after: int, uninterrupted: Toy, make_toy: MakeToy
) -> None:
    toy = make_toy()
    assert not toy.train(stop_after=stop_after)
    assert toy.result()[1].step == stop_after
    assert toy.train()
    assert_same_run(toy, uninterrupted)


def test_stopping_after_every_single_step_gives_the_uninterrupted_run(make_toy: MakeToy, uninterrupted: Toy) -> None:
    toy = make_toy()
    for _ in range(STEPS - 1):
        assert not toy.train(stop_after=1)
    assert toy.train()
    assert_same_run(toy, uninterrupted)


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one_to_the_same_end(
    make_toy: MakeToy, uninterrupted: Toy
) -> None:
    toy = make_toy()
    exits = run_ranks(train_rank, toy.inputs(), ("kill_after", 5), folder=toy.folder)
    assert exits == [-signal.SIGKILL]
    assert toy.result()[1].step == 3
    assert max(toy.losses()) == 5  # two steps that have left points and no checkpoint
    assert toy.train()
    assert_same_run(toy, uninterrupted)


def test_a_run_with_bfloat16_compute_resumes_bit_for_bit(make_toy: MakeToy) -> None:
    bfloat16 = {"training": {"compute_dtype": "bfloat16"}}
    whole, cut = make_toy(bfloat16), make_toy(bfloat16)
    assert whole.train()
    assert not cut.train(stop_after=4)
    assert cut.train()
    assert_same_run(cut, whole)


def test_a_run_with_tied_embeddings_resumes_bit_for_bit_and_records_the_alias(make_toy: MakeToy) -> None:
    tied = {"model": {"tie_embeddings": True}}
    whole, cut = make_toy(tied), make_toy(tied)
    assert whole.train()
    assert not cut.train(stop_after=4)
    assert cut.result()[0].tied == {"head.weight": "encoder.embedding.weight"}
    assert cut.train()
    assert_same_run(cut, whole)


def test_data_loader_workers_do_not_change_the_run(make_toy: MakeToy, uninterrupted: Toy) -> None:
    toy = make_toy({"runtime": {"workers": 2}})
    assert not toy.train(stop_after=4)
    assert toy.train()
    assert_same_run(toy, uninterrupted)


def test_every_step_of_a_run_takes_new_samples_and_crosses_an_epoch(uninterrupted: Toy) -> None:
    manifest = uninterrupted.result()[1]
    assert manifest.stream["sample_index"] == STEPS * uninterrupted.recipe.phase1.global_batch
    rows = len(open_streams(uninterrupted.inputs())[0])
    assert manifest.samples > rows, "the corpus is too large for these tests to see an epoch's end"


@pytest.mark.parametrize("max_micro_batch", [4, 2, 1])
def test_accumulation_does_not_change_the_loss_curve(
    max_micro_batch: int, make_toy: MakeToy, uninterrupted: Toy
) -> None:
    toy = make_toy({"runtime": {"max_micro_batch": max_micro_batch}})
    assert toy.train()
    assert toy.losses() == pytest.approx(uninterrupted.losses(), abs=REORDERED)
    assert largest_difference(toy.result()[0], uninterrupted.result()[0]) < 1e-4


@pytest.mark.parametrize("max_micro_batch", [4, 2])
def test_two_processes_give_the_loss_curve_of_one(max_micro_batch: int, make_toy: MakeToy, uninterrupted: Toy) -> None:
    toy = make_toy({"runtime": {"processes": 2, "max_micro_batch": max_micro_batch}})
    assert toy.train(processes=2)
    assert toy.losses() == pytest.approx(uninterrupted.losses(), abs=REORDERED)
    assert toy.losses(key="train/grad_norm") == pytest.approx(
        uninterrupted.losses(key="train/grad_norm"), abs=REORDERED
    )
    assert toy.losses(key="eval/loss") == pytest.approx(uninterrupted.losses(key="eval/loss"), abs=REORDERED)
    assert toy.result()[1].stream == uninterrupted.result()[1].stream


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_resume_on_another_number_of_processes_continues_the_curve(
    before: int, after: int, make_toy: MakeToy, uninterrupted: Toy
) -> None:
    toy = make_toy()
    assert not toy.train(processes=before, stop_after=5)
    assert toy.with_({"runtime": {"processes": after}}).train(processes=after)
    assert toy.losses() == pytest.approx(uninterrupted.losses(), abs=REORDERED)


def test_a_resume_on_as_many_processes_is_bit_identical(make_toy: MakeToy) -> None:
    whole, cut = make_toy(), make_toy()
    assert whole.train(processes=2)
    assert not cut.train(processes=2, stop_after=5)
    assert cut.train(processes=2)
    assert_same_run(cut, whole)


def test_a_batch_that_does_not_divide_over_the_processes_is_refused_in_one_line(make_toy: MakeToy) -> None:
    toy = make_toy({"phase1": {"global_batch": 7}})
    with pytest.raises(
        RecipeError, match=r"^phase1\.global_batch 7 does not divide over 2 processes; use a batch of .* processes$"
    ):
        toy.train(processes=2)


def test_a_resumed_run_is_the_same_mlflow_run_with_each_point_once(make_toy: MakeToy) -> None:
    toy = make_toy()
    assert not toy.train(stop_after=4)
    run_ranks(train_rank, toy.inputs(), ("kill_after", 4), folder=toy.folder)  # dies at step 8, after the save at 6
    assert toy.train()
    client = MlflowClient(toy.recipe.tracking.mlflow_uri)
    experiment = client.get_experiment_by_name(toy.recipe.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    assert toy.result()[1].lineage["mlflow_run_id"] == runs[0].info.run_id
    for key, steps in {
        "train/loss": range(1, STEPS + 1),
        "train/optimizer/lr": range(1, STEPS + 1),
        "train/optimizer/tokens": range(1, STEPS + 1),
        "train/loss_by_tokens": sorted(map(int, toy.losses(key="train/tokens").values())),
        "validation/loss": [0, 4, 8, STEPS],
        "validation/loss/news": [0, 4, 8, STEPS],
    }.items():
        history = client.get_metric_history(runs[0].info.run_id, key)
        assert sorted(point.step for point in history) == list(steps), key
    recorded = {p.step: p.value for p in client.get_metric_history(runs[0].info.run_id, "train/loss")}
    assert recorded == toy.losses()
    assert len(list((toy.run("phase1").tracking).glob("run.json"))) == 1


def test_a_finished_run_that_starts_again_trains_nothing(uninterrupted: Toy, make_toy: MakeToy) -> None:
    toy = make_toy()
    assert toy.train()
    before = {file: file.stat().st_mtime_ns for file in toy.run().path.rglob("*.safetensors")}
    assert toy.train()
    assert {file: file.stat().st_mtime_ns for file in toy.run().path.rglob("*.safetensors")} == before


# Phase 2


def test_phase_2_begins_with_the_weights_of_phase_1_and_names_them(two_phases: Callable[..., Toy]) -> None:
    toy = two_phases({"sequence_length": 32})
    assert toy.train("phase2")
    phase1_state, phase1 = toy.result("phase1")
    # The same rows are held out at the same length, so the loss before the first step is phase 1's last.
    assert toy.losses("phase2", "eval/loss")[0] == pytest.approx(_held_out_at_the_end(toy), abs=1e-6)
    assert toy.result("phase2")[1].lineage["started_from"] == {
        "phase": "phase1",
        "step": STEPS,
        "weights": phase1.files["weights.safetensors"]["sha256"],
        "carry": {"moments": True, "schedule": False, "position": False},
    }
    assert phase1_state.optimizer_step == STEPS


def _held_out_at_the_end(toy: Toy) -> float:

    model = build_model(toy.recipe.model, seed=0)
    model.load_state_dict(all_weights(toy.result("phase1")[0]), strict=True)
    _, validation = open_streams(toy.inputs("phase1"))
    rows = toy.recipe.evaluation.max_rows_per_collection
    return evaluate(model, validation, 8, rows, World(0, 1, torch.device("cpu")))["eval/loss"]


@pytest.mark.parametrize("moments", [True, False])
def test_phase_2_takes_over_the_moments_only_if_the_recipe_says_so(
    moments: bool, two_phases: Callable[..., Toy]
) -> None:
    toy = two_phases({"carry": {"moments": moments, "schedule": False, "position": False}})
    inputs = toy.inputs("phase2")
    position = find_position(inputs, open_streams(inputs)[0])
    state = position.open()
    phase1 = toy.result("phase1")[0]
    assert state is not None
    assert position.step == 0
    assert all((state.weights[name] == tensor).all() for name, tensor in phase1.weights.items())
    if moments:
        assert equal_states(state, phase1)
    else:
        assert not state.exp_avg
    assert toy.train("phase2")
    assert toy.result("phase2")[0].optimizer_step == 4 + (STEPS if moments else 0)


def test_the_moments_that_phase_2_takes_over_change_its_first_update(two_phases: Callable[..., Toy]) -> None:
    runs = [
        two_phases({"carry": {"moments": moments, "schedule": False, "position": False}}) for moments in (True, False)
    ]
    for toy in runs:
        assert not toy.train("phase2", stop_after=1)
    first, second = (toy.losses("phase2") for toy in runs)
    assert first[1] == second[1]  # the loss of the first step is of the weights as they came
    assert largest_difference(runs[0].result("phase2")[0], runs[1].result("phase2")[0]) > 1e-5


def test_phase_2_continues_schedule_and_data_position_if_the_recipe_says_so(two_phases: Callable[..., Toy]) -> None:
    toy = two_phases({"carry": {"moments": True, "schedule": True, "position": True}})
    assert not toy.train("phase2", stop_after=2)
    assert toy.train("phase2")
    manifest = toy.result("phase2")[1]
    assert manifest.schedule["offset"] == STEPS
    assert manifest.stream["first_sample"] == STEPS * toy.recipe.phase1.global_batch
    assert manifest.stream["sample_index"] == STEPS * toy.recipe.phase1.global_batch + 4 * 4


@pytest.mark.parametrize("carried", [True, False])
def test_an_interrupted_phase_2_goes_on_from_its_own_checkpoint(carried: bool, two_phases: Callable[..., Toy]) -> None:
    carry = {"carry": {"moments": carried, "schedule": carried, "position": carried}}
    whole, cut = two_phases(carry), two_phases(carry)
    assert whole.train("phase2")
    assert not cut.train("phase2", stop_after=2)
    assert cut.train("phase2")
    assert cut.losses("phase2") == whole.losses("phase2")
    assert cut.losses("phase2", "train/lr") == whole.losses("phase2", "train/lr")
    assert equal_states(cut.result("phase2")[0], whole.result("phase2")[0])


def test_phase_2_starts_anew_once_phase_1_is_another(two_phases: Callable[..., Toy]) -> None:
    toy = two_phases({})
    assert toy.train("phase2")
    assert prepare(toy, "phase2"), "with the same phase 1 it is complete"
    changed = toy.with_({"phase1": {"peak_learning_rate": 1e-4}})
    assert not prepare(changed, "phase1")
    assert changed.train("phase1")
    assert not prepare(toy, "phase2")
    assert list(toy.run("phase2").path.parent.glob("phase2.aside-*/checkpoints/step-*"))


def test_phase_2_without_phase_1_is_refused_in_one_line(make_toy: MakeToy) -> None:
    with pytest.raises(CheckpointError, match=r"no finished checkpoint there; run `dvc repro phase1`$") as caught:
        make_toy().train("phase2")
    assert "\n" not in str(caught.value)


def test_phase_2_of_another_model_is_refused_naming_the_key(two_phases: Callable[..., Toy]) -> None:
    toy = two_phases({}).with_({"model": {"rope_theta": 5000.0}})
    found = r"another model: rope_theta: 10000\.0 there, 5000\.0 here; use another checkpoint$"
    with pytest.raises(CheckpointError, match=found):
        toy.train("phase2")


# What is refused


@pytest.fixture(scope="module")
def stopped(make_toy: MakeToy) -> Toy:
    toy = make_toy()
    assert not toy.train(stop_after=4)
    return toy


@pytest.fixture(scope="module")
def other_corpus(stopped: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_corpus(folder, stopped.recipe, seed=8)
    return folder


def refusal(toy: Toy, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        toy.train(**options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"model": {"rope_theta": 5000.0}}, "model.rope_theta: 10000.0 there, 5000.0 here"),
        ({"model": {"num_hidden_layers": 3}}, "model.num_hidden_layers: 2 there, 3 here"),
        ({"training": {"weight_decay": 0.5}}, "training.weight_decay: 0.01 there, 0.5 here"),
        ({"phase1": {"global_batch": 4}}, "phase1"),
        ({"seed": 5}, "seed: 1337 there, 5 here"),
    ],
)
def test_resuming_with_other_settings_is_refused_naming_what_differs(
    overrides: dict, named: str, stopped: Toy, tmp_path: Path
) -> None:
    toy = stopped.copy_to(tmp_path / "run").with_(overrides)
    message = refusal(toy)
    assert ("phase.global_batch: 8 there, 4 here" if named == "phase1" else named) in message
    assert "--accept-changed" in message
    assert str(toy.folder) in message


def test_resuming_on_other_data_or_another_tokenizer_is_refused_naming_it(
    stopped: Toy, other_corpus: Path, tmp_path: Path
) -> None:
    message = refusal(stopped.copy_to(tmp_path / "run").with_(corpus=other_corpus))
    for key in ("rows: ", "tokenizer: ", "tokens: "):
        assert key in message


def test_a_person_can_insist_on_what_has_changed(stopped: Toy, other_corpus: Path, tmp_path: Path) -> None:
    toy = stopped.copy_to(tmp_path / "run").with_({"training": {"weight_decay": 0.5}}, corpus=other_corpus)
    partly = refusal(toy, accept_changed=("rows", "tokens", "tokenizer"))
    assert "training.weight_decay" in partly
    assert "rows: " not in partly
    assert toy.train(accept_changed=("rows", "tokens", "tokenizer", "training.weight_decay"))
    assert toy.result()[1].step == STEPS
    assert toy.result()[1].identity["training"]["weight_decay"] == 0.5
    assert toy.result()[0].groups[0]["weight_decay"] == 0.5


def test_insisting_on_a_key_accepts_no_other_key_that_begins_like_it(stopped: Toy, tmp_path: Path) -> None:
    toy = stopped.copy_to(tmp_path / "run").with_({"training": {"weight_decay": 0.5}})
    assert "training.weight_decay" in refusal(toy, accept_changed=("train",))


def test_insisting_on_another_global_batch_goes_on_behind_the_samples_already_seen(
    stopped: Toy, tmp_path: Path
) -> None:
    toy = stopped.copy_to(tmp_path / "run").with_({"phase1": {"global_batch": 4}})
    seen = stopped.result()[1].stream["sample_index"]
    assert toy.train(accept_changed=("phase",))
    manifest = toy.result()[1]
    assert manifest.stream["sample_index"] == manifest.samples == seen + (STEPS - 4) * 4
    # Tokens are counted as they were trained: 4 steps of 8 rows, the others of 4.
    assert manifest.tokens == manifest.samples * 32
    assert toy.losses(key="train/tokens")[STEPS] == manifest.tokens


@pytest.mark.parametrize("overrides", [{"model": {"num_hidden_layers": 3}}, {"model": {"intermediate_size": 96}}])
def test_shapes_that_do_not_fit_are_refused_however_one_insists(overrides: dict, stopped: Toy, tmp_path: Path) -> None:
    toy = stopped.copy_to(tmp_path / "run").with_(overrides)
    assert "checkpoint: is of another model, " in refusal(toy, accept_changed=("model",))
    assert toy.result()[1].step == 4


def test_rows_of_another_length_than_the_recipes_are_refused(stopped: Toy, tmp_path: Path) -> None:
    toy = stopped.copy_to(tmp_path / "run")
    inputs = dataclasses.replace(toy.inputs(), rows=toy.corpus / "rows" / "64")
    with refused(DataError, f"{inputs.rows}: rows of 64 tokens", "the recipe asks for 32", "run `dvc repro rows`"):
        run_ranks(train_rank, inputs, folder=toy.folder)


def test_rows_of_another_mixture_than_the_recipes_are_refused(stopped: Toy, tmp_path: Path) -> None:
    mixture = [{"min_tokens": 0, "share": 0.25}, {"min_tokens": 8, "share": 0.75}]
    toy = stopped.copy_to(tmp_path / "run").with_({"phase1": {"mixture": mixture}})
    with refused(
        DataError, "mixture ((0, 1.0),)", "the recipe asks for 32 in ((0, 0.25), (8, 0.75))", "dvc repro rows"
    ):
        run_ranks(train_rank, toy.inputs(), folder=toy.folder)


# The folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def aside_of(toy: Toy) -> list[Path]:
    return sorted(toy.run().path.parent.glob("phase1.aside-*"))


def test_preparing_the_folder_leaves_a_run_that_can_go_on_as_it_is(stopped: Toy, tmp_path: Path) -> None:
    toy = stopped.copy_to(tmp_path / "run")
    before = files_in(toy.run().path)
    assert json.loads(before.pop("outcome.json")) == {"state": "stopped", "step": 4}
    assert not prepare(toy)
    # What was said of an earlier end is gone; what asked for it is the launcher's to remove.
    assert files_in(toy.run().path) == before


def test_preparing_the_folder_sets_another_run_aside_and_loses_nothing(
    stopped: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = stopped.copy_to(tmp_path / "run").with_({"seed": 5})
    former = files_in(toy.run().path)
    del former["outcome.json"]
    assert not prepare(toy)
    assert "seed: 1337 there, 5 here" in capsys.readouterr().out
    assert [files_in(folder) for folder in aside_of(toy)] == [former]
    assert toy.train()
    assert min(toy.losses()) == 1


def test_two_runs_set_aside_within_one_second_lie_beside_each_other(stopped: Toy, tmp_path: Path) -> None:
    toy = stopped.copy_to(tmp_path / "run")
    while time.time() % 1 > 0.3:  # both within the same second
        time.sleep(0.02)
    prepare(toy.with_({"seed": 5}))
    stopped_again = stopped.copy_to(tmp_path / "again")
    stopped_again.run().path.rename(toy.run().path)
    prepare(toy.with_({"seed": 5}))
    aside = aside_of(toy)
    assert len(aside) == 2
    assert all((folder / "checkpoints" / "latest").is_file() for folder in aside)


def test_a_complete_run_is_kept_by_the_same_code_and_set_aside_by_other_code(
    uninterrupted: Toy, tmp_path: Path
) -> None:
    toy = uninterrupted.copy_to(tmp_path / "run")
    assert prepare(toy)
    assert not prepare(toy, code="edited")
    assert len(aside_of(toy)) == 1


def test_a_complete_run_is_kept_whatever_the_code_where_the_recipe_says_so(
    uninterrupted: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = uninterrupted.copy_to(tmp_path / "run").with_({"runtime": {"changed_code": "keep"}})
    assert prepare(toy, code="edited")
    assert "complete, by other code than today's; kept" in capsys.readouterr().out
    assert aside_of(toy) == []


def test_an_unfinished_run_goes_on_whatever_the_code(stopped: Toy, tmp_path: Path) -> None:
    toy = stopped.copy_to(tmp_path / "run")
    assert not prepare(toy, code="edited")
    assert aside_of(toy) == []


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    make_toy: MakeToy, uninterrupted: Toy
) -> None:
    toy = make_toy()
    assert not toy.train(stop_after=7)
    newest = toy.checkpoints().steps()[-1]
    (newest / "weights.safetensors").write_bytes(b"torn")
    assert toy.train()
    assert_same_run(toy, uninterrupted)


def test_sigterm_finishes_the_step_and_leaves_a_checkpoint_at_that_step(make_toy: MakeToy) -> None:
    toy = make_toy(ENDLESS)
    [(child, connection)] = start_ranks(train_rank, toy.inputs(), folder=toy.folder)
    toy.wait_for_points(child, 5)
    os.kill(child.pid, signal.SIGTERM)
    assert outcome(child, connection) is False
    assert child.exitcode == 0
    assert toy.result()[1].step == max(toy.losses())
    assert 3 < toy.result()[1].step < 5000
    assert read_manifest(toy.checkpoints().steps()[-1]).step == toy.result()[1].step


def test_a_second_training_in_a_folder_waits_for_the_first(make_toy: MakeToy, uninterrupted: Toy) -> None:
    toy = make_toy()
    both = [start_ranks(train_rank, toy.inputs(), folder=toy.folder)[0] for _ in range(2)]
    assert [outcome(*each) for each in both] == [True, True]
    assert_same_run(toy, uninterrupted)
    lines = (toy.run("phase1").tracking / "points.jsonl").read_text().splitlines()
    assert len({(json.loads(line)["step"], *json.loads(line)["values"]) for line in lines}) == len(lines)


def test_a_checkpoint_of_another_processes_count_reads_the_same(make_toy: MakeToy) -> None:
    one, two = make_toy(), make_toy()
    one.train(stop_after=1)
    two.train(processes=2, stop_after=1)
    states = [read_checkpoint(toy.checkpoints().steps()[-1])[0] for toy in (one, two)]
    assert states[0].weights.keys() == states[1].weights.keys()
    assert largest_difference(*states) < 1e-5
