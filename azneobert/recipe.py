"""params.yaml, read into frozen and strict models: an unknown key or a wrong type is an error with its path."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from azneobert.errors import RecipeError

PhaseName = Literal["phase1", "phase2"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
EngineName = Literal["plain", "zero2"]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
# YAML 1.1 reads an unquoted `off` as false; a person who writes it means the word.
WandbMode = Annotated[
    Literal["off", "offline", "online"], BeforeValidator(lambda value: "off" if value is False else value)
]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(_Block):
    """Where one collection comes from: local files, or a data set of the Hugging Face hub; and where its text stands.

    `text_field` and `id_field` may be dotted paths into nested records; without an id a document is named by its file
    and line. `sample_by` says what a document is in plain text files.
    """

    path: str | None = None
    dataset: str | None = None  # also json, csv, text or parquet, which read the files or URLs of `data_files`
    config: str | None = None
    split: str = "train"
    data_files: Annotated[str | tuple[str, ...] | None, BeforeValidator(_as_tuple)] = None
    options: dict[str, Any] = Field(default_factory=dict)  # of the `datasets` library's reader, such as `delimiter`
    revision: str = ""  # of a hub data set; for a path outside data/, which DVC cannot see, raise it when that changes
    text_field: str = "text"
    id_field: str | None = "id"
    sample_by: Literal["document", "paragraph", "line"] = "document"

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("`path` (local files) or `dataset` (of the Hugging Face hub): one of the two would do")
        of_a_dataset = self.config is not None or self.split != "train" or self.data_files is not None or self.options
        if self.path is not None and of_a_dataset:
            raise ValueError("`config`, `split`, `data_files` and `options` belong to a `dataset`, not to a `path`")
        return self

    @property
    def name(self) -> str:
        """What to call the source in a message."""
        files = (self.data_files,) if isinstance(self.data_files, str) else self.data_files or ()
        return (
            str(self.path) if self.path is not None else " ".join(filter(None, (self.dataset, self.config, *files[:1])))
        )


LanguageName = Literal["azeri_latin", "turkish", "any"]
# fmt: off
ScriptName = Literal[
    "latin", "greek", "cyrillic", "armenian", "hebrew", "arabic", "devanagari", "bengali", "thai", "georgian", "hangul",
    "kana", "han", "other",
]
# fmt: on


class Language(_Block):
    """A language by its letters: which texts are of it, and what is repaired in them.

    For a language that data/languages.py does not have, a recipe says in `data.cleaning`:

        language:
          name: kazakh_cyrillic
          letters: "А-Яа-яЁёӘәҒғҚқҢңӨөҰұҮүҺһІі"
          must: "әғқңөұүһі"
          min_must_share: 0.02
          lookalikes: {"a": "а", "o": "о", "c": "с", "i": "і", "h": "һ"}

    Then a text stays if at least 70% of its letters (`min_share`) are among `letters`, and at least 2% of those are
    among `must`, which Russian does not have. And "бaла", whose second letter is a Latin one, becomes "бала", while
    "Microsoft" stays: only words that hold one of `letters`, and that the look-alikes make whole, are repaired.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9_-]{1,40}$")]
    letters: str  # as they are written, "A-Za-zƏə" with ranges; a hyphen that is meant stands first or last
    min_share: Fraction = 0.7  # of a text's letters that are among `letters`
    must: str = (
        ""  # letters that tell the language; both cases count, but where another language has another pair (ı, I)
    )
    min_must_share: Fraction = 0.0  # of the letters among `letters` that are among `must`
    must_not: str = ""  # letters that speak against it, both cases
    max_must_not_share: Fraction = 1.0  # of all of a text's letters
    lookalikes: dict[str, str] = Field(default_factory=dict)  # a letter of another script: the one that was meant
    certain: str = ""  # look-alikes that are repaired even in a word that keeps other letters of their script
    replace: dict[str, str] = Field(default_factory=dict)  # a character: what it is, in whatever word it stands
    dotted_i: bool = False  # whether an i with a combining dot is an i: what lower-casing İ the English way leaves
    joiners: bool = True  # whether zero-width joiners stay behind letters that are spelled with them (Persian, Hindi)

    @model_validator(mode="after")
    def _letters_can_be_counted(self) -> Language:
        if not self.letters:
            raise ValueError("letters: is empty; expected letters and ranges such as A-Za-z, or `language: any`")
        own = expand_letters(self.letters)
        # What a letter is made of, combining marks, cannot be counted alone.
        for name, letters in (("letters", own), ("must", set(self.must)), ("must_not", set(self.must_not))):
            odd = sorted(character for character in letters if not character.isalpha())
            # A range may run over a few signs, as À-ɏ does over × and ÷: they are no letters, and do not count.
            if odd and (name != "letters" or any(character in odd for character in _ends(self.letters))):
                raise ValueError(f"{name}: found {odd[0]!r}; expected letters")
        if missing := sorted(set(self.must) - own):
            raise ValueError(f"must: {missing[0]!r} is not among `letters`; expected it there too")
        if both := sorted(set(self.must) & set(self.must_not)):
            raise ValueError(f"must_not: {both[0]!r} stands in `must` too; expected it in one of the two")
        for name, share, default in (
            ("must", self.min_must_share, 0.0),
            ("must_not", self.max_must_not_share, 1.0),
        ):
            if share != default and not getattr(self, name):
                raise ValueError(f"{name}: is empty, but its share is {share}; expected letters, or no share")
        return self

    @model_validator(mode="after")
    def _repairs_end(self) -> Language:
        own = expand_letters(self.letters)
        for name, table in (("lookalikes", self.lookalikes), ("replace", self.replace)):
            for found, meant in table.items():
                if len(found) != 1 or len(meant) != 1:
                    raise ValueError(f"{name}: found {found!r}: {meant!r}; expected one character for one")
                if not found.isalpha() or not meant.isalpha() or found == meant:
                    raise ValueError(f"{name}: found {found!r}: {meant!r}; expected a letter for another one")
                if name == "replace" and not unicodedata.is_normalized("NFD", found):
                    raise ValueError(f"replace: {found!r} is a letter with a mark; expected one that stands for itself")
                if meant in table:
                    raise ValueError(f"{name}: {meant!r} is repaired itself; expected the letter that is meant")
        for found, meant in self.lookalikes.items():
            if found in own or meant not in own:
                problem = f"{found!r} is one of `letters`" if found in own else f"{meant!r} is none of `letters`"
                raise ValueError(f"lookalikes: {problem}; expected a foreign letter: one of `letters`")
        if crossing := sorted(set(self.replace) & set(self.lookalikes.values())):
            raise ValueError(f"replace: {crossing[0]!r} is what a look-alike becomes; expected one of the two")
        if unknown := sorted(set(self.certain) - set(self.lookalikes)):
            raise ValueError(f"certain: {unknown[0]!r} is none of `lookalikes`; expected letters that stand there")
        return self


