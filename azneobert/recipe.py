"""A recipe, read into frozen and strict models: an unknown key or an absurd value is an error with its path.

params.yaml is the recipe that runs; recipes/ holds the others (recipe_files.py).
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from azneobert.errors import RecipeError
from azneobert.files import sha256_of_json
from azneobert.language import Language, LanguageName, ScriptName, name_or_block
from azneobert.printable import without_secrets
from azneobert.settings import Below1, Block, Length, Name, Positive, Text, as_tuple, first_error, refuse_key, shown
from azneobert.task_settings import Finetuning
from azneobert.yaml_files import read_yaml

PARAMS = Path("params.yaml")

PhaseName = Literal["phase1", "phase2"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
EngineName = Literal["plain", "zero2"]
WandbMode = Literal["off", "offline", "online"]


class _Fields(Block):
    """Where a record's text and id stand: a name, or a dotted path into nested records."""

    text_field: Text = "text"
    id_field: Text | None = "id"  # without one a document is named by its file and line


class FileSource(_Fields):
    """A collection of local files: one file or a folder of them. `sample_by` says what a document is in plain text."""

    path: Text
    sample_by: Literal["document", "paragraph", "line"] = "document"

    @model_validator(mode="before")
    @classmethod
    def _is_of_files(cls, data: Any) -> Any:
        return refuse_key(data, "dataset", "data.hub", "path")

    @property
    def name(self) -> str:
        """What to call the source in a message."""
        return self.path


class HubSource(_Fields):
    """A collection streamed from the Hugging Face hub, or from files behind URLs."""

    dataset: Text  # also json, csv, text or parquet, which read the files or URLs of `data_files`
    config: Text | None = None
    split: Text = "train"
    data_files: Annotated[Text | tuple[Text, ...] | None, BeforeValidator(as_tuple)] = None
    options: dict[str, Any] = Field(default_factory=dict)  # of the `datasets` library's reader, such as `delimiter`
    revision: str = ""  # a commit of the hub

    @model_validator(mode="before")
    @classmethod
    def _is_of_the_hub(cls, data: Any) -> Any:
        return refuse_key(data, "path", "data.files", "dataset")

    @property
    def name(self) -> str:
        """What to call the source in a message."""
        files = (self.data_files,) if isinstance(self.data_files, str) else self.data_files or ()
        return " ".join(filter(None, (self.dataset, self.config, *files[:1])))


Source = FileSource | HubSource


class Cleaning(Block):
    """How texts are cleaned, and which texts stay: data/cleaning.py.

    Findings are always counted and shown; only with `drop` (or `strip`) do they change anything.
    """

    min_words: Positive
    language: Annotated[LanguageName | Language, BeforeValidator(name_or_block)] = "azeri_latin"
    max_malformed: Below1  # the share of a source's records that may be unreadable; more than that is a broken source
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    html: Literal["report", "strip", "drop"] = "report"  # strip takes tags away and keeps the text between them
    repeated_lines: Literal["report", "drop"] = "report"  # drop takes a line's copies beyond the `line_copies`-th away
    line_copies: Positive = 100  # a line in more documents of a collection than this is boilerplate
    scripts: Annotated[tuple[ScriptName, ...], BeforeValidator(as_tuple)] = ()  # the ones that texts may be in; () all

    @model_validator(mode="before")
    @classmethod
    def _former_thresholds(cls, data: Any) -> Any:
        if isinstance(data, dict) and (former := [key for key in ("min_latin", "min_schwa") if key in data]):
            raise ValueError(f"{former[0]}: is part of the language now; use `language: azeri_latin`, or a block")
        return data


class Data(Block):
    """The collections, and how they are cleaned.

    `files` are local, `hub` is streamed, and `order` names them all: a text that stands in two collections is kept in
    the one that comes first. DVC sees the order of a list, and not that of a mapping.
    """

    files: dict[Name, FileSource]
    hub: dict[Name, HubSource]
    order: Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
    cleaning: Cleaning

    @property
    def sources(self) -> dict[str, Source]:
        """Every collection's source, in the order of `order`."""
        return {name: self.files[name] if name in self.files else self.hub[name] for name in self.order}

    @model_validator(mode="after")
    def _names_and_order_fit(self) -> Data:
        names = [*self.files, *self.hub]
        if not names:
            raise ValueError("no collection; expected one at least under files (local) or hub (streamed)")
        if both := sorted(self.files.keys() & self.hub.keys()):
            raise ValueError(f"{both[0]} stands under files and under hub; use two names")
        counts = Counter(self.order)
        problems = [f"{name} is missing" for name in names if name not in counts]
        problems += [f"{shown(name)} is unknown" for name in counts if name not in names]
        problems += [f"{name} stands {count} times" for name, count in counts.items() if count > 1]
        if problems:
            raise ValueError(f"order: {', '.join(problems)}; expected each name of files and hub once")
        return self

    @model_validator(mode="after")
    def _each_file_is_read_once(self) -> Data:
        places = {name: PurePath(os.path.normpath(source.path)) for name, source in self.files.items()}
        for (one, here), (other, there) in itertools.permutations(places.items(), 2):
            if there == here or here in there.parents:
                how = "have one path" if there == here else "lie one in the other"
                raise ValueError(
                    f"files: {one} ({here}) and {other} ({there}) {how}; expected each file in one collection"
                )
        return self


