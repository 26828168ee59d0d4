"""`azneobert bench loss`: do faster ways of computing a step change what is learnt? The test can pass and can fail.

Each way of computing trains a small model on real text from the same seeds. A seed decides the initial weights and the
order of the text, so the difference between two trainings of one seed is free of the seed's effect. Three controls
stand beside the variants: the reference with its batches divided differently, which is neutral; wrong attention, which
is not; and the reference with 5% more steps, which shows what a difference is worth. Trainings of several calls add up
in one file. Whoever looks after each call and stops when the result pleases has intervals of less than 95%: decide on
the number of seeds before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azneobert.bench.intervals import MARGIN, difference
from azneobert.bench.ranks import run_ranks
from azneobert.bench.report import Row
from azneobert.bench.trainings import Done, TrainingsFile, fingerprint
from azneobert.bench.variants import ABLATION, REFERENCE, WRONG, Variant
from azneobert.errors import AzNeoBertError, TrainingError
from azneobert.files import read_json, write_json
from azneobert.provenance import code_sha256, git_state, versions

if TYPE_CHECKING:
    import torch

    from azneobert.bench.learning import Course, Ending, Learner
    from azneobert.bench.prose import Facts, Prose, Wanted

REFERENCE_NAME, DIVIDED, WRONG_NAME, LONGER = "reference", "divided", "wrong", "longer"
_MORE_STEPS = 1.05
_AS_REFERENCE = (DIVIDED, LONGER)  # controls that are computed as the reference is
# ZeRO-2 is no kernel, and its engine shares no process with others.
KNOWN = (DIVIDED, WRONG_NAME, LONGER, *(name for name, variant in ABLATION.items() if variant.engine == "plain"))
SAMPLE = Path("recipes/sample.yaml")  # names the collections of the embedded sample
_STEPS = 1500
_TOY_STEPS, _TOY_RATE, _TOY_WARMUP = 200, 3e-3, 0.1  # past the plateau in seconds
_GRADIENTS = "gradients.json"
_FAILURES = "failures.json"
_TWICE = 2.0  # a variant's gradients may be so many times as far from float64 as the reference's


@dataclass(frozen=True)
class Experiment:
    """Which variants of KNOWN are compared with the reference, on what, and where the trainings are written.

    No training begins after `minutes`. On a CPU, `toy` computes every variant with the kernels that run there.
    """

    wanted: Wanted
    course: Course
    variants: tuple[str, ...]
    seeds: int
    results: Path
    folder: Path
    minutes: float
    toy: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The trainings of each seed, in this order, so that a call that is cut short leaves whole pairs."""
        return (REFERENCE_NAME, *self.variants)

    def variant(self, name: str) -> Variant:
        """The way of computing of this name."""
        controls = {WRONG_NAME: WRONG} | dict.fromkeys((REFERENCE_NAME, *_AS_REFERENCE), REFERENCE)
        found = controls.get(name) or ABLATION[name]
        if self.toy:
            return replace(found, compile=False, attention="auto", exact=True)
        # Where fused blocks do not run, `auto` would compare the reference's blocks with themselves.
        return replace(found, blocks="fused") if found.blocks == "auto" else found


def plan(
    variants: list[str],
    seeds: int,
    *,
    corpus: list[Path],
    recipe: Path,
    rate: float | None,
    steps: int | None,
    held_out: float,
    results: Path,
    folder: Path,
    minutes: float,
    toy: bool,
) -> Experiment:
    """The experiment for these options. Learning rate, share of warm-up and cleaning come from phase 1 of a recipe.

    Raises:
        RecipeError: the recipe is missing or holds something else.
        AzNeoBertError: nothing, or everything, would be held out.
    """
    from azneobert.bench.learning import Course
    from azneobert.bench.models import middling_model, small_model
    from azneobert.bench.prose import Wanted, sources_of
    from azneobert.recipe import load_recipe

    if not 0 < held_out < 1:
        raise AzNeoBertError(f"--held-out {held_out:g}: expected a share between 0 and 1, such as 0.1")
    chosen = load_recipe(recipe)
    sources = sources_of(corpus)
    model, length = (small_model(), 64) if toy else (middling_model(), 512)
    count = steps or (_TOY_STEPS if toy else _STEPS)
    phase = chosen.phase1
    warmup = _TOY_WARMUP if toy else phase.warmup_steps / phase.steps
    return Experiment(
        wanted=Wanted(
            sources=sources or dict(load_recipe(SAMPLE).data.files),
            cleaning=chosen.data.cleaning.model_copy(update={"validation_fraction": held_out}),
            vocab_size=model.vocab_size,
            sequence_length=length,
        ),
        course=Course(
            model=model,
            training=chosen.training,
            steps=count,
            rows=16 if toy else 32,
            warmup_steps=max(1, round(count * warmup)),
            rate=rate or (_TOY_RATE if toy else phase.peak_learning_rate),
            held_out_rows=64 if toy else 512,
        ),
        variants=tuple(variants),
        seeds=seeds,
        results=results,
        folder=folder,
        minutes=minutes,
        toy=toy,
    )


