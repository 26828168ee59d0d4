"""`bench loss` from end to end with toys: what is wrong differs, what is the same is neutral, calls add up."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from azneobert.bench import neutrality
from azneobert.bench.gradients import Errors
from azneobert.bench.neutrality import Experiment, bench_loss, compared, course_of, plan, settings_of
from azneobert.bench.prose import Facts, Wanted, prepare, unigram_entropy
from azneobert.bench.report import Row
from azneobert.bench.trainings import Done, TrainingsFile, fingerprint
from azneobert.errors import AzNeoBertError
from azneobert.recipe import Cleaning, FileSource

ROOT = Path(__file__).parents[2]
SEEDS = 4
FACTS = Facts("text", {}, {}, {}, 6.0)


def planned(folder: Path, variants: list[str], **changes: Any) -> Experiment:
    asked: dict[str, Any] = {
        "corpus": [],
        "recipe": ROOT / "recipes/h200.yaml",
        "rate": None,
        "steps": None,
        "held_out": 0.12,
        "results": folder / "trainings.jsonl",
        "folder": folder,
        "minutes": 60.0,
        "toy": True,
    }
    return plan(variants, SEEDS, **asked | changes)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A folder after one call, and the call's rows."""
    folder = tmp_path_factory.mktemp("neutrality")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder, list(bench_loss(planned(folder, ["wrong", "fused"])))


def row(rows: list[Row], start: str) -> Row:
    return next(one for one in rows if one.what.startswith(start))


@pytest.mark.long
def test_what_is_wrong_differs_and_what_is_the_same_is_neutral(ended: tuple[Path, list[Row]]) -> None:
    _, rows = ended
    reference = row(rows, "reference")
    assert reference.met, reference
    wrong, same = row(rows, "control"), row(rows, "fused")
    assert wrong.figure.startswith("differs: +"), wrong
    assert wrong.met
    assert same.figure == "neutral: +0.00000 +- 0.00000 nats"  # on a CPU it is computed by the same kernels
    assert same.met
    assert row(rows, "what may be the default").figure == "reference, fused"


@pytest.mark.long
def test_gradients_of_what_is_wrong_are_far_from_float64_at_both_weights(ended: tuple[Path, list[Row]]) -> None:
    _, rows = ended
    for when in ("initial", "trained"):
        found = {name: row(rows, f"gradients against float64, {when} weights: {name}") for name in ("wrong", "fused")}
        assert (found["wrong"].met, found["fused"].met) == (False, True)
        assert float(found["fused"].figure.split()[1].strip(",")) < 1e-4


@pytest.mark.long
def test_a_file_of_trainings_says_what_was_trained(ended: tuple[Path, list[Row]]) -> None:
    folder, _ = ended
    lines = [json.loads(line) for line in (folder / "trainings.jsonl").read_text().splitlines()]
    pairs = {(line["variant"], line["seed"]) for line in lines}
    assert pairs == {(name, seed) for name in ("reference", "wrong", "fused") for seed in range(1, SEEDS + 1)}
    assert len(lines) == len(pairs)
    assert {line["division"] for line in lines} == {1}
    assert {line["steps"] for line in lines} == {200}
    assert len({line["fingerprint"] for line in lines}) == 1
    assert [line["variant"] for line in lines[:3]] == ["reference", "wrong", "fused"]  # a short call leaves whole pairs


