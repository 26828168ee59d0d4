"""HTML that was left in a text: found, or taken away."""

from __future__ import annotations

import html
import re
from html.entities import html5

_LONG_NAMES = (
    "abbr|address|article|aside|audio|blockquote|body|br|button|canvas|center|cite|code|col|dd|del|div|dl|dt|em|embed|"
    "fieldset|figcaption|figure|font|footer|form|frame|h[1-6]|head|header|hr|html|iframe|img|input|ins|kbd|label|legend|"
    "li|link|main|map|mark|meta|nav|noscript|object|ol|option|param|picture|pre|script|section|select|small|source|span|"
    "strike|strong|style|sub|summary|sup|svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|ul|video|wbr"
)
# A name of one letter may be a variable, as in "a <b and b> c": it needs to be closed, or to have an attribute.
_TAG = re.compile(
    rf"<(?=[/!a-z])(?:/(?:{_LONG_NAMES}|[abipqsu])\s*+>|!DOCTYPE\b(?:[^<>]*+>)?|!--|"
    rf"(?:{_LONG_NAMES})(?=[\s/>]|\Z)(?:[^<>]*+>)?|[abipqsu](?:\s*+/?>|\s++[a-z-]+\s*+=[^<>]*+>))",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_OPAQUE = re.compile(r"<(script|style)\b", re.IGNORECASE)  # their content is no text
_ENDS = {name: re.compile(rf"</{name}\s*+>", re.IGNORECASE) for name in ("script", "style")}
_BLOCK = re.compile(
    r"</?(?:address|article|aside|blockquote|body|br|center|dd|div|dl|dt|figure|footer|form|h[1-6]|head|header|hr|html|li|"
    r"main|nav|ol|option|p|pre|section|table|tbody|td|tfoot|th|thead|title|tr|ul)\b",
    re.IGNORECASE,
)


def find_html(text: str) -> re.Match[str] | None:
    """The first tag or entity of a text. A "<" or "&" alone does not count, nor in "a <b" or "R&D;"."""
    if "<" in text and (tag := _TAG.search(text)):
        return tag
    return next(filter(_is_entity, _ENTITY.finditer(text)), None) if "&" in text else None


def strip_html(text: str) -> str:
    """The text without tags, comments, scripts and styles; entities are decoded once."""
    if "<" in text:
        text = _TAG.sub(_in_the_place_of, _without_opaque(_without_comments(text)))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def _is_entity(found: re.Match[str]) -> bool:
    return found[0][1] == "#" or found[0][1:] in html5


def _in_the_place_of(tag: re.Match[str]) -> str:
    """A newline for a block, which has lines of its own; nothing for an inline tag, which may be inside a word."""
    return "\n" if _BLOCK.match(tag[0]) else ""


def _without_comments(text: str) -> str:
    pieces, done = [], 0
    while (start := text.find("<!--", done)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        pieces.append(text[done:start])
        done = end + 3
    return "".join([*pieces, text[done:]])


def _without_opaque(text: str) -> str:
    pieces, done = [], 0
    while (start := _OPAQUE.search(text, done)) and (end := _ENDS[start[1].lower()].search(text, start.end())):
        pieces.append(text[done : start.start()])
        done = end.end()
    return "".join([*pieces, text[done:]])