def course_of(experiment: Experiment, name: str) -> Course:
    """The course of the trainings of this name."""
    course = experiment.course
    return replace(course, steps=round(_MORE_STEPS * course.steps)) if name == LONGER else course


def division(name: str) -> int:
    """The number of micro-batches of a step."""
    return 2 if name == DIVIDED else 1


def bench_loss(experiment: Experiment) -> Iterator[Row]:
    """Train what the file of results lacks. Then yield a row for each variant and rows for the gradients.

    Raises:
        DataError: see `prepare`.
        AzNeoBertError: the file of results holds other trainings.
    """
    from azneobert.bench.prose import prepare

    until = time.time() + 60 * experiment.minutes
    if experiment.course.rows % 2:
        raise AzNeoBertError(
            f"global batch: {experiment.course.rows} rows cannot be divided in two; use an even number"
        )
    prose = prepare(experiment.wanted, experiment.folder)
    file = TrainingsFile(experiment.results, settings_of(experiment, prose.facts))
    file.read()  # reports errors in the file before the first training
    for left in (_GRADIENTS, _FAILURES):
        (experiment.folder / left).unlink(missing_ok=True)
    yield from _conditions(experiment, prose.facts, file)
    run_ranks(run_trainings, experiment, until, world=1)
    found = file.read()
    failures = read_json(experiment.folder / _FAILURES)
    yield from compared(experiment, found, prose.facts.unigram, failures)
    yield from _gradient_rows(experiment)


def settings_of(experiment: Experiment, facts: Facts) -> dict[str, Any]:
    """What decides a training's held-out loss, besides variant and seed: the text, the course, code and card."""
    course = asdict(experiment.course)
    model = {f"model.{key}": value for key, value in experiment.course.model.model_dump(mode="json").items()}
    training = experiment.course.training.model_dump(mode="json")
    training = {f"training.{key}": value for key, value in training.items() if key not in ("compute_dtype", "fp8")}
    rest = {key: value for key, value in course.items() if key not in ("model", "training")}
    libraries = {key: value for key, value in versions().items() if key not in ("python", "azneobert", "deepspeed")}
    return {
        "text": facts.identity,
        "sequence_length": experiment.wanted.sequence_length,
        **model,
        **training,
        **rest,
        "toy": experiment.toy,
        "card": card(),
        "code": code_sha256("azneobert/bench/learning.py")[:16],
        **libraries,
    }