class TrainedTokenizer(Block):
    """How a tokenizer is trained. `max_characters` bounds what it sees, a sample of all collections by hash."""

    lowercase: bool = False
    max_characters: int = Field(default=2_000_000_000, gt=0, le=1_000_000_000_000)


class ImportedTokenizer(Block):
    """A tokenizer.json, taken unchanged."""

    path: Text


class Tokenizer(Block):
    """A tokenizer: `trained` on the documents, by one of three algorithms, or `imported`; exactly one entry in all.

    Both are mappings, since DVC makes a stage of each entry, which depends on the file if there is one. `compare`
    names more tokenizers (a tokenizer.json each) for the table of fertility.
    """

    vocab_size: int = Field(gt=0, le=1 << 24)
    trained: dict[Literal["wordpiece", "bpe", "unigram"], TrainedTokenizer]
    imported: dict[Name, ImportedTokenizer]
    compare: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> Tokenizer:
        found = [*self.trained, *self.imported]
        if len(found) != 1:
            raise ValueError(
                f"{' and '.join(found) or 'nothing'} under trained and imported; expected one entry, "
                "as in trained: {bpe: {lowercase: false}}, and the other {}"
            )
        if "unigram" in self.trained and self.vocab_size < 512:
            raise ValueError(
                f"vocab_size {self.vocab_size}: unigram spells 256 bytes beside its pieces; use 512 or more"
            )
        return self


class Model(Block):
    """NeoBERT's architecture; `intermediate_size` is before the 2/3 rule of SwiGLU."""

    hidden_size: int = Field(gt=0, le=1 << 16)
    num_hidden_layers: int = Field(gt=0, le=1000)
    num_attention_heads: int = Field(gt=0, le=1024)
    intermediate_size: int = Field(gt=0, le=1 << 18)
    vocab_size: int = Field(gt=0, le=1 << 24)
    max_position_embeddings: Length
    rope_theta: Annotated[float, Field(gt=1, le=1e9)]
    rms_norm_eps: float = Field(gt=0, le=0.1)
    initializer_range: float = Field(gt=0, le=1)
    tie_embeddings: bool

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.num_attention_heads} heads is not an even head size; "
                f"use {2 * self.num_attention_heads * max(1, self.hidden_size // (2 * self.num_attention_heads))}"
            )
        return self


