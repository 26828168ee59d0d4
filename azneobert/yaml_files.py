"""YAML 1.2, read and written as DVC does, with limits: a stranger's file costs no more than its size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from azneobert.files import read_bounded, write_whole

_LARGEST = 1 << 20  # bytes; the published recipe has 4,127
_DEEPEST = 20


class _Constructor(SafeConstructor):
    """Reads dates as text: `2024-13-45` has the form of a date, but does not exist."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def read_yaml(path: Path, most: int = _LARGEST) -> dict[str, Any]:
    """The mapping in a YAML file of at most `most` bytes; its keys are strings.

    Neither aliases nor tags are read: nine aliases can stand for a billion values, and a tag says what a value becomes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML of that kind; the message says where and what is wrong, without the file's name.
    """
    text = _text(read_bounded(path, most))
    try:
        _check_limits(text)
        reader = _reader()
        reader.Constructor = _Constructor
        document = reader.load(text)
    except MarkedYAMLError as error:
        raise ValueError(f"not YAML: {_said(error)}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not YAML: {_one_line(error)}") from None
    if not isinstance(document, dict):
        raise ValueError(
            f"holds {'nothing' if document is None else type(document).__name__}, expected keys and values"
        )
    _check_keys(document, "")
    return document


def edit_yaml(path: Path) -> Any:
    """The same file as a structure that keeps its comments, to change and to write with `write_yaml`.

    Raises:
        FileNotFoundError, ValueError: as `read_yaml`, which is called first.
    """
    read_yaml(path)
    return _writer().load(path.read_text(encoding="utf-8"))


def write_yaml(path: Path, content: Any) -> None:
    """Write a mapping, its comments included, in the block style in which DVC writes it back; it appears whole."""
    write_whole(path, yaml_text(content).encode())


def yaml_text(content: Any) -> str:
    """A mapping in the block style in which DVC writes it."""
    stream = io.StringIO()
    _writer().dump(content, stream)
    return stream.getvalue()


def _reader() -> YAML:
    return YAML(typ="safe", pure=True)


def _writer() -> YAML:
    writer = YAML()
    writer.default_flow_style = False
    return writer


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason}); save it as UTF-8") from None


def _check_limits(text: str) -> None:
    """Check the events of the parser, whose cost is linear in the text, before anything is made of them."""
    depth = 0
    for event in _reader().parse(text):
        line = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            raise ValueError(f"{line}: an anchor or alias (& or *); write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{line}: a tag (!); write the plain value")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"{line}: more than {_DEEPEST} levels deep")


def _check_keys(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where or 'top level'}: the key {str(key)[:40]} is no text; expected a name")
            _check_keys(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_keys(inner, f"{where}.{number}")


def _said(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{f'line {mark.line + 1}: ' if mark else ''}{_one_line(error.problem or error.context or error)}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
