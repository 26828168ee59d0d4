"""A hook of the site: links that lead out of docs/ go to the repository's page, or are plain text where it has none."""

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\[([^\]\n]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Before a page is rendered: `[README](../README.md)` becomes the repository's page of that file."""
    docs = Path(config.docs_dir).resolve()

    def outside(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        target = (docs / page.file.src_uri).parent.joinpath(link).resolve()
        if target.is_relative_to(docs):
            return found[0]
        place = target.relative_to(docs.parent)
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{place}{anchor})" if config.repo_url else text

    return _LINK.sub(outside, markdown)
