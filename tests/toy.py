"""A recipe, a corpus and a model small enough that a whole phase takes a second; and ranks to train them on.

Accelerate keeps its state in a singleton, and torch cannot fork once a backward pass has run. So every training runs
in a fresh child of a fork server, which has imported the slow modules and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stores import write_store

from azneobert.checkpoint.manifest import Manifest, Segment
from azneobert.checkpoint.rotation import CheckpointFolder
from azneobert.checkpoint.universal import TrainState, read_checkpoint
from azneobert.data.rows import plan_rows, write_plan
from azneobert.data.store import TokenStore
from azneobert.data.tokenizer import tokenizer_sha256, train_tokenizer
from azneobert.layout import RunFolder
from azneobert.model.encoder import MaskedLM, build_model
from azneobert.recipe import Model, PhaseName, Recipe, load_recipe
from azneobert.tracking.points import read_points
from azneobert.training import run as run_module
from azneobert.training.folder import prepare_folder
from azneobert.training.inputs import Inputs
from azneobert.training.report import publish
from azneobert.training.run import pretrain
from azneobert.training.stopping import StopRequest

ROOT = Path(__file__).parents[1]
STEPS = 10
LENGTHS = (32, 64)
_DOCUMENTS = 8  # of each collection: so few rows that every run crosses the end of an epoch
_HELD_OUT = ("wikipedia", "news", "folklor")
# A run that only a request can end: before that it saves nothing and evaluates nothing.
ENDLESS = {"phase1": {"steps": 5000}, "runtime": {"checkpoint_every": 5000}, "evaluation": {"every": 5000}}

_servers = multiprocessing.get_context("forkserver")
_servers.set_forkserver_preload(
    [
        "azneobert.training.run",
        "azneobert.engine.plain",
        "azneobert.engine.zero2",
        "mlflow",
        "mlflow.store.db.utils",
        "mlflow.store.tracking.sqlalchemy_store",
        "torch.distributed.tensor",  # what Accelerate and torch's optimizers import when they are first used
        "torch._dynamo",
        "transformers.models.eurobert.modeling_eurobert",
        "deepspeed",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # compiles on import, and so imports torch._inductor
    ]
)

Overrides = dict[str, Any]


def toy_recipe(overrides: Overrides | None = None) -> Recipe:
    """The sample recipe at toy size; `overrides` is merged into it block by block."""
    sample = load_recipe(ROOT / "recipes" / "sample.yaml").model_dump()
    toy = {
        "name": "toy",
        "tokenizer": {"vocab_size": 300},
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 300,
            "max_position_embeddings": 64,
        },
        "training": {"compute_dtype": "float32", "masking_rate": 0.2, "weight_decay": 0.01, "clip_norm": 1.0},
        "phase1": {
            "sequence_length": 32,
            "global_batch": 8,
            "steps": STEPS,
            "warmup_steps": 3,
            "peak_learning_rate": 2e-3,
        },
        "phase2": {
            "sequence_length": 64,
            "global_batch": 4,
            "steps": 4,
            "warmup_steps": 1,
            "peak_learning_rate": 5e-4,
            "mixture": None,
            "carry": {"moments": True, "schedule": False, "position": False},
        },
        "runtime": {
            "engine": "plain",
            "processes": 1,
            "max_micro_batch": 8,
            "attention": "auto",
            "blocks": "auto",
            "compile": False,
            "deterministic": True,
            "workers": 0,
            "log_every": 1,
            "checkpoint_every": 3,
            "keep_checkpoints": 2,
        },
        "evaluation": {"every": 4, "max_rows_per_collection": 4},
        "tracking": {"experiment": "toy", "wandb": "off"},
        "registry": {"name": "toybert", "with_moments": True},
        "finetuning": {"max_length": 32, "batch_size": 4, "epochs": 1},
    }
    return Recipe.model_validate(merged(merged(sample, toy), overrides or {}))


def merged(base: Overrides, changes: Overrides) -> Overrides:
    """A nested dictionary with some of its leaves replaced."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return result


