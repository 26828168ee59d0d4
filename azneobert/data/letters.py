"""Which language and which script a text is in, by its letters."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from azneobert.data.languages import SCRIPTS, both_cases, find_language, script_of
from azneobert.language import Language, LanguageName, ScriptName, expand_letters

_PURE = 0.9  # a text with at least this share of one script is not mixed
_FIRST = 256  # characters by which the script of a text is guessed, before it is counted
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Letters:
    """Counts for each text: letters, letters of the language, and letters that speak for and against the language.

    `counts` is int64 (4, texts). Without a language only letters are counted.
    """

    counts: np.ndarray
    codes: np.ndarray  # uint32: the code points of all texts, one after the other
    ends: list[int]

    def shares(self) -> np.ndarray:
        """Shares: own letters among all, `must` among own letters, `must_not` among all: float (3, texts)."""
        letters, own, must, must_not = self.counts
        # Quotients, not products: 7 / 100 equals the float 0.07, but 0.07 * 100 is more than 7.
        letters, among = np.maximum(letters, 1), np.maximum(own, 1)
        return np.stack([own / letters, must / among, must_not / letters])


def count_letters(texts: list[str], language: Language | None) -> Letters:
    """Count the letters of each text."""
    counts = np.zeros((4, len(texts)), dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    ends = list(itertools.accumulate(map(len, texts), initial=0))
    kinds = _kinds(language.model_dump_json() if language else None)[codes]
    for row, looked_for in enumerate(_looked_for(language)):
        if looked_for:
            found = kinds & (1 << row) != 0
            counts[row] = [np.count_nonzero(found[start:end]) for start, end in itertools.pairwise(ends)]
    return Letters(counts, codes, ends)


def are_of(letters: Letters, language: Language) -> np.ndarray:
    """Which texts are of the language: bool (texts,)."""
    own, must, must_not = letters.shares()
    least, most = language, language.max_must_not_share
    enough = (letters.counts[1] > 0) & (own >= least.min_share) & (must >= least.min_must_share)
    return enough & (must_not <= most) if most < 1 else enough


def why_not(letters: Letters, text: int, language: Language) -> str:
    """What speaks against one text, in a few words."""
    own, must, must_not = letters.shares()[:, text]
    if not letters.counts[1, text] or own < language.min_share:
        return f"{own:.1%} of its letters are of {language.name}, at least {language.min_share:.1%} expected"
    if must < language.min_must_share:
        return f"{must:.1%} of its letters are among {language.must}, at least {language.min_must_share:.1%} expected"
    most = f"at most {language.max_must_not_share:.1%} expected"
    return f"{must_not:.1%} of its letters are among {language.must_not}, {most}"


def scripts_of(letters: Letters, language: Language | None) -> tuple[ScriptName | None, list[tuple[int, str, float]]]:
    """The script of a language, and the texts that are not almost entirely in that script.

    Each such text is given as its index, the script of most of its letters ("none" if it has no letters), and their
    share. A language of two scripts has no script of its own, and then all texts are given.
    """
    main = _main_script(language.letters) if language else None
    unsure = np.flatnonzero(letters.shares()[0] < _PURE) if main else range(letters.counts.shape[1])
    names, table = _script_table()
    others: list[tuple[int, str, float]] = []
    for at in map(int, unsure):
        total = int(letters.counts[0, at])
        scripts = table[letters.codes[letters.ends[at] : letters.ends[at + 1]]]
        # The first letters mostly tell which script it is, and counting one script is faster than counting all.
        most = int(np.bincount(scripts[:_FIRST], minlength=len(names) + 1)[1:].argmax())
        count = int(np.count_nonzero(scripts == most + 1))
        if count < _PURE * total:
            sums = np.bincount(scripts, minlength=len(names) + 1)[1:]
            most, count = int(sums.argmax()), int(sums.max())
        others.append((at, names[most], count / total) if total else (at, "none", 0.0))
    return main, others


def is_mixed(share: float) -> bool:
    """Whether a text is mixed, given the share of its letters that are in its most frequent script."""
    return share < _PURE


def letter_counts(texts: list[str], language: LanguageName | Language = "azeri_latin") -> np.ndarray:
    """The letters of each text, those of the language, and those that it must and must not have: int64 (4, texts)."""
    return count_letters(texts, find_language(language)).counts


def _looked_for(language: Language | None) -> tuple[bool, bool, bool, bool]:
    if language is None:
        return True, False, False, False
    return True, True, bool(language.must), bool(language.must_not)


@functools.lru_cache(maxsize=16)
def _kinds(language: str | None) -> np.ndarray:
    """Bits for each code point (uint8): 1 a letter, 2 a letter of the language, 4 of `must`, 8 of `must_not`."""
    characters = [chr(point) for point in range(_CODE_POINTS)]
    letter = np.fromiter(map(str.isalpha, characters), dtype=np.uint8, count=_CODE_POINTS)
    kinds = letter.copy()
    if language is not None:
        read = Language.model_validate_json(language)
        sets = (expand_letters(read.letters), both_cases(read.must), both_cases(read.must_not))
        for bit, chosen in zip((2, 4, 8), sets, strict=True):
            points = np.array(sorted(map(ord, chosen)), dtype=np.int64)
            kinds[points] |= bit * letter[points]  # × and ÷ stand among the Latin letters but are not letters
    return kinds


@functools.lru_cache(maxsize=16)
def _main_script(letters: str) -> ScriptName | None:
    """The script of all letters of a language, None if it has more than one."""
    scripts = {script_of(letter) for letter in expand_letters(letters) if letter.isalpha()}
    return scripts.pop() if len(scripts) == 1 else None


@functools.cache
def _script_table() -> tuple[list[ScriptName], np.ndarray]:
    """The scripts, and for each code point (uint8) 0 if it is no letter, else the index of its script plus one."""
    names: list[ScriptName] = [*SCRIPTS, "other"]
    characters = map(chr, range(_CODE_POINTS))
    letter = np.fromiter(map(str.isalpha, characters), dtype=np.uint8, count=_CODE_POINTS)
    table = np.full(_CODE_POINTS, len(names), dtype=np.uint8)
    for place, runs in enumerate(SCRIPTS.values(), start=1):
        for first, last in runs:
            table[first : last + 1] = place
    return names, table * letter