def expand_letters(letters: str) -> set[str]:
    """The characters of a list with ranges, such as "A-Za-z"; a hyphen at either end is a hyphen.

    Raises:
        ValueError: a range ends before it begins.
    """
    found: set[str] = set()
    place = 0
    while place < len(letters):
        first = last = letters[place]
        if letters[place + 1 : place + 2] == "-" and place + 2 < len(letters):
            last = letters[place + 2]
            place += 2
        if last < first:
            raise ValueError(f"letters: found the range {f'{first}-{last}'!r}; expected {f'{last}-{first}'!r}")
        found.update(map(chr, range(ord(first), ord(last) + 1)))
        place += 1
    return found


def _ends(letters: str) -> set[str]:
    """What a person has written of a list with ranges, without what the ranges fill in."""
    return {c for at, c in enumerate(letters) if c != "-" or at in (0, len(letters) - 1)}


def _name_or_block(value: Any) -> Any:
    """A block as `Language`, anything else as it is; an error stands in one line, not in one for each alternative."""
    if isinstance(value, Language):
        return value
    if isinstance(value, dict):
        try:
            return Language.model_validate(value)
        except ValidationError as error:
            raise ValueError(_first_error("", error).removeprefix(": ").removeprefix(".")) from None
    if value not in get_args(LanguageName):
        names = ", ".join(get_args(LanguageName))
        raise ValueError(f"found {value!r}; expected one of {names}, or a block with `name`, `letters` and shares")
    return value