class Training(Block):
    """Training settings that both phases share: masking, AdamW, clipping and dtype. They decide what a run computes.

    With `fp8`, three of a block's twelve matrix products take 8-bit operands. It needs a Hopper GPU and bfloat16:
    docs/speed.md says what it gains and what it costs.
    """

    masking_rate: Annotated[float, Field(gt=0, le=0.5)]
    adam_betas: tuple[Below1, Below1]
    adam_eps: float = Field(gt=0, le=0.1)
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    clip_norm: float = Field(gt=0, le=1e9)  # the largest value means no clipping
    compute_dtype: Literal["float32", "bfloat16"]
    fp8: bool = False

    @model_validator(mode="after")
    def _bfloat16_beside_fp8(self) -> Training:
        if self.fp8 and self.compute_dtype != "bfloat16":
            raise ValueError(f"fp8: true needs compute_dtype: bfloat16, found {self.compute_dtype}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("adam_betas"), list):
            return {**data, "adam_betas": tuple(data["adam_betas"])}
        return data


class Carry(Block):
    """What a phase takes over, beside the weights, from the checkpoint that it starts from."""

    moments: bool
    schedule: bool
    position: bool


class MixturePart(Block):
    """A part of the rows: made of documents of at least `min_tokens`, and this share of all samples."""

    min_tokens: Annotated[int, Field(ge=0, le=1_000_000_000)]
    share: Annotated[float, Field(gt=0, le=1)]


class Phase(Block):
    """One phase of pretraining: linear warm-up to the peak, then a cosine to zero at the last step.

    `start_from` is the phase before, or a registered version by its URI, whose tokenizer the recipe then imports.
    `mixture` draws rows by the length of their documents; without it, or with an empty one, every document is used
    once an epoch.
    """

    sequence_length: Annotated[int, Field(ge=8, le=1 << 20)]
    global_batch: int = Field(gt=0, le=10_000_000)
    steps: Positive
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)]
    # It only has to be finite: the guards of the training find out whether a rate is too high.
    peak_learning_rate: Annotated[float, Field(gt=0)]
    start_from: Annotated[str, Field(pattern=r"^(phase1|models:/[^/@\s]+(@[^/@\s]+|/[0-9]+))$")] | None = None
    carry: Carry | None = None
    mixture: Annotated[tuple[MixturePart, ...] | None, BeforeValidator(lambda value: as_tuple(value) or None)] = None

    @model_validator(mode="after")
    def _consistent(self) -> Phase:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves nothing of {self.steps} steps; use fewer")
        if (self.start_from is None) != (self.carry is None):
            raise ValueError(
                "`start_from` and `carry` go together; use both (what it starts from, what is kept), or neither"
            )
        shares = [part.share for part in self.mixture or ()]
        if shares and (abs(sum(shares) - 1) > 1e-9 or any(abs(100 * s - round(100 * s)) > 1e-9 for s in shares)):
            raise ValueError(f"mixture: shares {shares}; expected whole percents that sum to 1")
        if len({part.min_tokens for part in self.mixture or ()}) < len(shares):
            raise ValueError("mixture: two parts have the same min_tokens; use one with the sum of their shares")
        return self

    @property
    def version(self) -> str | None:
        """The URI of the registered version that the phase starts from."""
        return self.start_from if self.start_from != "phase1" else None

    @property
    def pools(self) -> tuple[tuple[int, float], ...]:
        """The mixture as pairs of the tokens a document has at least, and the share of samples."""
        return tuple((part.min_tokens, part.share) for part in self.mixture or (MixturePart(min_tokens=0, share=1.0),))


_MOST_ROWS = 1 << 20  # of a micro-batch


def _rows_or_auto(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 0 < value <= _MOST_ROWS):
        return value
    raise ValueError(f"expected a number of rows from 1 to {_MOST_ROWS:,}, or auto, found {shown(value)}")


class Runtime(Block):
    """How a run is carried out. Nothing here changes what is computed, so a resumed run may differ in it.

    `max_micro_batch` is in rows; with `auto` the run finds the largest that fits: training/micro_batch.py.

    `changed_code` decides whether a finished run whose code has changed since is trained anew, or kept.
    After `stall_seconds` without a step the run leaves the stacks of its ranks, and ends to be started again.
    """

    engine: EngineName
    processes: int = Field(gt=0, le=1 << 16)
    max_micro_batch: Annotated[int | Literal["auto"], BeforeValidator(_rows_or_auto)]
    attention: Literal["auto", "fa4", "fa3", "fa2", "reference"]
    blocks: Literal["auto", "fused", "torch"]
    compile: bool
    deterministic: bool  # every sum in one order: a resumed run is the uninterrupted one to the last bit, on a GPU too
    workers: Annotated[int, Field(ge=0, le=1024)]
    log_every: Positive
    checkpoint_every: Positive
    keep_checkpoints: int = Field(gt=0, le=1_000_000)
    keep_every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0  # checkpoints at its multiples stay for ever; 0: none
    changed_code: Literal["retrain", "keep"] = "keep"
    stall_seconds: Annotated[int, Field(ge=1, le=10**6)] = 600


class Guards(Block):
    """What is done when a number goes wrong. On a run where none does, nothing here changes what is computed.

    An update that is not finite is never made; `stop_after` of them in a row stop the run. A spike is a step whose loss
    or gradient norm is `spike_score` robust standard deviations above the median of the last `spike_window` steps; it
    is flagged, or its update is skipped, or the run is rewound to its last checkpoint and leaves out the samples since
    then, at most `rewinds` times in all. Every `repeat_every` steps a micro-batch is computed twice and the bits are
    compared, which finds a device that computes wrong silently; 0 means never.
    """

    stop_after: Positive = 10
    on_spike: Literal["flag", "skip", "rewind"] = "flag"
    spike_score: Annotated[float, Field(gt=1, le=1e6)] = 10.0
    spike_window: Annotated[int, Field(ge=8, le=10_000)] = 128
    rewinds: Annotated[int, Field(ge=0, le=1000)] = 5
    repeat_every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 200


class Evaluation(Block):
    """Held-out loss: how often while training, and on how many rows of each collection at most."""

    every: Positive
    max_rows_per_collection: Positive


def _without_password(uri: str) -> str:
    if without_secrets(uri) != uri:
        raise ValueError(
            "holds a password, and recipes are in git and in every checkpoint; use MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
        )
    return uri


