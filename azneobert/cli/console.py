"""Where the commands print."""

from typing import Any

from rich.console import Console
from rich.text import Text

from azneobert.printable import printable


class _Console(Console):
    """Prints names and values from files as plain text: they are not markup and cannot control the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A string, a cell or a title as `rich` prints it: one line."""
        return super().render_str(printable(text), **options)


console = _Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
complaints = _Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