class Cleaning(_Block):
    """What happens to a text, and which texts stay: data/cleaning.py.

    What a report finds is always counted and shown; it changes nothing until it is set to `drop` (or `strip`).
    """

    min_words: Positive
    language: Annotated[LanguageName | Language, BeforeValidator(_name_or_block)] = "azeri_latin"
    max_malformed: Below1  # the share of a source's records that may be unreadable; more than that is a broken source
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    html: Literal["report", "strip", "drop"] = "report"  # strip takes tags away and keeps the text between them
    repeated_lines: Literal["report", "drop"] = "report"  # drop takes a line's copies beyond the `line_copies`-th away
    line_copies: Positive = 100  # in so many documents of a collection may one line stand before it is boilerplate
    scripts: Annotated[tuple[ScriptName, ...], BeforeValidator(_as_tuple)] = ()  # the ones that texts may be in; () all

    @model_validator(mode="before")
    @classmethod
    def _former_thresholds(cls, data: Any) -> Any:
        if isinstance(data, dict) and (former := [key for key in ("min_latin", "min_schwa") if key in data]):
            raise ValueError(f"{former[0]}: is part of the language now; use `language: azeri_latin`, or a block")
        return data


class Data(_Block):
    """The collections, and how they are cleaned.

    `order` names them all: a text that stands in two collections is kept in the one that comes first.
    """

    sources: Annotated[dict[str, Source], Field(min_length=1)]
    order: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
    cleaning: Cleaning

    @model_validator(mode="after")
    def _names(self) -> Data:
        # They become names of folders, of stages, and of keys that DVC looks up between dots.
        odd = [name for name in self.sources if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
        if odd:
            raise ValueError(f"sources: {odd[0]!r} names a collection; expected letters, digits, _ and - only")
        return self

    @model_validator(mode="after")
    def _order_is_of_all(self) -> Data:
        counts = Counter(self.order)
        problems = [f"{name} is missing" for name in self.sources if name not in counts]
        problems += [f"{name} is unknown" for name in counts if name not in self.sources]
        problems += [f"{name} stands {count} times" for name, count in counts.items() if count > 1]
        if problems:
            raise ValueError(f"order: {', '.join(problems)}; expected each name in `sources` once")
        return self


class Tokenizer(_Block):
    """Train a tokenizer on the documents, or import a tokenizer.json unchanged.

    `max_characters` bounds what it is trained on, a sample of all collections by the documents' hashes. `compare` names
    more tokenizers (a tokenizer.json each) for the table of fertility.
    """

    algorithm: Literal["wordpiece", "bpe", "unigram", "import"]
    vocab_size: Positive
    lowercase: bool = False
    path: str | None = None
    max_characters: Positive = 2_000_000_000
    compare: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _import_needs_a_path(self) -> Tokenizer:
        if (self.algorithm == "import") != (self.path is not None):
            raise ValueError(
                "`path` names the tokenizer.json to import: set it with `algorithm: import`, and only then"
            )
        if self.algorithm == "unigram" and self.vocab_size < 512:
            raise ValueError(f"vocab_size {self.vocab_size}: unigram spells 256 bytes beside its pieces; 512 would do")
        return self


class Model(_Block):
    """NeoBERT's architecture; `intermediate_size` is before the 2/3 rule of SwiGLU."""

    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    intermediate_size: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    rope_theta: float
    rms_norm_eps: float
    initializer_range: float
    tie_embeddings: bool

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.num_attention_heads} heads is not an even head size; "
                f"{2 * self.num_attention_heads * max(1, self.hidden_size // (2 * self.num_attention_heads))} would do"
            )
        return self


