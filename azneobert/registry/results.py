"""The held-out results of a version as its cards show them: over all, by collection, and by length."""

from __future__ import annotations

from typing import Any

_FORMATS = {"loss": "{:.4f}", "accuracy": "{:.2%}", "masked_perplexity": "{:,.2f}"}
_TITLES = {"loss": "loss", "accuracy": "masked accuracy", "masked_perplexity": "masked perplexity"}
_BY_COLLECTION, _BY_LENGTH = "eval/loss/", "eval/loss_by_length/"
_NOTE = """The loss is in nats a masked token, and the masked perplexity is its exponential. As many tokens are masked
at once as in training: a pseudo-perplexity, which masks one at a time, is another number."""
_NOTE_ON_LENGTHS = """Positions are those of the masked tokens in their own documents, counted from 0. A document longer
than a row is cut, and each piece counts as one."""


def collections_of(figures: dict[str, Any]) -> list[str]:
    """The collections of which there are held-out results."""
    return _parts(figures, _BY_COLLECTION)


def results_tables(figures: dict[str, Any]) -> str:
    """The results in Markdown, as far as a version has them: older versions have none by length."""
    kinds = [kind for kind in _FORMATS if f"eval/{kind}" in figures]
    if not kinds:
        return "It was not evaluated."

    def table(title: str, places: dict[str, str]) -> str:
        lines = [[title, *(_TITLES[kind] for kind in kinds)], ["---"] * (1 + len(kinds))]
        for name, place in places.items():
            lines.append([name, *(_FORMATS[kind].format(figures[f"eval/{kind}{place}"]) for kind in kinds)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    told = [table("collection", {"all": "", **{name: f"/{name}" for name in collections_of(figures)}}), _NOTE]
    if lengths := _parts(figures, _BY_LENGTH):
        told += [table("positions", {name: f"_by_length/{name}" for name in lengths}), _NOTE_ON_LENGTHS]
    return "\n\n".join(told)


def _parts(figures: dict[str, Any], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in figures if key.startswith(prefix)]
