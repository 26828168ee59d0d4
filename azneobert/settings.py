"""The parts of every block of a recipe: strict models, numbers with bounds, names, and errors of one line."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

_LETTERS = str.maketrans({"ə": "e", "ı": "i", " ": "_"})  # which no Unicode decomposition turns into Latin letters
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def check_name(name: str) -> str:
    """A name of a recipe, a collection or a task: it becomes a folder, a stage of DVC, and a word of a shell's line.

    Raises:
        ValueError: it is not valid; the message says what is.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{shown(name)} is no name here; expected lower-case letters, digits, _ and -, a letter first, as in news_2"
        )
    return name


def name_of(text: str) -> str:
    """A name made of any text, such as that of a file: `Xəbərlər 2023` is xeberler_2023."""
    letters = unicodedata.normalize("NFKD", text.lower().translate(_LETTERS)).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9_-]+", "_", letters).strip("_-")[:60]
    return name if name[:1].isalpha() else f"c_{name}".rstrip("_")


def shown(value: Any) -> str:
    """A value in a message: on one line, escaped, and not very long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # of transformers
Length = Annotated[int, Field(gt=0, le=1 << 20)]  # of a sequence, in tokens
Fraction = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


def as_tuple(value: Any) -> Any:
    """A list of YAML as the tuple that a frozen model holds."""
    return tuple(value) if isinstance(value, list) else value


def refuse_key(data: Any, key: str, belongs: str, expected: str) -> Any:
    """The content of a block, unless it has a key of its twin: sources and tasks are of files, or of the hub.

    Raises:
        ValueError: it has such a key; the message says where the key belongs, and what is expected instead.
    """
    if isinstance(data, dict) and key in data:
        raise ValueError(f"`{key}` belongs under {belongs}; expected `{expected}` here")
    return data


class Block(BaseModel):
    """A part of a recipe: it cannot be changed, and takes no unknown key, no value of another type and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: the path of its key, what was found, what is expected."""
    details = error.errors()
    first = details[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    # A check across several keys already names them, so the value it was given would only repeat the block.
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key; remove it or correct its spelling"
    elif first["type"] == "missing":
        message = "is missing; every key of the recipe must be stated"
    elif first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, found {shown(first['input'])}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"
