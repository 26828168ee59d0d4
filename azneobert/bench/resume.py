"""`azneobert bench resume`: an interrupted run against the uninterrupted one, over engines, worlds and settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from azneobert.bench.ranks import run_ranks
from azneobert.bench.report import Row
from azneobert.bench.synthetic import open_small_corpus, write_small_corpus
from azneobert.checkpoint.universal import KINDS, Manifest, read_checkpoint, write_checkpoint
from azneobert.data.stream import SampleRange, micro_batch_loader
from azneobert.model.attention import choose_attention
from azneobert.model.encoder import build_model
from azneobert.recipe import EngineName, Model, Runtime, Training
from azneobert.training.engine import Engine, make_accelerator, make_engine
from azneobert.training.optim import learning_rate

STEPS, CUT = 30, 10
_ROWS, _ROW_LENGTH = 24, 128
_REORDERED = 1e-6


@dataclass(frozen=True)
class Setting:
    """What a world trains with; `accumulation` micro-batches make up the global batch."""

    engine: EngineName
    world: int
    accumulation: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A run that begins in one setting and is resumed in another; the reference stays in the first."""

    what: str
    before: Setting
    after: Setting

    @property
    def same(self) -> bool:
        """Whether nothing but the process changes, so that every bit must agree."""
        return self.before == self.after


def cases(worlds: tuple[int, ...]) -> Iterator[Case]:
    """All that these numbers of ranks allow."""
    settings: dict[str, dict[str, Any]] = {
        "": {},
        ", bf16 compute": {"compute_dtype": "bfloat16"},
        ", clipping at 0.01": {"clip_norm": 0.01},
        ", tied head": {"tie_embeddings": True},
        ", torch.compile": {"compile": True, "compute_dtype": "bfloat16"},
    }
    largest = max(world for world in worlds if world <= 2)
    engines: tuple[EngineName, ...] = ("plain", "zero2")
    for engine in engines:
        for world in sorted({1, largest}):
            for name, options in settings.items():
                if "compile" not in options or torch.cuda.is_available():  # minutes on a CPU, and a test has it
                    setting = Setting(engine, world, options=options)
                    yield Case(f"{engine} {world} -> {engine} {world}{name}", setting, setting)
            accumulated = Setting(engine, world, accumulation=3)
            yield Case(f"{engine} {world} -> {engine} {world}, 3 micro-steps", accumulated, accumulated)
    switches: tuple[tuple[EngineName, int, EngineName, int], ...] = (
        ("plain", 1, "zero2", 1),
        ("zero2", 1, "plain", 1),
        ("plain", 1, "zero2", 2),
        ("zero2", 2, "plain", 1),
        ("plain", 2, "zero2", 2),
        ("zero2", 2, "zero2", 1),
        ("zero2", 2, "zero2", 3),
        ("zero2", 2, "zero2", 4),
        ("zero2", 4, "zero2", 2),
    )
    for one, before, other, after in switches:
        if {before, after} <= set(worlds):
            yield Case(f"{one} {before} -> {other} {after}", Setting(one, before), Setting(other, after))


def bench_resume(worlds: tuple[int, ...]) -> Iterator[Row]:
    """Every row of the table, as it is measured."""
    for number, case in enumerate(cases(worlds)):
        with tempfile.TemporaryDirectory(prefix="azneobert-bench-") as name:
            scratch = Path(name)
            write_small_corpus(scratch, 2048, _ROW_LENGTH, documents=400, seed=number + 1)
            [whole, *_] = run_ranks(
                train_steps, scratch, case.before, 0, STEPS, world=case.before.world, scratch=scratch
            )
            run_ranks(train_steps, scratch, case.before, 0, CUT, world=case.before.world, scratch=scratch)
            [resumed, *_] = run_ranks(
                train_steps, scratch, case.after, CUT, STEPS, world=case.after.world, scratch=scratch
            )
        yield _row(case, whole, resumed)