def card() -> str:
    """What computes here."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def run_trainings(experiment: Experiment, until: float) -> None:
    """In a process of its own: train what is not done yet, until the time `until`; then compute the gradients.

    A variant that cannot run here is left out, and the folder says why.
    """
    import torch

    from azneobert.bench.learning import Judge, Learner
    from azneobert.bench.prose import Prose
    from azneobert.engine.gpu import prepare_gpu

    if torch.cuda.is_available():
        prepare_gpu()  # before the first tensor on the GPU, which is made outside an engine
    prose = Prose(experiment.folder)
    file = TrainingsFile(experiment.results, settings_of(experiment, prose.facts))
    done = {(one.variant, one.seed) for one in file.read()}
    judge = Judge(prose, experiment.course)
    learners: dict[str, Learner] = {}
    failures: dict[str, str] = {}
    trained = None

    def learner(name: str) -> Learner:
        if name not in learners:
            learners[name] = Learner(experiment.variant(name), course_of(experiment, name), division(name))
        return learners[name]

    for seed in range(1, experiment.seeds + 1):
        for name in experiment.names:
            if (name, seed) in done or name in failures or time.time() >= until:
                continue
            try:
                ending = learner(name).train(prose, seed, judge)
            except Exception as error:  # kernels raise what they like
                if name == REFERENCE_NAME:
                    raise
                failures[name] = _in_a_line(error)
                continue
            if name == REFERENCE_NAME:
                trained = ending.weights
            file.add(_done(experiment, file.settings, name, seed, ending))
            print(f"seed {seed}, {name}: held-out loss {ending.held_out_loss:.5f}, {ending.seconds:.1f} s", flush=True)
    if trained is None:  # an earlier call trained it; the weights of one seed are quickly made again
        trained = learner(REFERENCE_NAME).train(prose, 1, judge).weights
    errors = _gradient_errors(experiment, prose, trained, learner, failures)
    write_json(experiment.folder / _GRADIENTS, errors)
    write_json(experiment.folder / _FAILURES, failures)


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _done(experiment: Experiment, settings: dict[str, Any], name: str, seed: int, ending: Ending) -> Done:
    commit, dirty = git_state()
    return Done(
        variant=name,
        seed=seed,
        division=division(name),
        model=described(experiment.course),
        fingerprint=fingerprint(settings),
        settings=settings,
        commit=f"{commit[:10]}-dirty" if dirty else commit[:10],
        card=card(),
        kernels=ending.kernels,
        steps=course_of(experiment, name).steps,
        held_out_loss=ending.held_out_loss if isfinite(ending.held_out_loss) else None,
        seconds=round(ending.seconds, 2),
    )


def described(course: Course) -> str:
    """A model's size in words."""
    model = course.model
    return (
        f"{model.num_hidden_layers} layers of {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{model.vocab_size:,} tokens in the vocabulary"
    )


def compared(
    experiment: Experiment, found: list[Done], unigram: float, failures: dict[str, str] | None = None
) -> Iterator[Row]:
    """The plateau, then each variant against the reference, by pairs of one seed."""
    reference = {one.seed: one for one in found if one.variant == REFERENCE_NAME}
    losses = [one.held_out_loss for one in reference.values() if one.held_out_loss is not None]
    past = len(losses) == len(reference) and bool(losses) and max(losses) < unigram
    mean = f"{sum(losses) / len(losses):.4f} nats" if losses else "none"
    seconds = sum(one.seconds for one in reference.values()) / max(1, len(reference))
    yield Row(
        "reference: mean held-out loss",
        mean,
        f"every one < {unigram:.4f}, the unigram entropy",
        past,
        f"{len(reference)} seeds, {seconds:.1f} s each; "
        f"{', '.join(sorted({one.kernels for one in reference.values()})) or 'none has ended'}",
    )
    neutral = []
    for name in experiment.variants:
        trained = [one for one in found if one.variant == name and one.seed in reference]
        row = _verdict_row(name, experiment.variant(name).name, reference, trained, past, (failures or {}).get(name))
        if row.figure.startswith("neutral") and name not in _AS_REFERENCE:
            neutral.append(name)
        yield row
    yield Row(
        "what may be the default",
        ", ".join([REFERENCE_NAME, *neutral]),
        note="no variant that differs, and none on which the verdict is open",
    )


