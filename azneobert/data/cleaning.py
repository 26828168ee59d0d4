"""What happens to a document's text before it is tokenized, and which documents are dropped.

Everything here depends on the text alone, so that a document's fate and its side of the train/validation split stay the
same whatever is added beside it. Duplicates are found later, over all collections at once (data/duplicates.py).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from dataclasses import dataclass, field

import numpy as np

from azneobert.data.records import Records
from azneobert.recipe import Cleaning

HASH_BYTES = 16
DROP_REASONS = ("malformed", "empty", "short", "language")

# Soft hyphen, zero-width characters, directional marks and isolates, byte order mark, control characters but tab and
# newline, and halves of surrogate pairs.
_INVISIBLE_CLASS = (
    r"\u00AD\u061C\u200B-\u200F\u202A-\u202E\u2060-\u206F\uFEFF\uD800-\uDFFF\x00-\x08\x0E-\x1B\x7F-\x84\x86-\x9F"
)
_SPACE_CLASS = r"\t\r\x0B\x0C\x1C-\x1F\x85\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"
# Letters that only look like the Azerbaijani ones, and are right among their own.
_LOOKALIKES = str.maketrans(
    "әаекорсхуіһјѕӘАВЕКМНОРСТХУІҺЈЅ" + "οΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",  # Cyrillic, Greek
    "əaekopcxyihjsƏABEKMHOPCTXYIHJS" + "oABEZHIKMNOPTYX",
)
_SCHWAS = str.maketrans("әӘ", "əƏ")
# What sends a text to the slow half of `normalise`; accents, since sorting a heap of them takes the square of its size.
_ODD = re.compile(f"[{_INVISIBLE_CLASS}{_SPACE_CLASS}ǝƎ\u0300-\u052f]")
_INVISIBLE, _ODD_SPACES = (
    frozenset(re.findall(f"[{characters}]", "".join(map(chr, range(0x10000)))))
    for characters in (_INVISIBLE_CLASS, _SPACE_CLASS)
)
_LINE_BREAKS = frozenset("\u0085\u2028\u2029")
_FEW = 8  # characters that are replaced one after the other rather than by a regular expression
_FOREIGN = re.compile("[\u0370-\u052f]")
_FOREIGN_LETTER = re.compile(r"(?=[\u0370-\u052f])\w")
# Accents belong to the word: they may become a part of the letter before them once that is repaired. A match begins at
# the start of a word, so that the time is linear in the length of the text.
_WORD_WITH_FOREIGN_LETTER = re.compile(
    r"(?<![\w\u0300-\u036F\u0483-\u0489])(?:[^\W\u0370-\u052F]++|[\u0300-\u036F]++)*+"
    r"(?=[\u0370-\u052F])[\w\u0483-\u0489][\w\u0300-\u036F\u0483-\u0489]*+"
)
_DOTTED_I = re.compile("i\u0307+")
# Nobody writes so many accents on one letter, and sorting them takes the square of their number.
_ACCENT = re.compile("[\u0300-\u036f]")
_HEAP_OF_ACCENTS = re.compile("([\u0300-\u036f]{30})[\u0300-\u036f]+")
_LATIN = re.compile(r"[A-Za-zÀ-ɏƏə]")
_SPACE = re.compile("[ \n]")
_LINE_ENDS = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass
class Documents:
    """Cleaned documents by column: ids, texts, content hashes, the side of the split, and words (by white space)."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    validation: list[bool] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class CleaningReport:
    """Counts of one collection: records in, kept, dropped by reason; words and characters kept."""

    documents: int = 0
    kept: int = 0
    validation: int = 0
    words: int = 0
    characters: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    first_malformed: str = ""  # where it stands and what is wrong with it


def clean(records: Records, settings: Cleaning, report: CleaningReport) -> Documents:
    """The documents that stay, in the order of the records; `report` counts them and why the others go."""
    report.documents += len(records)
    report.dropped["malformed"] += len(records.malformed)
    if records.malformed and not report.first_malformed:
        report.first_malformed = records.malformed[0]
    kept = Documents()
    for identity, raw in zip(records.ids, records.texts, strict=True):
        text = normalise(raw or "")
        flat = text.replace("\n\n", " ").replace("\n", " ")
        words = flat.count(" ") + 1
        if not text:
            report.dropped["empty"] += 1
        elif words < settings.min_words:
            report.dropped["short"] += 1
        else:
            digest = content_hash(flat)
            kept.ids.append(identity)
            kept.texts.append(text)
            kept.hashes.append(digest)
            kept.validation.append(is_validation(digest, settings.validation_fraction))
            kept.words.append(words)
    stays = are_azerbaijani(kept.texts, settings.min_latin, settings.min_schwa)
    report.dropped["language"] += len(kept) - int(stays.sum())
    if not stays.all():
        kept = _only(kept, stays)
    report.kept += len(kept)
    report.validation += sum(kept.validation)
    report.words += sum(kept.words)
    report.characters += sum(map(len, kept.texts))
    return kept