class Training(_Block):
    """What both phases share, and what decides the numbers that a run computes."""

    masking_rate: Annotated[float, Field(gt=0, le=0.5)]
    adam_betas: tuple[Below1, Below1]
    adam_eps: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)]
    compute_dtype: Literal["float32", "bfloat16"]

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("adam_betas"), list):
            return {**data, "adam_betas": tuple(data["adam_betas"])}
        return data


class Carry(_Block):
    """What a phase takes over, beside the weights, from the checkpoint that it starts from."""

    moments: bool
    schedule: bool
    position: bool


class MixturePart(_Block):
    """A part of the rows: made of documents of at least `min_tokens`, and this share of all samples."""

    min_tokens: Annotated[int, Field(ge=0)]
    share: Annotated[float, Field(gt=0, le=1)]


class Phase(_Block):
    """One phase of pretraining: linear warm-up to the peak, then a cosine to zero at the last step.

    `mixture` draws rows by the length of their documents; without it every document is gone through once an epoch.
    """

    sequence_length: Annotated[int, Field(ge=8)]
    global_batch: Positive
    steps: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    peak_learning_rate: Annotated[float, Field(gt=0)]
    start_from: Literal["phase1"] | None = None
    carry: Carry | None = None
    mixture: Annotated[tuple[MixturePart, ...] | None, Field(min_length=1), BeforeValidator(_as_tuple)] = None

    @model_validator(mode="after")
    def _consistent(self) -> Phase:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves nothing of {self.steps} steps; fewer would do")
        if (self.start_from is None) != (self.carry is None):
            raise ValueError("`start_from` and `carry` go together: what does the phase start from, and what is kept?")
        shares = [part.share for part in self.mixture or ()]
        if shares and (abs(sum(shares) - 1) > 1e-9 or any(abs(100 * s - round(100 * s)) > 1e-9 for s in shares)):
            raise ValueError(f"mixture: shares {shares} are not whole percents that sum to 1")
        if len({part.min_tokens for part in self.mixture or ()}) < len(shares):
            raise ValueError("mixture: two parts have the same min_tokens; one with the sum of their shares would do")
        return self

    @property
    def pools(self) -> tuple[tuple[int, float], ...]:
        """The mixture as pairs of the tokens a document has at least, and the share of samples."""
        return tuple((part.min_tokens, part.share) for part in self.mixture or (MixturePart(min_tokens=0, share=1.0),))


class Runtime(_Block):
    """How a run is carried out. Nothing here changes what is computed, so a resumed run may differ in it.

    `changed_code` says what becomes of a finished run whose code has changed since: it is trained anew, or kept.
    """

    engine: EngineName
    processes: Positive
    max_micro_batch: Positive
    attention: Literal["auto", "fa4", "fa3", "fa2", "reference"]
    blocks: Literal["auto", "fused", "torch"]
    compile: bool
    deterministic: bool  # every sum in one order: a resumed run is the uninterrupted one to the last bit, on a GPU too
    workers: Annotated[int, Field(ge=0)]
    log_every: Positive
    checkpoint_every: Positive
    keep_checkpoints: Positive
    changed_code: Literal["retrain", "keep"] = "keep"


class Evaluation(_Block):
    """Held-out loss: how often while training, and on how many rows of each collection at most."""

    every: Positive
    max_rows_per_collection: Positive


class Tracking(_Block):
    """Where runs are recorded. The environment's MLFLOW_TRACKING_URI goes before `mlflow_uri`."""

    mlflow_uri: str
    experiment: str
    wandb: WandbMode
    wandb_project: str = "azneobert"


class Registry(_Block):
    """The registered model, and whether its versions hold the optimizer's moments."""

    name: str
    with_moments: bool


