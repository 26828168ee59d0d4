"""The repair of a text. It is the same for all languages, except for what a language sets, such as its look-alikes.

`Repair` prepares the training texts; `tokenizer_steps` is the part of it that an exported model's tokenizer can do.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import cast

from azneobert.data.languages import BUILT_IN, SCRIPTS, ranges, script_of
from azneobert.language import Language, LanguageName, expand_letters

# Zero-width characters, directional marks and isolates, soft hyphen, byte order mark, control characters but tab and
# newline. The two joiners are among them (U+200C and U+200D), and may be kept.
_INVISIBLE_CLASS = (
    r"\u00AD\u061C\u200B-\u200F\u202A-\u202E\u2060-\u206F\uFEFF\u0000-\u0008\u000E-\u001B\u007F-\u0084\u0086-\u009F"
)
_SURROGATE_CLASS = r"\uD800-\uDFFF"  # halves of pairs, which no file can hold
_SPACE_CLASS = r"\t\r\u000B\u000C\u001C-\u001F\u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"
_INVISIBLE, _ODD_SPACES = (
    frozenset(re.findall(f"[{characters}]", "".join(map(chr, range(0x10000)))))
    for characters in (_INVISIBLE_CLASS + _SURROGATE_CLASS, _SPACE_CLASS)
)
_LINE_BREAKS = frozenset("\u0085\u2028\u2029")
_JOINERS = frozenset("\u200c\u200d")
# Arabic, Syriac, the scripts of India and its neighbours, Khmer, Mongolian: a joiner behind such a letter is spelling.
_JOINED_CLASS = r"\u0620-\u085F\u0870-\u0EFF\u1000-\u109F\u1780-\u18AF\uA840-\uA8FF\uFB50-\uFDFF\uFE70-\uFEFC"
_LOOSE_JOINER = f"(?<![{_JOINED_CLASS}])[\u200c\u200d]"
_FEW = 8  # characters that are replaced one after the other rather than by a regular expression
_DOTTED_I = re.compile("i\u0307+")
# Nobody writes so many accents on one letter, and the time to sort them is quadratic in their number.
_ACCENT_CLASS = "\u0300-\u036f"
_ACCENT = re.compile(f"[{_ACCENT_CLASS}]")
_HEAP_OF_ACCENTS = re.compile(f"([{_ACCENT_CLASS}]{{30}})[{_ACCENT_CLASS}]+")
_MARK_CLASS = r"\u0300-\u036F\u0483-\u0489"  # Accents of Latin, Greek and Cyrillic, which belong to the word.
_SPACE = re.compile("[ \n]")
_LINE_ENDS = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")


class Repair:
    """Repairs texts: NFC, look-alike letters, invisible characters and spaces."""

    def __init__(self, language: Language | None):
        self._replace = list(language.replace.items()) if language else []
        self._dotted_i = language is not None and language.dotted_i
        self._drops_joiners = language is not None and not language.joiners
        self._words = _Words(language) if language and language.lookalikes else None
        odd = _INVISIBLE_CLASS + _SURROGATE_CLASS + _SPACE_CLASS
        # Characters that send a text to `_repair`; also accents, since the time to sort a heap of them is quadratic.
        odd += _ACCENT_CLASS + "".join(map(_escaped, (found for found, _ in self._replace)))
        if self._words:
            odd += self._words.foreign_class + r"\u0483-\u0489"
        self._odd = re.compile(f"[{odd}]")
        self._loose_joiner = re.compile(_LOOSE_JOINER)

    def __call__(self, text: str) -> str:
        """The text in NFC, with look-alike letters repaired, invisible characters dropped and spaces made plain.

        Spaces become single, lines lose the spaces at their ends, and at most one blank line stands in a row.
        """
        if self._odd.search(text) or not unicodedata.is_normalized("NFC", text):
            text = self._repair(text)
        while "  " in text:  # a run of n spaces is gone after log n turns
            text = text.replace("  ", " ")
        if " \n" in text or "\n " in text:
            text = _LINE_ENDS.sub("\n", text)
        if "\n\n\n" in text:
            text = _BLANK_LINES.sub("\n\n", text)
        return text.strip()

    def _repair(self, text: str) -> str:
        """The slow path, for texts that hold something odd."""
        text = _nfc(text.replace("\r\n", "\n").replace("\r", "\n"))
        odd = set(self._odd.findall(text))
        if not odd.isdisjoint(_INVISIBLE):
            invisible = odd & _INVISIBLE
            if not self._drops_joiners and not odd.isdisjoint(_JOINERS):
                text = _replace_all(text, invisible - _JOINERS, "")
                text, invisible = self._loose_joiner.sub("", text), set()
            text = _nfc(_replace_all(text, invisible, ""))
        text = _replace_all(text, odd & _LINE_BREAKS, "\n")
        text = _replace_all(text, odd & _ODD_SPACES, " ")
        for found, meant in self._replace:
            text = text.replace(found, meant)
        if self._words and self._words.foreign.search(text):
            text = _nfc(self._words.repaired(text))
        elif self._replace:
            text = _nfc(text)
        # Lower-casing İ the English way leaves i and a combining dot, which no word of such a language has.
        return _nfc(_DOTTED_I.sub("i", text)) if self._dotted_i and "i\u0307" in text else text


class _Words:
    """Repairs look-alikes inside the words that hold a letter of the language."""

    def __init__(self, language: Language):
        own = expand_letters(language.letters)
        scripts = {script_of(found) for found in language.lookalikes}
        # Nobody types polytonic Greek or old Cyrillic by mistake, so they are left out.
        runs = [run for name in scripts for run in SCRIPTS.get(name, ()) if run[0] < 0x1C80 or name == "latin"]
        points = {chr(point) for first, last in runs for point in range(first, last + 1)}
        self.foreign_class = _class((points | set(language.lookalikes)) - own)
        foreign, marks = self.foreign_class, _MARK_CLASS
        self.foreign = re.compile(f"[{foreign}]")
        self._own = re.compile(f"[{_class(own)}]")
        self._foreign_letter = re.compile(rf"(?=[{foreign}])\w")
        # Accents belong to the word: they may combine with the letter before them once it is repaired. A match
        # begins at the start of a word, so that the time is linear in the length of the text.
        self._word = re.compile(
            rf"(?<![\w{marks}])(?:[^\W{foreign}]++|[{_ACCENT_CLASS}]++)*+"
            rf"(?=[{foreign}])[\w\u0483-\u0489][\w{marks}]*+"
        )
        self._lookalikes = str.maketrans(language.lookalikes)
        self._certain = str.maketrans({found: language.lookalikes[found] for found in language.certain})

    def repaired(self, text: str) -> str:
        """The text with look-alikes repaired in the words around foreign letters; the rest is not looked at."""
        pieces: list[str] = []
        done = 0
        for foreign in self.foreign.finditer(text):
            at = foreign.start()
            if at >= done:
                start = max(done, text.rfind(" ", done, at) + 1, text.rfind("\n", done, at) + 1)
                space = _SPACE.search(text, at)
                end = space.start() if space else len(text)
                pieces += (text[done:start], self._word.sub(self._repaired_word, text[start:end]))
                done = end
        return "".join([*pieces, text[done:]])

    def _repaired_word(self, word: re.Match[str]) -> str:
        if not self._own.search(word[0]):
            return word[0]
        translated = word[0].translate(self._lookalikes)
        # A word that keeps foreign letters is broken in another way, and half a repair would hide it.
        return word[0].translate(self._certain) if self._foreign_letter.search(translated) else translated


def normalise(text: str, language: LanguageName | Language = "azeri_latin") -> str:
    """One text, repaired."""
    return repair_of(language)(text)


def repair_of(setting: LanguageName | Language) -> Repair:
    """The repair of a language, made once."""
    return _repair_of(setting if isinstance(setting, str) else setting.model_dump_json())


@functools.lru_cache(maxsize=16)
def _repair_of(setting: str) -> Repair:
    """`setting` is a name, or the JSON of a block, since a block with tables in it is not hashable."""
    is_block = setting.startswith("{")
    return Repair(Language.model_validate_json(setting) if is_block else BUILT_IN[cast(LanguageName, setting)])


def tokenizer_steps(language: Language | None) -> list[tuple[str, str]]:
    """The repair as pairs of a regular expression and its replacement; an empty expression stands for NFC.

    The expressions are in the dialect of `tokenizers`, and leave a repaired text as it is. They are few, since each is
    applied to the whole text. Three repairs are left out. Look-alikes stay, since they depend on the word around them.
    White space at the ends of a text stays, as a space or newline: a normalizer sees the piece between two special
    tokens, and the space after a [MASK] is not an end. And heaps of more than 30 marks on one letter are not cut.
    """
    joined = language is None or language.joiners
    invisible = _INVISIBLE_CLASS.replace(r"\u200B-\u200F", r"\u200B\u200E\u200F") if joined else _INVISIBLE_CLASS
    steps = [(r"\r\n|[\r\u0085\u2028\u2029]", "\n"), (f"[{invisible}]+", "")]
    steps += [(_LOOSE_JOINER, "")] if joined else []
    # Runs of spaces come before line ends: in the other order, a long run would be read again from each position.
    steps += [(f" [ {_SPACE_CLASS}]+|[{_SPACE_CLASS}][ {_SPACE_CLASS}]*", " ")]
    steps += [(r" ?(?:\n ?){3,}", "\n\n"), (r" \n ?|\n ", "\n"), ("", "")]
    if language and (language.replace or language.dotted_i):
        steps += [(_escaped_for_tokenizers(found), meant) for found, meant in language.replace.items()]
        steps += [("(?<=i)\u0307+", "")] if language.dotted_i else []  # so that the i keeps its place in the text
        steps += [("", "")]
    return steps


def _escaped_for_tokenizers(character: str) -> str:
    return f"\\x{{{ord(character):X}}}"


def _replace_all(text: str, characters: set[str], by: str) -> str:
    if len(characters) > _FEW:
        return re.sub(f"[{re.escape(''.join(characters))}]", by, text)
    for character in characters:
        text = text.replace(character, by)
    return text


def _nfc(text: str) -> str:
    # Cut before NFC to save time, and after it since it splits some marks in two. Both are rare and cheap to rule out.
    if _ACCENT.search(text) and _HEAP_OF_ACCENTS.search(text):
        text = _HEAP_OF_ACCENTS.sub(r"\1", text)
        return _HEAP_OF_ACCENTS.sub(r"\1", unicodedata.normalize("NFC", text))
    return unicodedata.normalize("NFC", text)


def _class(characters: Iterable[str]) -> str:
    """The inside of a character class, as code points, so that no character has a special meaning."""
    return "".join(f"{_escaped(chr(a))}-{_escaped(chr(b))}" for a, b in ranges(set(characters)))


def _escaped(character: str) -> str:
    return f"\\U{ord(character):08X}"
