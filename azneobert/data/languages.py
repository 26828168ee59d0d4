"""The languages that a recipe can name, and what is known of scripts. Any other language is a block in the recipe."""

from __future__ import annotations

from azneobert.language import Language, LanguageName, ScriptName

# The code points of a script's letters, first and last. A letter in none of them is of the script `other`.
SCRIPTS: dict[ScriptName, tuple[tuple[int, int], ...]] = {
    "latin": (
        *((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0x2AF), (0x1D00, 0x1DBF), (0x1E00, 0x1EFF)),
        *((0x2C60, 0x2C7F), (0xA720, 0xA7FF), (0xAB30, 0xAB6F), (0xFB00, 0xFB06), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    ),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "armenian": ((0x531, 0x58F), (0xFB13, 0xFB17)),
    "hebrew": ((0x591, 0x5FF), (0xFB1D, 0xFB4F)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "bengali": ((0x980, 0x9FF),),
    "thai": ((0xE01, 0xE5B),),
    "georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "han": ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
}

_CYRILLIC_AND_GREEK = dict(
    zip(
        "аекорсхуіһјѕАВЕКМНОРСТХУІҺЈЅ" + "οΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
        "aekopcxyihjsABEKMHOPCTXYIHJS" + "oABEZHIKMNOPTYX",
        strict=True,
    )
)
_AZERI_LATIN = Language(
    name="azeri_latin",
    letters="A-Za-zÀ-ɏƏə",
    min_share=0.7,
    # One letter in eleven is ə in Azerbaijani, and none in Turkish, English or the other languages of a crawl.
    must="əƏ",
    min_must_share=0.02,
    lookalikes={**_CYRILLIC_AND_GREEK, "ә": "ə", "Ә": "Ə"},
    certain="әӘ",
    replace={"ǝ": "ə", "Ǝ": "Ə"},
    dotted_i=True,
    joiners=False,
)
_TURKISH = Language(
    name="turkish",
    letters="A-Za-zÀ-ɏə",
    min_share=0.7,
    # Turkish has ç, ö and ü too, but so have German and French: if they count, a German sentence had 4.9% and a Turkish
    # one 2.3%. If they do not, a Turkish sentence has at least 2.1% and a median of 7.4%, and the others have none.
    must="ığşİ",
    min_must_share=0.02,
    # Azerbaijani has all of these letters. One in ten of its letters is a schwa, which Turkish does not have.
    must_not="əә",
    max_must_not_share=0.01,
    lookalikes=_CYRILLIC_AND_GREEK,
    dotted_i=True,
    joiners=False,
)
BUILT_IN: dict[LanguageName, Language | None] = {"azeri_latin": _AZERI_LATIN, "turkish": _TURKISH, "any": None}


def find_language(setting: LanguageName | Language) -> Language | None:
    """The language that `data.cleaning.language` names, None for `any`."""
    return setting if isinstance(setting, Language) else BUILT_IN[setting]


def both_cases(letters: str) -> set[str]:
    """The letters, and their other case if it belongs to them alone: not I for ı, since I is the capital of i."""
    other = {letter.upper() if letter.islower() else letter.lower() for letter in letters}
    return set(letters) | {letter for letter in other if letter.lower() in letters or letter.upper() in letters}


def script_of(letter: str) -> ScriptName:
    """The script that a letter belongs to."""
    point = ord(letter)
    return next((name for name, runs in SCRIPTS.items() if any(a <= point <= b for a, b in runs)), "other")


def ranges(characters: set[str]) -> list[tuple[int, int]]:
    """Characters as code points, first and last of each run, in ascending order."""
    found: list[tuple[int, int]] = []
    for point in sorted(map(ord, characters)):
        if found and found[-1][1] == point - 1:
            found[-1] = (found[-1][0], point)
        else:
            found.append((point, point))
    return found
