"""The settings of fine-tuning: what a labelled task is, where its data are, and how an encoder is trained on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from azneobert.settings import Block, Length, Name, Positive, Seed, Text, as_tuple, refuse_key

TaskKind = Literal["classification", "pairs", "regression", "tokens", "choice"]
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Fields = Annotated[Text | Annotated[tuple[Text, ...], Field(min_length=1)], BeforeValidator(as_tuple)]

# Where an example's parts stand, if a task does not say; a name may be a dotted path into nested records.
_TEXT_FIELD = {"tokens": "tokens"}
_LABEL_FIELD = {"tokens": "tags", "regression": "score"}


def _unique(labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if labels and len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"{twice!r} stands there twice; remove one of them")
    return labels


class Splits(Block):
    """The names of the splits: of files, the names before the first dot; of a data set on the hub, its splits.

    None: one of the usual names (`train`; `validation`, `valid`, `val`, `dev`; `test`), and if there is none of
    them, a share `held_out` of the training examples, taken by the hash of what they say.
    """

    train: Text | None = None
    validation: Text | None = None
    test: Text | None = None


Labels = Annotated[tuple[Text, ...] | None, BeforeValidator(as_tuple), AfterValidator(_unique)]


class TaskSettings(Block):
    """What a task's examples are. `first_label` is the number of the first answer of a `choice` task, 1 in Belebele."""

    kind: TaskKind = "classification"
    text_field: Fields | None = None  # several are joined by a line end; of tokens: its words, as a list or a text
    pair_field: Text = "text_pair"  # of pairs, and of regression where the record has it
    choices_field: Fields = "choices"  # a field that holds the list of answers, or one field for each answer
    label_field: Text | None = None
    labels: Labels = None  # None: those of the training split
    first_label: Annotated[int, Field(ge=0, le=1)] = 0
    splits: Splits = Splits()
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.1

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The names of the fields that the text is made of."""
        found = self.text_field or _TEXT_FIELD.get(self.kind, "text")
        return (found,) if isinstance(found, str) else found

    @property
    def label_name(self) -> str:
        """The name of the field with the label, the tags or the score."""
        return self.label_field or _LABEL_FIELD.get(self.kind, "label")


class TaskFiles(TaskSettings):
    """A labelled task of local files: a folder with one file per split, or one file from which splits are made."""

    path: Text

    @model_validator(mode="before")
    @classmethod
    def _is_of_files(cls, data: Any) -> Any:
        return refuse_key(data, "dataset", "finetuning.hub", "path")


class TaskOfHub(TaskSettings):
    """A labelled task of the Hugging Face hub."""

    dataset: Text
    config: Text | None = None
    revision: str = ""  # a commit of the hub

    @model_validator(mode="before")
    @classmethod
    def _is_of_the_hub(cls, data: Any) -> Any:
        return refuse_key(data, "path", "finetuning.files", "dataset")


AnyTask = TaskFiles | TaskOfHub


class TuningSettings(Block):
    """How an encoder is trained on a task: the best epoch on the validation split is kept, and tested once."""

    epochs: int = Field(gt=0, le=100_000)  # at most
    patience: Positive  # epochs without a better validation score, after which training stops
    batch_size: int = Field(gt=0, le=1 << 20)
    learning_rate: Annotated[float, Field(gt=0)]
    max_length: Length
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), BeforeValidator(as_tuple)]


class Finetuning(TuningSettings):
    """The labelled tasks that show what the pretrained encoder is worth; there may be none."""

    model: Text
    files: dict[Name, TaskFiles]
    hub: dict[Name, TaskOfHub]

    @property
    def tasks(self) -> dict[str, AnyTask]:
        """All tasks by name."""
        return {**self.files, **self.hub}

    @model_validator(mode="after")
    def _names_are_unique(self) -> Finetuning:
        if twice := sorted(self.files.keys() & self.hub.keys()):
            raise ValueError(f"{twice[0]} stands in finetuning.files and in finetuning.hub; rename one of them")
        return self
