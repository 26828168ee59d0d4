"""What comes from elsewhere is printed on one line, steers no terminal, and holds no password."""

from __future__ import annotations

import logging
import sys

import pytest
from rich.table import Table

from azneobert.cli.console import console
from azneobert.errors import DataError
from azneobert.printable import LineFormatter, os_error_line, printable

LETTERS = "Salam, dünya! ə Ə ı İ привет سلام 你好 हिन्दी \U0001f600 [b]x[/b] \\"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (LETTERS, LETTERS),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("one\ntwo\r\x85three\u2028", "one\\ntwo\\r\\x85three\\u2028"),
        ("\u202eevil\u2066\u200b\ufeff", "\\u202eevil\\u2066\\u200b\\ufeff"),
        ("half \udcff", "half \\udcff"),
        ("a\tb", "a\tb"),
    ],
)
def test_what_steers_a_terminal_is_seen_and_letters_stay(text: str, shown: str) -> None:
    assert printable(text) == printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://leyla:geheim@host:5000/x", "http://leyla:***@host:5000/x"),
        ("to 'postgresql+psycopg://u:a@b/c@host/db': refused", "to 'postgresql+psycopg://u:***@host/db': refused"),
        ("https://ghp_geheim@github.com/x.git", "https://***@github.com/x.git"),
        ("https://:geheim@host", "https://:***@host"),
        ("s3://b/k?x=1&X-Amz-Signature=geheim&token=geheim", "s3://b/k?x=1&X-Amz-Signature=***&token=***"),
        ("ssh://leyla@host/folder", "ssh://leyla@host/folder"),
        ("sqlite:///a/b.db mail@example.org", "sqlite:///a/b.db mail@example.org"),
        ("models:/azneobert@phase2", "models:/azneobert@phase2"),
    ],
)
def test_an_address_is_shown_without_its_password(text: str, shown: str) -> None:
    assert printable(text) == printable(shown) == shown


def test_an_error_a_log_line_and_the_commands_print_that_way(capsys: pytest.CaptureFixture[str]) -> None:
    foreign = "a\x1b[31m[/b]\nhttp://u:geheim@host"
    expected = "a\\x1b[31m[/b]\\nhttp://u:***@host"
    assert str(DataError(f"{foreign}: damaged")) == f"{expected}: damaged"
    record = logging.LogRecord("x", logging.WARNING, "", 1, "%s", (foreign,), None)
    assert LineFormatter("%(message)s").format(record) == expected
    console.print(foreign)
    table = Table("what", title=foreign)
    table.add_row(foreign)
    console.print(table)
    said = capsys.readouterr().out
    assert said.count(expected) == 3
    assert "\x1b" not in said


def test_a_traceback_of_a_bug_keeps_its_lines() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "bug", (), sys.exc_info())
    assert len(LineFormatter("%(message)s").format(record).splitlines()) > 3


def test_what_the_system_says_never_names_none() -> None:
    assert os_error_line(OSError(28, "No space left on device")) == "No space left on device"
    assert os_error_line(OSError(2, "No such file", "a\nb")) == "a\\nb: No such file"
    assert os_error_line(OSError("not UTF-8")) == "not UTF-8"
    assert os_error_line(OSError()) == "OSError"