def _verdict_row(
    name: str, full_name: str, reference: dict[int, Done], trained: list[Done], past: bool, failure: str | None
) -> Row:
    controls = {
        DIVIDED: "control: reference, batches divided in two",
        WRONG_NAME: f"control: {full_name}",
        LONGER: f"control: reference, {_MORE_STEPS - 1:.0%} more steps",
    }
    what = controls.get(name, f"{name} ({full_name.removeprefix('+ ')})")
    bars = {WRONG_NAME: "differs: it is wrong", LONGER: ""}
    bar = bars.get(name, f"95% interval within +-{MARGIN}")
    if not trained:
        return Row(what, "inconclusive: no training", bar, None, failure or "no pair has ended; call again")
    if lost := [one.seed for one in trained if one.held_out_loss is None]:
        if past:
            found = f"seeds {', '.join(map(str, lost))}"
            return Row(what, "differs: no finite loss", bar, name == WRONG_NAME, found)
        return Row(what, "inconclusive: no finite loss", bar, None, "the reference is not past the plateau either")
    pairs = [
        one.held_out_loss - before
        for one in trained
        if one.held_out_loss is not None and (before := reference[one.seed].held_out_loss) is not None
    ]
    if not pairs:
        return Row(what, "inconclusive: no pair", bar, None, "the reference ended with no finite loss")
    apart = difference(pairs)
    verdict = apart.verdict if past else "inconclusive: not past the plateau"
    note = f"{apart.pairs} pairs, standard deviation {apart.deviation:.5f}; "
    note += f"could have seen {apart.detectable:.4f}, (t(0.975) + t(0.8)) s / sqrt(n) with n - 1 degrees of freedom; "
    if verdict == "inconclusive":
        more = apart.more_pairs()
        note += "too many more seeds are needed; " if more is None else f"about {more} seeds more would settle it; "
        if apart.pairs < 2:
            note = "a single pair has no interval: at least 2 are needed; "
    commits = sorted({one.commit for one in (*trained, *reference.values())})
    note += f"{', '.join(sorted({one.kernels for one in trained}))}; commit {', '.join(commits)}"
    figure = f"{verdict}: {apart.mean:+.5f} +- {apart.half_width:.5f} nats"
    met = None if not bar or verdict.startswith("inconclusive") else (verdict == "differs") == (name == WRONG_NAME)
    return Row(what, figure, bar, met, note)


def _conditions(experiment: Experiment, facts: Facts, file: TrainingsFile) -> Iterator[Row]:
    course = experiment.course
    tokens = course.steps * course.rows * experiment.wanted.sequence_length
    yield Row(
        "text",
        f"{facts.tokens['train']:,} tokens",
        note=f"{', '.join(experiment.wanted.sources)}; {facts.documents['train']:,} documents, and held out by hash "
        f"{facts.documents['validation']:,} with {facts.tokens['validation']:,} tokens, of which "
        f"{min(facts.rows['validation'], course.held_out_rows):,} rows are scored",
    )
    yield Row(
        "model and course",
        f"{course.steps:,} steps",
        note=f"{described(course)}; {course.rows} rows of {experiment.wanted.sequence_length}, "
        f"{tokens / facts.tokens['train']:.1f} times the text; rate {course.rate:g} after {course.warmup_steps} steps "
        f"of warm-up, then a cosine to 0; held-out loss by plain kernels, fp32; settings {fingerprint(file.settings)}",
    )


def _gradient_errors(
    experiment: Experiment,
    prose: Prose,
    trained: dict[str, torch.Tensor],
    learner: Callable[[str], Learner],
    failures: dict[str, str],
) -> dict[str, Any]:
    """How far gradients are from float64, by weights and variant; adds to the failures."""
    from azneobert.bench.gradients import Errors, exact_gradients, gradients
    from azneobert.bench.learning import initial_weights

    course = experiment.course
    batch = prose.stream(0, course.training.masking_rate).packed_batch(0, course.rows)
    errors: dict[str, Any] = {}
    for when, weights in {"initial": initial_weights(course.model, 1), "trained": trained}.items():
        exact = exact_gradients(course.model, weights, batch)
        errors[when] = {}
        for name in experiment.names:
            if name in (*_AS_REFERENCE, *failures):
                continue
            try:
                found = gradients(learner(name), experiment.variant(name), weights, batch)
            except Exception as error:  # as above
                failures[name] = _in_a_line(error)
            else:
                errors[when][name] = asdict(Errors.of(found, exact))
    return errors


def _gradient_rows(experiment: Experiment) -> Iterator[Row]:
    try:
        errors = read_json(experiment.folder / _GRADIENTS)
    except FileNotFoundError:
        raise TrainingError(
            f"{experiment.folder / _GRADIENTS}: not written; see the message of the trainings above"
        ) from None
    for when, by_name in errors.items():
        bound = _TWICE * by_name[REFERENCE_NAME]["worst"]
        for name, found in by_name.items():
            reference = name == REFERENCE_NAME
            yield Row(
                f"gradients against float64, {when} weights: {name}",
                f"worst {found['worst']:.1e}, median {found['median']:.1e}",
                "" if reference else f"worst <= {bound:.1e}, twice the reference's",
                None if reference else found["worst"] <= bound,
                f"relative, of {experiment.course.rows} rows; worst in {found['where']}",
            )
