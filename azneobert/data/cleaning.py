"""What happens to a document's text before it is tokenized, and which documents are dropped.

Everything here depends on the text alone, so that a document's fate and its side of the train/validation split stay the
same whatever is added beside it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from azneobert.data.collections import RawDocument

HASH_BYTES = 16
DROP_REASONS = ("empty", "short", "language", "duplicate")

# Letters that only look like the Azerbaijani ones. The turned e is never right; the Cyrillic ones are, among their own.
_TURNED_E = str.maketrans({"ǝ": "ə", "Ǝ": "Ə"})
_LOOKALIKES = str.maketrans("әаеорсхуіһӘАВЕКМНОРСТХУІ", "əaeopcxyihƏABEKMHOPCTXYI")
_CYRILLIC = re.compile(r"[\u0400-\u04FF]")
_WORD = re.compile(r"\w+")
# Soft hyphen, zero-width characters, directional marks, byte order mark, and control characters but tab and newline.
_INVISIBLE = re.compile(
    r"[\u00AD\u200B-\u200F\u202A-\u202E\u2060-\u2064\uFEFF\uD800-\uDFFF\x00-\x08\x0E-\x1B\x7F-\x84\x86-\x9F]"
)
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r" ?\n ?(?:\n ?)+")
_LATIN = re.compile(r"[A-Za-zÀ-ɏƏə]")


@dataclass(frozen=True)
class Document:
    """A cleaned document: its text, its content hash and the side of the split that the hash decides."""

    id: str
    text: str
    hash: bytes
    validation: bool


@dataclass
class CleaningReport:
    """Counts of one collection: documents in, kept, dropped by reason; words and characters kept."""

    documents: int = 0
    kept: int = 0
    validation: int = 0
    words: int = 0
    characters: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))


def normalise(text: str) -> str:
    """The text in NFC, with look-alike letters repaired, invisible characters dropped and spaces made plain."""
    text = _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = unicodedata.normalize("NFC", text)
    # Lower-casing İ the English way leaves i and a combining dot, which no Azerbaijani word has.
    text = text.replace("i\u0307", "i").translate(_TURNED_E)
    if _CYRILLIC.search(text):
        text = unicodedata.normalize("NFC", _WORD.sub(_repair, text))
    return _BLANK_LINES.sub("\n\n", _SPACES.sub(" ", text)).strip()


def _repair(word: re.Match[str]) -> str:
    mixed = _CYRILLIC.search(word[0]) and _LATIN.search(word[0])
    return word[0].translate(_LOOKALIKES) if mixed else word[0]


def is_azerbaijani(text: str, min_latin: float, min_schwa: float) -> bool:
    """Whether a text is Azerbaijani in Latin script, by its letters.

    At least `min_latin` of its letters are Latin, and at least `min_schwa` of those are ə: about one in eleven is in
    Azerbaijani, and none in Turkish, English or the other Latin-script languages of a crawl.
    """
    letters = sum(map(str.isalpha, text))
    latin = len(_LATIN.findall(text))
    schwas = text.count("ə") + text.count("Ə")
    return latin > 0 and latin >= min_latin * letters and schwas >= min_schwa * latin


def content_hash(text: str) -> bytes:
    """A hash of the text that spacing does not change; equal hashes make exact duplicates."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=HASH_BYTES).digest()


def is_validation(digest: bytes, fraction: float) -> bool:
    """Whether a document is held out: its hash, read as a number in [0, 1), lies below the fraction."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def clean(
    documents: Iterable[RawDocument],
    *,
    min_words: int,
    min_latin: float,
    min_schwa: float,
    validation_fraction: float,
    report: CleaningReport,
) -> Iterator[Document]:
    """The documents that stay, each once; `report` is filled in while they are drawn."""
    seen: set[bytes] = set()
    for raw in documents:
        report.documents += 1
        text = normalise(raw.text)
        digest = content_hash(text)
        words = len(text.split())
        if not text:
            report.dropped["empty"] += 1
        elif words < min_words:
            report.dropped["short"] += 1
        elif not is_azerbaijani(text, min_latin, min_schwa):
            report.dropped["language"] += 1
        elif digest in seen:
            report.dropped["duplicate"] += 1
        else:
            seen.add(digest)
            validation = is_validation(digest, validation_fraction)
            report.kept += 1
            report.validation += validation
            report.words += words
            report.characters += len(text)
            yield Document(raw.id, text, digest, validation)