class Finetuning(_Block):
    """The task that shows what the pretrained encoder is worth: the topic of a text."""

    model: str
    task: str
    epochs: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    max_length: Positive
    seeds: Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class Recipe(_Block):
    """Everything that a stage may depend on."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    data: Data
    tokenizer: Tokenizer
    model: Model
    training: Training
    phase1: Phase
    phase2: Phase
    runtime: Runtime
    evaluation: Evaluation
    tracking: Tracking
    registry: Registry
    finetuning: Finetuning

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.tokenizer.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size {self.tokenizer.vocab_size} and model.vocab_size "
                f"{self.model.vocab_size} differ; the same number in both would do"
            )
        limit = self.model.max_position_embeddings
        for name in PHASES:
            phase = self.phase(name)
            if phase.sequence_length > limit:
                raise ValueError(
                    f"{name}.sequence_length {phase.sequence_length} exceeds model.max_position_embeddings {limit}; "
                    f"{limit} or less would do"
                )
            check_division(phase.global_batch, self.runtime.processes, f"{name}.")
        if self.finetuning.max_length > limit:
            raise ValueError(
                f"finetuning.max_length {self.finetuning.max_length} exceeds model.max_position_embeddings {limit}; "
                f"{limit} or less would do"
            )
        if self.phase1.start_from is not None:
            raise ValueError("phase1.start_from: the first phase starts from random weights; remove the key")
        return self

    def phase(self, name: PhaseName) -> Phase:
        """The block of one phase."""
        return self.phase1 if name == "phase1" else self.phase2


def check_division(global_batch: int, processes: int, where: str = "") -> None:
    """See to it that a global batch divides over the processes.

    Raises:
        ValueError: it does not; the message names the sizes and numbers of processes to use.
    """
    if global_batch % processes:
        below = global_batch - global_batch % processes
        sizes = " or ".join(str(size) for size in (below, below + processes) if size)
        counts = ", ".join(str(n) for n in range(1, processes + 1) if global_batch % n == 0)
        raise ValueError(
            f"{where}global_batch {global_batch} does not divide over {processes} processes; "
            f"a batch of {sizes}, or {counts} processes would do"
        )


def load_recipe(path: Path | str = "params.yaml", name: str | None = None) -> tuple[str, Recipe]:
    """The name and content of the recipe that `path` selects, or of the one called `name`.

    Raises:
        RecipeError: the file is missing or not YAML, or the recipe has an unknown key, a wrong type or parts that
            do not fit each other. The message holds the path of the key.
    """
    document = _read_yaml(Path(path))
    recipes = [str(key) for key, value in document.items() if isinstance(value, dict)]
    chosen = name if name is not None else document.get("recipe")
    if chosen not in recipes:
        raise RecipeError(f"{path}: recipe: found {chosen!r}; one of {', '.join(recipes)} would do")
    unknown = sorted(str(key) for key in document if key != "recipe" and str(key) not in recipes)
    if unknown:
        raise RecipeError(f"{path}: {unknown[0]}: unknown key; `recipe` and one block a recipe would do")
    try:
        return str(chosen), Recipe.model_validate(document[chosen])
    except ValidationError as error:
        raise RecipeError(f"{path}: {_first_error(str(chosen), error)}") from None


def recipe_fingerprint(block: BaseModel | dict[str, Any]) -> str:
    """The sha256 of a part of a recipe, in canonical JSON."""
    plain = block.model_dump(mode="json") if isinstance(block, BaseModel) else block
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; run this in the project's folder") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: holds {type(document).__name__}; `recipe` and one block a recipe would do")
    return document


def _first_error(name: str, error: ValidationError) -> str:
    details = error.errors()
    first = details[0]
    where = ".".join([name, *(str(part) for part in first["loc"])])
    # A check across several keys already names them, so the value it was given would only repeat the block.
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key; remove it or correct its spelling"
    elif first["type"] == "missing":
        message = "is missing; every key of the recipe must be stated"
    elif first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, found {first['input']!r}"
        if first["type"] == "float_type" and isinstance(first["input"], str):
            message += "; YAML takes a number with an exponent for text unless it has a point, as in 1.0e-4"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {message}{more}"