def normalise(text: str) -> str:
    """The text in NFC, with look-alike letters repaired, invisible characters dropped and spaces made plain.

    Spaces become single, lines lose the spaces at their ends, and at most one blank line stands in a row.
    """
    if _ODD.search(text) or not unicodedata.is_normalized("NFC", text):
        text = _repair(text)
    while "  " in text:  # a run of n spaces is gone after log n turns
        text = text.replace("  ", " ")
    if " \n" in text or "\n " in text:
        text = _LINE_ENDS.sub("\n", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


def are_azerbaijani(texts: list[str], min_latin: float, min_schwa: float) -> np.ndarray:
    """Which texts are Azerbaijani in Latin script, by their letters: bool (texts,).

    At least `min_latin` of a text's letters are Latin, and at least `min_schwa` of those are ə: about one in eleven is
    in Azerbaijani, and none in Turkish, English or the other Latin-script languages of a crawl.
    """
    letters, latin, schwas = letter_counts(texts)
    # Quotients, not products: 7 / 100 is the number that 0.07 stands for, 0.07 * 100 is more than 7.
    return (latin > 0) & (latin / np.maximum(letters, 1) >= min_latin) & (schwas / np.maximum(latin, 1) >= min_schwa)


def letter_counts(texts: list[str]) -> np.ndarray:
    """The letters, Latin letters and ə of each text: int64 (3, texts)."""
    counts = np.zeros((3, len(texts)), dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    ends = list(itertools.accumulate(map(len, texts), initial=0))
    kinds = _letter_kinds()[codes]
    for row, bit in enumerate((1, 2, 4)):
        found = kinds & bit != 0
        counts[row] = [np.count_nonzero(found[start:end]) for start, end in itertools.pairwise(ends)]
    return counts


def content_hash(flat: str) -> bytes:
    """A hash of a text whose words stand a space apart; equal hashes make exact duplicates."""
    return hashlib.blake2b(flat.encode(), digest_size=HASH_BYTES).digest()


def is_validation(digest: bytes, fraction: float) -> bool:
    """Whether a document is held out: its hash, read as a number in [0, 1), lies below the fraction."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _repair(text: str) -> str:
    """The slow half of `normalise`, for texts in which something odd stands."""
    text = _nfc(text.replace("\r\n", "\n").replace("\r", "\n"))
    odd = set(_ODD.findall(text))
    if not odd.isdisjoint(_INVISIBLE):
        text = _nfc(_replace_all(text, odd & _INVISIBLE, ""))
    text = _replace_all(text, odd & _LINE_BREAKS, "\n")
    text = _replace_all(text, odd & _ODD_SPACES, " ")
    text = text.replace("ǝ", "ə").replace("Ǝ", "Ə")
    if _FOREIGN.search(text):
        text = _nfc(_repair_words(text))
    # Lower-casing İ the English way leaves i and a combining dot, which no Azerbaijani word has.
    return _nfc(_DOTTED_I.sub("i", text)) if "i\u0307" in text else text


def _replace_all(text: str, characters: set[str], by: str) -> str:
    if len(characters) > _FEW:
        return re.sub(f"[{re.escape(''.join(characters))}]", by, text)
    for character in characters:
        text = text.replace(character, by)
    return text


def _nfc(text: str) -> str:
    # Cut before, for the time; and after, since some marks come apart into two. Both are rare, and cheap to rule out.
    if _ACCENT.search(text) and _HEAP_OF_ACCENTS.search(text):
        text = _HEAP_OF_ACCENTS.sub(r"\1", text)
        return _HEAP_OF_ACCENTS.sub(r"\1", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", text)


def _repair_words(text: str) -> str:
    """Look-alikes repaired in the words around foreign letters, the rest of the text not looked at."""
    pieces: list[str] = []
    done = 0
    for foreign in _FOREIGN.finditer(text):
        at = foreign.start()
        if at >= done:
            start = max(done, text.rfind(" ", done, at) + 1, text.rfind("\n", done, at) + 1)
            space = _SPACE.search(text, at)
            end = space.start() if space else len(text)
            pieces += (text[done:start], _WORD_WITH_FOREIGN_LETTER.sub(_to_latin, text[start:end]))
            done = end
    return "".join([*pieces, text[done:]])


def _to_latin(word: re.Match[str]) -> str:
    if not _LATIN.search(word[0]):
        return word[0]
    translated = word[0].translate(_LOOKALIKES)
    # A word that keeps foreign letters is broken in another way, and half a repair would hide it. The schwa is certain.
    return word[0].translate(_SCHWAS) if _FOREIGN_LETTER.search(translated) else translated


def _only(documents: Documents, stays: np.ndarray) -> Documents:
    chosen = np.flatnonzero(stays).tolist()
    return Documents(**{name: [column[i] for i in chosen] for name, column in vars(documents).items()})


@functools.cache
def _letter_kinds() -> np.ndarray:
    """For each code point: 1 a letter, 2 a Latin letter, 4 ə; uint8."""
    characters = [chr(point) for point in range(0x110000)]
    letter = np.fromiter(map(str.isalpha, characters), dtype=np.uint8, count=len(characters))
    latin = np.zeros_like(letter)
    for first, last in (("A", "Z"), ("a", "z"), ("À", "ɏ"), ("ə", "ə")):
        latin[ord(first) : ord(last) + 1] = 2
    kinds = letter | latin * letter  # × and ÷ stand among the Latin letters and are none
    kinds[[ord("ə"), ord("Ə")]] |= 4
    return kinds