def _row(case: Case, whole: dict[str, Any], resumed: dict[str, Any]) -> Row:
    expected = whole["losses"][CUT:]
    differences = [abs(a - b) for a, b in zip(expected, resumed["losses"], strict=True)]
    weights = max(float((whole["state"][k] - resumed["state"][k]).abs().max()) for k in whole["state"])
    identical = differences == [0.0] * len(differences) and all(
        torch.equal(whole["state"][name], resumed["state"][name]) for name in whole["state"]
    )
    figure = "identical" if identical else f"{max(differences):.1e}"
    met = identical if case.same else differences[0] <= _REORDERED and max(differences) <= _REORDERED
    return Row(
        case.what,
        figure,
        "identical" if case.same else "<= 1e-6",
        met,
        f"first loss {'equal' if differences[0] == 0 else f'differs by {differences[0]:.1e}'}; "
        f"weights and moments differ by {weights:.1e} at most after {STEPS - CUT} steps",
    )


def train_steps(scratch: Path, setting: Setting, first: int, last: int) -> dict[str, Any]:
    """Train from one step to another, from the checkpoint in `scratch` unless at the beginning; losses and state."""
    engine = build_engine(setting)
    if first:
        engine.scatter(read_checkpoint(scratch / "checkpoint")[0])
    micro_batch = _ROWS // setting.world // setting.accumulation
    samples = SampleRange(first * _ROWS, first, last, _ROWS, micro_batch, setting.accumulation, engine.world.rank)
    batches = micro_batch_loader(open_small_corpus(scratch), samples, workers=0, pin_memory=False)
    losses = []
    for step in range(first, last):
        loss, _ = engine.step(batches, learning_rate(step, 5, STEPS, 2e-3))
        losses.append(loss.item())
    state = engine.gather()
    if state is None:
        return {}
    if last == CUT:
        (scratch / "checkpoint").mkdir()
        write_checkpoint(scratch / "checkpoint", state, bare_manifest(last), None)
    tensors = {f"{kind}.{name}": tensor for kind in KINDS for name, tensor in getattr(state, kind).items()}
    return {"losses": losses, "state": tensors}


def build_engine(setting: Setting) -> Engine:
    """A model of two layers in the world that the environment names."""
    accelerator = make_accelerator(setting.engine)
    options = setting.options
    compute_dtype = options.get("compute_dtype", "float32")
    config = small_model(tie_embeddings=options.get("tie_embeddings", False))
    dtype = getattr(torch, compute_dtype)
    model = build_model(config, 1, dtype, choose_attention("auto", accelerator.device, dtype)[1])
    training = some_training(compute_dtype=compute_dtype, clip_norm=options.get("clip_norm", 1.0))
    micro_batch = _ROWS // setting.world // setting.accumulation
    runtime = some_runtime(setting.engine, compile_model=options.get("compile", False))
    return make_engine(model, training, runtime, accelerator, micro_batch, setting.accumulation)


def small_model(tie_embeddings: bool = False) -> Model:
    """A NeoBERT of two layers and 0.9 M parameters."""
    return Model(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        vocab_size=2048,
        max_position_embeddings=128,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        tie_embeddings=tie_embeddings,
    )


def some_training(compute_dtype: Any = "float32", clip_norm: float = 1.0) -> Training:
    """The published run's numbers."""
    return Training(
        masking_rate=0.2,
        adam_betas=(0.9, 0.95),
        adam_eps=1e-8,
        weight_decay=0.01,
        clip_norm=clip_norm,
        compute_dtype=compute_dtype,
    )


def some_runtime(engine: EngineName, compile_model: bool = False) -> Runtime:
    """What an engine asks of a runtime; the rest is the loop's, which a benchmark has none of."""
    return Runtime(
        engine=engine,
        processes=1,
        max_micro_batch=1,
        attention="auto",
        compile=compile_model,
        workers=0,
        log_every=1,
        checkpoint_every=1,
        keep_checkpoints=1,
    )


def bare_manifest(step: int) -> Manifest:
    """A manifest that says no more than the step."""
    return Manifest("bench", step, 0, 0, "bench", {}, {}, {}, {}, {})