def write_corpus(folder: Path, recipe: Recipe, seed: int = 7) -> None:
    """A tokenizer, a token store of each collection, and a row plan for each length, as the stages would leave them."""
    words = random.Random(seed)
    tokenizer = train_tokenizer(iter([_texts(words, 200)]), "bpe", recipe.model.vocab_size, lowercase=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    stores: dict[str, dict[str, TokenStore]] = {"train": {}, "validation": {}}
    for name in recipe.data.sources:
        for side, count in (("train", _DOCUMENTS), ("validation", 5 if name in _HELD_OUT else 0)):
            documents = [tokenizer.encode(text, add_special_tokens=False).ids for text in _texts(words, count)]
            place = folder / "tokens" / name / side
            write_store(
                place,
                documents,
                vocab_size=recipe.model.vocab_size,
                tokenizer_sha256=tokenizer_sha256(path),
                source_md5=f"{seed}-{name}",
            )
            stores[side][name] = TokenStore.open(place)
    for length in LENGTHS:
        write_plan(plan_rows(stores["train"], length, recipe.seed), folder / "rows" / str(length) / "train")
        for name in _HELD_OUT:
            plan = plan_rows({name: stores["validation"][name]}, length, recipe.seed)
            write_plan(plan, folder / "rows" / str(length) / "validation" / name)


def _texts(words: random.Random, count: int) -> list[str]:
    syllables = (
        "ba",
        "kı",
        "şə",
        "hər",
        "gö",
        "zəl",
        "çay",
        "dır",
        "lər",
        "üz",
        "ölkə",
        "miz",
        "ağ",
        "ev",
        "su",
        "dağ",
    )
    return [
        " ".join("".join(words.choices(syllables, k=words.randint(1, 3))) for _ in range(words.choice((2, 5, 9, 25))))
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Toy:
    """A corpus and a training folder of one's own. `with_` gives the same folder with other settings."""

    corpus: Path
    folder: Path
    recipe: Recipe

    def with_(self, overrides: Overrides | None = None, *, corpus: Path | None = None) -> Toy:
        """The same folder with some settings, or the data, changed."""
        changed = Recipe.model_validate(merged(self.recipe.model_dump(), overrides or {}))
        return replace(self, recipe=changed, corpus=corpus or self.corpus)

    def run(self, phase: PhaseName = "phase1") -> RunFolder:
        """A phase in progress."""
        return RunFolder(self.folder / "running" / phase)

    def inputs(self, phase: PhaseName = "phase1", code: str = "toy") -> Inputs:
        """What `pretrain` takes; `code` passes for the hash of the code that trains."""
        settings = self.recipe.phase(phase)
        before = f"start/{phase}" if settings.version else settings.start_from
        return Inputs(
            recipe=self.recipe,
            phase=phase,
            tokens=self.corpus / "tokens",
            rows=self.corpus / "rows" / str(self.recipe.phase(phase).sequence_length),
            tokenizer=self.corpus / "tokenizer.json",
            run=self.run(phase),
            start=self.folder / before if before else None,
            provenance={"git_commit": "toy", "git_dirty": False, "code_sha256": code, "versions": {}},
        )

    def train(self, phase: PhaseName = "phase1", *, processes: int = 1, **options: Any) -> bool:
        """Start a phase, or go on with it, as the launcher does. Returns whether it is complete."""
        inputs = self.inputs(phase)
        inputs.run.stop_file.unlink(missing_ok=True)
        complete = run_ranks(train_rank, inputs, *options.items(), processes=processes, folder=self.folder)[0]
        if complete is True:  # not the number of a signal
            publish(inputs.run, self.folder / phase)
        return complete

    def losses(self, phase: PhaseName = "phase1", key: str = "train/loss") -> dict[int, float]:
        """The recorded values of a key by step."""
        points = read_points(self.run(phase).tracking)
        return {point["step"]: point["values"][key] for point in points if key in point["values"]}

    def checkpoints(self, phase: PhaseName = "phase1") -> CheckpointFolder:
        """The checkpoints of a phase."""
        return CheckpointFolder(self.run(phase).checkpoints, 9)

    def result(self, phase: PhaseName = "phase1") -> tuple[TrainState, Manifest]:
        """The newest checkpoint."""
        newest = self.checkpoints(phase).latest()
        assert newest is not None
        return read_checkpoint(newest[0])

    def wait_for_points(self, child: Any, count: int, phase: PhaseName = "phase1") -> None:
        """Wait until a training child has recorded `count` points."""
        points = self.run(phase).tracking / "points.jsonl"
        deadline = time.monotonic() + 60
        while not (points.exists() and points.read_text().count("\n") >= count):
            assert time.monotonic() < deadline, "no progress"
            assert child.is_alive(), "the child has ended"
            time.sleep(0.02)

    def take_phase1(self, other: Toy) -> None:
        """Take over another run's phase 1."""
        for part in ("phase1", "running/phase1"):
            shutil.copytree(other.folder / part, self.folder / part)

    def copy_to(self, folder: Path) -> Toy:
        """The same run in another folder, to go on with it in another way; MLflow stays where it is."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)


class Hooked(StopRequest):
    """A stop request that comes by itself after some steps of this process: a stop file, SIGTERM or SIGKILL."""

    stop_after: int | None = None
    term_after: int | None = None
    kill_after: int | None = None
    steps = 0

    def agreed(self, alarm: bool = False) -> tuple[bool, bool]:
        """Like the real method; the stop file may just have appeared."""
        self.steps += 1
        if self.steps == self.kill_after:
            for writer in [thread for thread in threading.enumerate() if thread.name == "checkpoint"]:
                writer.join()  # another test covers a kill while the writer works
            os.kill(os.getpid(), signal.SIGKILL)
        if self.steps == self.term_after:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.steps == self.stop_after:
            self._stop_file.touch()
        return super().agreed(alarm)


def train_rank(inputs: Inputs, *options: tuple[str, Any]) -> bool:
    """What one rank does; the options are those of `Hooked`, `only_rank` and `accept_changed`."""
    chosen = dict(options)
    accept_changed = chosen.pop("accept_changed", ())
    if int(os.environ.get("RANK", "0")) == chosen.pop("only_rank", 0):
        for name, value in chosen.items():
            setattr(Hooked, name, value)
    run_module.StopRequest = Hooked
    return pretrain(inputs, accept_changed)


def prepare(toy: Toy, phase: PhaseName = "phase1", code: str = "toy") -> bool:
    """`prepare_folder` for a toy run."""
    return prepare_folder(toy.inputs(phase, code))


def run_ranks(function: Callable[..., Any], *arguments: Any, processes: int = 1, folder: Path) -> list[Any]:
    """The results of a function that runs as `processes` gloo ranks. The first error of a rank is raised here too.

    A child must be able to import the function. A killed rank gives the negative number of the signal.
    """
    children = start_ranks(function, *arguments, processes=processes, folder=folder)
    outcomes = [outcome(child, connection) for child, connection in children]
    for result in outcomes:
        if isinstance(result, BaseException):
            raise result
    return outcomes


def start_ranks(
    function: Callable[..., Any], *arguments: Any, processes: int = 1, folder: Path
) -> list[tuple[Any, Any]]:
    """Start ranks without waiting. Returns each child process with the connection that will bring its result."""
    port = str(_free_port())
    children = []
    for rank in range(processes):
        environment = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(processes)}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ours, theirs = _servers.Pipe(duplex=False)
        child = _servers.Process(target=_rank_main, args=(theirs, environment, folder, function, arguments))
        child.start()
        theirs.close()
        children.append((child, ours))
    return children


def _rank_main(connection: Any, environment: dict[str, str], folder: Path, function: Any, arguments: Any) -> None:
    os.environ.update(environment)
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # a fork server's children inherit its method, for data loaders
    try:
        result = function(*arguments)
    except BaseException as error:
        traceback.print_exc()
        result = error
    connection.send_bytes(
        pickle.dumps(result)
    )  # `send` would pass tensors on by shared memory, which ends with the child


def run_command(arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the `azneobert` command, without the seconds of its imports."""
    with tempfile.TemporaryDirectory() as scratch:
        child = _servers.Process(target=_command_main, args=(arguments, folder, Path(scratch)))
        child.start()
        child.join(120)
        assert child.exitcode is not None, f"{arguments} does not end"
        return child.exitcode, Path(scratch, "1").read_text(), Path(scratch, "2").read_text()


def _command_main(arguments: list[str], folder: Path, scratch: Path) -> None:
    for number in (1, 2):
        os.dup2(os.open(scratch / str(number), os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sys.argv = ["azneobert", *arguments]
    from azneobert.cli import main

    main()  # multiprocessing ends a child as the interpreter does, on SystemExit and on exceptions


def outcome(child: Any, connection: Any) -> Any:
    """What a child of `start_ranks` returned or raised; for a killed child, minus the signal's number."""
    try:
        result = pickle.loads(connection.recv_bytes())
    except EOFError:
        result = None
    child.join(60)
    return child.exitcode if result is None and child.exitcode else result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def equal_states(one: TrainState, other: TrainState) -> bool:
    """Whether weights and both moments agree to the last bit."""
    return one.optimizer_step == other.optimizer_step and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in (
            (one.weights, other.weights),
            (one.exp_avg, other.exp_avg),
            (one.exp_avg_sq, other.exp_avg_sq),
        )
    )


def largest_difference(one: TrainState, other: TrainState) -> float:
    """The largest difference between two models' weights."""
    return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)


def lively(config: Model, seed: int = 0) -> MaskedLM:
    """A model in which every weight, also in the norms, is far enough from its initial value to show a mistake."""
    model = build_model(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.15
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def packed(documents: list[torch.Tensor], row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Documents end to end: ids, positions that restart in each, where each begins, and the longest length allowed."""
    sizes = [len(document) for document in documents]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    return torch.cat(documents), torch.cat([torch.arange(n) for n in sizes]), starts.int(), row


def random_ids(count: int, seed: int, vocab_size: int = 300) -> torch.Tensor:
    return torch.randint(5, vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class CheckpointMaker:
    """Small checkpoints with tied embeddings, without a training."""

    tokenizer: Path

    def state(self) -> TrainState:
        """The same tensors each time."""
        generator = torch.Generator().manual_seed(1)
        names = {"encoder.embedding.weight": (30, 8), "encoder.final_norm.weight": (8,)}
        one, two, three = (
            {name: torch.randn(shape, generator=generator) for name, shape in names.items()} for _ in range(3)
        )
        return TrainState(
            weights=one,
            exp_avg=two,
            exp_avg_sq={name: tensor.square() for name, tensor in three.items()},
            optimizer_step=7,
            groups=[{"names": list(names), "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01}],
            tied={"head.weight": "encoder.embedding.weight"},
            buffers={
                "running_mean": torch.tensor([1.0, 2.5]),
                "counter": torch.tensor(2**53 + 1),
            },  # no float can hold the second number
        )

    def manifest(self, step: int) -> Manifest:
        """A manifest whose every block holds something."""
        return Manifest(
            recipe_name="toy",
            phase="phase1",
            step=step,
            samples=8 * step,
            tokens=256 * step,
            recipe={"seed": 1337},
            identity={"seed": 1337, "model": {"hidden_size": 8}},
            lineage={"mlflow_run_id": "f00", "started_from": None},
            segments=(Segment(0, "abc", code_sha256="def"),),
            schedule={"offset": 0, "steps": 10},
            stream={"seed": 1337, "first_sample": 0, "sample_index": 8 * step},
        )

    def publish(self, folder: CheckpointFolder, step: int) -> Path:
        """Write one into a folder."""
        return folder.publish(self.state(), self.manifest(step), self.tokenizer)
