"""Pictures as files: drawn without a screen, and equal files for equal pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """`matplotlib.pyplot`, imported by who draws and with the backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_picture(figure: Any, file: Path, **text: str) -> None:
    """Write a figure as PNG and close it. `text` is kept in the file, as PNG's chunks of text by their keywords."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    # Without the version that matplotlib writes by default, equal pictures are equal files.
    figure.savefig(file, format="png", metadata={"Software": None, **text})
    pyplot().close(figure)