class Tracking(Block):
    """Where runs are recorded. The environment's MLFLOW_TRACKING_URI takes precedence over `mlflow_uri`."""

    mlflow_uri: Annotated[Text, AfterValidator(_without_password)]
    experiment: Text
    wandb: WandbMode
    wandb_project: Text = "azneobert"


MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a registered model


class Registry(Block):
    """The registered model, whether its versions hold the optimizer's moments, and under which licence they stand."""

    name: Annotated[str, Field(pattern=MODEL_NAME)]
    with_moments: bool
    license: Text | None = (
        None  # as the hub names it: an identifier of SPDX such as apache-2.0, or a word such as other
    )


class Recipe(Block):
    """Everything that a stage may depend on. Its outputs, its stages and its runs are named after `name`."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    data: Data
    tokenizer: Tokenizer
    model: Model
    training: Training
    phase1: Phase
    phase2: Phase
    runtime: Runtime
    guards: Guards = Guards()
    evaluation: Evaluation
    tracking: Tracking
    registry: Registry
    finetuning: Finetuning

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.tokenizer.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size {self.tokenizer.vocab_size} and model.vocab_size "
                f"{self.model.vocab_size} differ; use the same number in both"
            )
        limit = self.model.max_position_embeddings
        for name in PHASES:
            phase = self.phase(name)
            if phase.sequence_length > limit:
                raise ValueError(
                    f"{name}.sequence_length {phase.sequence_length} exceeds model.max_position_embeddings {limit}; "
                    f"use {limit} or less"
                )
            check_division(phase.global_batch, self.runtime.processes, f"{name}.")
        for key, slower in (("blocks", "torch"), ("attention", "reference")):
            if self.training.fp8 and getattr(self.runtime, key) == slower:
                raise ValueError(f"training.fp8: true needs fused blocks, found runtime.{key}: {slower}; use auto")
        if self.guards.repeat_every and not self.runtime.deterministic:
            raise ValueError(
                "guards.repeat_every compares bits, which needs runtime.deterministic: true; use that, or 0"
            )
        if self.runtime.keep_every % self.runtime.checkpoint_every:
            raise ValueError(
                f"runtime.keep_every {self.runtime.keep_every} is no multiple of checkpoint_every "
                f"{self.runtime.checkpoint_every}; use one, or 0"
            )
        if self.finetuning.max_length > limit:
            raise ValueError(
                f"finetuning.max_length {self.finetuning.max_length} exceeds model.max_position_embeddings {limit}; "
                f"use {limit} or less"
            )
        if self.phase1.start_from == "phase1":
            raise ValueError(
                "phase1.start_from: the first phase starts from random weights, or from a registered version; remove "
                "the key, or use models:/NAME@ALIAS"
            )
        started = [name for name in PHASES if self.phase(name).version is not None]
        if started and self.tokenizer.trained:
            raise ValueError(
                f"{started[0]}.start_from: a version has its own tokenizer, this recipe trains another; use "
                "tokenizer.imported, with the tokenizer.json that `azneobert registry pull --checkpoint` brings"
            )
        return self

    def phase(self, name: PhaseName) -> Phase:
        """The block of one phase."""
        return self.phase1 if name == "phase1" else self.phase2


def check_division(global_batch: int, processes: int, where: str = "") -> None:
    """Check that a global batch divides over the processes.

    Raises:
        ValueError: it does not; the message names the sizes and numbers of processes to use.
    """
    if global_batch % processes:
        below = global_batch - global_batch % processes
        sizes = " or ".join(str(size) for size in (below, below + processes) if size)
        counts = ", ".join(str(n) for n in range(1, processes + 1) if global_batch % n == 0)
        raise ValueError(
            f"{where}global_batch {global_batch} does not divide over {processes} processes; "
            f"use a batch of {sizes}, or {counts} processes"
        )


def load_recipe(path: Path | str = PARAMS) -> Recipe:
    """The recipe that a file holds; without a path, the one that runs.

    Raises:
        RecipeError: the file is missing or not YAML, or the recipe has an unknown key, a wrong type, an absurd value or
            parts that do not fit each other. The message holds the path of the key.
    """
    try:
        document = read_yaml(Path(path))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; run this in the project's folder") from None
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from None
    if "recipe" in document:
        raise RecipeError(f"{path}: holds a block a recipe, as before; `azneobert recipe migrate` makes a file of each")
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_error(error)}") from None


def recipe_fingerprint(block: BaseModel | dict[str, Any]) -> str:
    """The sha256 of a part of a recipe, in canonical JSON."""
    plain = block.model_dump(mode="json") if isinstance(block, BaseModel) else block
    return sha256_of_json(plain)