@pytest.mark.long
def test_a_later_call_trains_what_is_lacking_alone(
    ended: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = ended
    monkeypatch.chdir(ROOT)
    results = tmp_path / "copy.jsonl"
    kept = (folder / "trainings.jsonl").read_text().splitlines(keepends=True)
    results.write_text("".join(kept[:-1]))
    again = list(bench_loss(planned(folder, ["wrong", "fused"], results=results)))
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert results.read_text().splitlines(keepends=True)[:-1] == kept[:-1]
    assert {**found[-1], "seconds": 0} == {**json.loads(kept[-1]), "seconds": 0}  # the same loss, to the last bit
    assert row(again, "control").figure == row(rows, "control").figure


@pytest.mark.long
def test_a_call_without_minutes_trains_nothing_and_says_so(
    ended: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = ended
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(neutrality, "run_ranks", lambda *_, world: write_nothing(folder))
    rows = list(bench_loss(planned(folder, ["fused"], results=tmp_path / "none.jsonl", minutes=0.0)))
    assert row(rows, "fused").figure == "inconclusive: no training"
    assert row(rows, "what may be the default").figure == "reference"


def write_nothing(folder: Path) -> None:
    for name in ("gradients.json", "failures.json"):
        (folder / name).write_text("{}")


@pytest.mark.long
def test_a_file_of_other_settings_is_refused(ended: tuple[Path, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = ended
    monkeypatch.chdir(ROOT)
    with refused(AzNeoBertError, "line 1 was trained with rate 0.003, this call has 0.001", "another --results"):
        list(bench_loss(planned(folder, ["fused"], rate=1e-3)))


# Verdicts on losses that nobody trained


def done(settings: dict[str, Any], variant: str, seed: int, loss: float | None) -> Done:
    kernels = "attention reference, blocks torch"
    return Done(
        variant, seed, 1, "a model", fingerprint(settings), settings, "0" * 10, "CPU", kernels, 200, loss, seconds=1.0
    )


def judged(tmp_path: Path, differences: list[float | None], mean: float = 5.0, variant: str = "fa4") -> list[Row]:
    found = []
    for seed, apart in enumerate(differences, start=1):
        loss = mean + seed / 10  # what a seed does is far more than what is looked for
        found.append(done({}, "reference", seed, loss))
        found.append(done({}, variant, seed, None if apart is None else loss + apart))
    return list(compared(planned(tmp_path, [variant]), found, FACTS.unigram))


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(
    ("differences", "verdict", "met"),
    [
        ([0.001, -0.002, 0.0, 0.002, -0.001], "neutral", True),
        ([0.03, 0.02, 0.025, 0.03, 0.02], "differs", False),
        ([0.03, -0.02, 0.015, -0.01, 0.02], "inconclusive", None),
        ([0.001, 0.001, None, 0.001, 0.001], "differs", False),
    ],
)
def test_a_verdict(tmp_path: Path, differences: list[float | None], verdict: str, met: bool | None) -> None:
    rows = judged(tmp_path, differences)
    found = row(rows, "fa4")
    assert found.figure.split(":")[0] == verdict
    assert found.met is met
    assert row(rows, "what may be the default").figure == ("reference, fa4" if met else "reference")
    if verdict == "inconclusive":
        assert "seeds more would settle it" in found.note


@pytest.mark.usefixtures("in_root")
def test_before_the_plateau_nothing_is_neutral_and_nothing_differs(tmp_path: Path) -> None:
    for differences in ([0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [None, None, None]):
        rows = judged(tmp_path, differences, mean=5.8)  # the third seed's is 6.1
        assert row(rows, "reference").met is False
        assert row(rows, "fa4").figure.startswith("inconclusive")
        assert row(rows, "what may be the default").figure == "reference"


@pytest.mark.usefixtures("in_root")
def test_a_control_that_is_not_seen_to_be_wrong_does_not_meet_its_bar(tmp_path: Path) -> None:
    assert row(judged(tmp_path, [0.0, 0.0, 0.0], variant="wrong"), "control").met is False
    assert row(judged(tmp_path, [0.1, 0.1, 0.1], variant="wrong"), "control").met is True


@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize("apart", [0.0, -0.07])
def test_more_steps_show_what_a_difference_is_worth_and_are_not_judged(tmp_path: Path, apart: float) -> None:
    rows = judged(tmp_path, [apart, apart, apart], variant="longer")
    control = row(rows, "control: reference, 5% more steps")
    assert (control.bar, control.met) == ("", None)
    assert f"{apart:+.5f} +- 0.00000 nats" in control.figure
    assert row(rows, "what may be the default").figure == "reference"
    experiment = planned(tmp_path, ["longer"])
    assert [course_of(experiment, name).steps for name in experiment.names] == [200, 210]
    assert experiment.variant("longer") == experiment.variant("reference")


@pytest.mark.usefixtures("in_root")
def test_fused_blocks_that_do_not_run_are_no_comparison(tmp_path: Path) -> None:
    experiment = replace(planned(tmp_path, ["fused", "fa4"]), toy=False)
    assert experiment.variant("fused").blocks == "fused"  # which `choose_backend` refuses where they do not run
    assert experiment.variant("fa4").blocks == experiment.variant("reference").blocks == "torch"


# The file


def test_a_line_that_is_no_training_is_refused(tmp_path: Path) -> None:
    settings = settings_of(planned(tmp_path, []), FACTS)
    file = TrainingsFile(tmp_path / "trainings.jsonl", settings)
    assert file.read() == []
    file.add(done(settings, "fa4", 1, 5.0))
    file.add(done(settings, "fa4", 2, None))
    assert [(one.seed, one.held_out_loss) for one in file.read()] == [(1, 5.0), (2, None)]
    whole = file.path.read_text()
    for line in ("{", "[]", '{"variant": "fa4"}', json.dumps(asdict(done(settings, "fa4", 1, 1.0)) | {"seed": "x"})):
        file.path.write_text(f"{whole}{line}\n")
        with refused(AzNeoBertError, "trainings.jsonl: line 3", "remove the line, or use a new file"):
            file.read()


# The text


def test_the_text_is_split_by_hash_and_prepared_once(tmp_path: Path) -> None:
    cleaning = Cleaning(min_words=3, max_malformed=0.0, validation_fraction=0.2)
    source = FileSource(path=str(ROOT / "data/sample/pdfs"), id_field=None)
    wanted = Wanted({"pdfs": source}, cleaning, vocab_size=512, sequence_length=64)
    first = prepare(wanted, tmp_path / "text")
    made = (tmp_path / "text" / "prose.json").stat().st_mtime_ns
    assert prepare(wanted, tmp_path / "text").facts == first.facts
    assert (tmp_path / "text" / "prose.json").stat().st_mtime_ns == made
    assert min(first.facts.documents.values()) > 0
    assert sum(first.facts.documents.values()) <= 12
    assert torch.equal(first.held_out(0.2).batch(0, 2).input_ids, first.held_out(0.2).batch(0, 2).input_ids)
    assert not torch.equal(first.stream(1, 0.2).batch(0, 2).input_ids, first.stream(2, 0.2).batch(0, 2).input_ids)
    other = prepare(replace(wanted, sequence_length=128), tmp_path / "text")
    assert other.facts.identity != first.facts.identity


def test_the_unigram_entropy_is_that_of_the_training_counts() -> None:
    even, skewed = np.asarray([99, 99, 99, 99]), np.asarray([396, 0, 0, 0])
    assert unigram_entropy(even, skewed) == pytest.approx(np.log(4))
    assert unigram_entropy(skewed, skewed) == pytest.approx(-np.log(397 / 400))
    assert unigram_entropy(skewed, even) > np.log(4)


def test_errors_of_gradients() -> None:
    exact = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4), "nothing": torch.zeros(4)}
    found = {"a": torch.ones(4), "b": torch.ones(4) * 1.5, "c": torch.ones(4) * 1.1, "nothing": torch.ones(4)}
    errors = Errors.of(found, exact)
    assert (errors.worst, errors.where, errors.median) == (0.5, "b", pytest.approx(0.1))
    assert Errors.of(found | {"a": torch.full((4,), torch.nan)}, exact).where == "a"
