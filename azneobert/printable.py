"""Makes text from elsewhere safe to print: one line, nothing that controls a terminal, no password."""

from __future__ import annotations

import logging
import re

# With an unescaped @ or / in its password an address is not valid, but the password is still somebody's.
_CREDENTIALS = re.compile(r"(?P<scheme>\w[\w+.-]*://)(?P<user>[^\s/:@'\"]*):[^\s'\"]*@")
_TOKEN = re.compile(r"(?P<scheme>https?://)[^\s/:@'\"]+@")  # a token in the place of the user, as GitHub takes it
_PARAMETER = re.compile(r"(?P<key>[?&;](?:\w*password|\w*token|\w*secret\w*|X-Amz-\w+)=)[^\s&;'\"]+", re.IGNORECASE)


def printable(text: object) -> str:
    """A text on one line: what controls a terminal or reorders a line is escaped, letters of every script stay.

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
    """The system's message about a file, with the file's name; an error may lack either of them."""
    reason = error.strerror or str(error) or type(error).__name__
    return printable(f"{error.filename}: {reason}" if error.filename is not None else reason)


class LineFormatter(logging.Formatter):
    """Formats a log record as a line that is safe to print; the traceback of a bug keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record's line, without its traceback."""
        return printable(super().formatMessage(record))


def log_in_lines() -> None:
    """Print warnings and errors of every library on standard error, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _visible(character: str) -> str:
    return character if character.isprintable() or character == "\t" else character.encode("unicode_escape").decode()
