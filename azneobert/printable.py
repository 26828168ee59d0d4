"""Text that comes from elsewhere, as it may be printed: one line, nothing that steers a terminal, no password."""

from __future__ import annotations

import logging
import re

# A password with an unescaped @ or / in it is no address, and yet somebody's password.
_CREDENTIALS = re.compile(r"(?P<scheme>\w[\w+.-]*://)(?P<user>[^\s/:@'\"]*):[^\s'\"]*@")
_TOKEN = re.compile(r"(?P<scheme>https?://)[^\s/:@'\"]+@")  # a token in the place of the user, as GitHub takes it
_PARAMETER = re.compile(r"(?P<key>[?&;](?:\w*password|\w*token|\w*secret\w*|X-Amz-\w+)=)[^\s&;'\"]+", re.IGNORECASE)


def printable(text: object) -> str:
    """A text on one line: what steers a terminal or reorders a line by its escape, letters of every script as they are.

    The passwords of addresses are left out. Doing it twice changes nothing.
    """
    shown = without_secrets(str(text))
    return shown if shown.isprintable() else "".join(map(_visible, shown))


def without_secrets(text: str) -> str:
    """A text in which `http://user:password@host` is `http://user:***@host`."""
    if "://" not in text:
        return text
    text = _CREDENTIALS.sub(r"\g<scheme>\g<user>:***@", text)
    return _PARAMETER.sub(r"\g<key>***", _TOKEN.sub(r"\g<scheme>***@", text))


def os_error_line(error: OSError) -> str:
    """What the system says of a file, with its name where it has one: not every such error has either."""
    reason = error.strerror or str(error) or type(error).__name__
    return printable(f"{error.filename}: {reason}" if error.filename is not None else reason)


class LineFormatter(logging.Formatter):
    """A record of the log as a line that may be printed; a traceback, of a bug, keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record's line, without its traceback."""
        return printable(super().formatMessage(record))


def log_in_lines() -> None:
    """Have warnings and errors of every library printed on standard error, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _visible(character: str) -> str:
    return character if character.isprintable() or character == "\t" else character.encode("unicode_escape").decode()
