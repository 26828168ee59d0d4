"""A language by its letters, as a recipe names or describes it; data/languages.py has those that can be named."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from azneobert.settings import Block, Fraction, first_error

LanguageName = Literal["azeri_latin", "turkish", "any"]
# fmt: off
ScriptName = Literal[
    "latin", "greek", "cyrillic", "armenian", "hebrew", "arabic", "devanagari", "bengali", "thai", "georgian", "hangul",
    "kana", "han", "other",
]
# fmt: on


class Language(Block):
    """A language by its letters: which texts are of it, and what is repaired in them.

    For a language that data/languages.py does not have, a recipe says in `data.cleaning`:

        language:
          name: kazakh_cyrillic
          letters: "А-Яа-яЁёӘәҒғҚқҢңӨөҰұҮүҺһІі"
          must: "әғқңөұүһі"
          min_must_share: 0.02
          lookalikes: {"a": "а", "o": "о", "c": "с", "i": "і", "h": "һ"}

    Then a text stays if at least 70% of its letters (`min_share`) are among `letters`, and at least 2% of those are
    among `must`, which Russian does not have. And "бaла", whose second letter is a Latin one, becomes "бала", while
    "Microsoft" stays: only words that hold one of `letters`, and that the look-alikes make whole, are repaired.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9_-]{1,40}$")]
    letters: str  # as they are written, "A-Za-zƏə" with ranges; a hyphen that is meant stands first or last
    min_share: Fraction = 0.7  # of a text's letters that are among `letters`
    must: str = ""  # letters that mark the language; their other case too, if it is theirs alone (not I for ı)
    min_must_share: Fraction = 0.0  # of the letters among `letters` that are among `must`
    must_not: str = ""  # letters that speak against it, both cases
    max_must_not_share: Fraction = 1.0  # of all of a text's letters
    lookalikes: dict[str, str] = Field(default_factory=dict)  # a letter of another script: the one that was meant
    certain: str = ""  # look-alikes that are repaired even in a word that keeps other letters of their script
    replace: dict[str, str] = Field(default_factory=dict)  # a character: what it becomes, in any word
    dotted_i: bool = False  # whether an i with a combining dot is an i: what lower-casing İ the English way leaves
    joiners: bool = True  # whether zero-width joiners stay behind letters that are spelled with them (Persian, Hindi)

    @model_validator(mode="after")
    def _letters_can_be_counted(self) -> Language:
        if not self.letters:
            raise ValueError("letters: is empty; expected letters and ranges such as A-Za-z, or `language: any`")
        own = expand_letters(self.letters)
        # Combining marks are parts of letters and cannot be counted alone.
        for name, letters in (("letters", own), ("must", set(self.must)), ("must_not", set(self.must_not))):
            odd = sorted(character for character in letters if not character.isalpha())
            # A range may run over a few signs, as À-ɏ does over × and ÷: they are no letters, and do not count.
            if odd and (name != "letters" or any(character in odd for character in _ends(self.letters))):
                raise ValueError(f"{name}: found {odd[0]!r}; expected letters")
        if missing := sorted(set(self.must) - own):
            raise ValueError(f"must: {missing[0]!r} is not among `letters`; expected it there too")
        if both := sorted(set(self.must) & set(self.must_not)):
            raise ValueError(f"must_not: {both[0]!r} stands in `must` too; expected it in one of the two")
        for name, share, default in (
            ("must", self.min_must_share, 0.0),
            ("must_not", self.max_must_not_share, 1.0),
        ):
            if share != default and not getattr(self, name):
                raise ValueError(f"{name}: is empty, but its share is {share}; expected letters, or no share")
        return self

    @model_validator(mode="after")
    def _repairs_end(self) -> Language:
        own = expand_letters(self.letters)
        for name, table in (("lookalikes", self.lookalikes), ("replace", self.replace)):
            for found, meant in table.items():
                if len(found) != 1 or len(meant) != 1:
                    raise ValueError(f"{name}: found {found!r}: {meant!r}; expected one character for one")
                if not found.isalpha() or not meant.isalpha() or found == meant:
                    raise ValueError(f"{name}: found {found!r}: {meant!r}; expected a letter for another one")
                if name == "replace" and not unicodedata.is_normalized("NFD", found):
                    raise ValueError(f"replace: {found!r} is a letter with a mark; expected one that stands for itself")
                if meant in table:
                    raise ValueError(f"{name}: {meant!r} is repaired itself; expected the letter that is meant")
        for found, meant in self.lookalikes.items():
            if found in own or meant not in own:
                problem = f"{found!r} is one of `letters`" if found in own else f"{meant!r} is none of `letters`"
                raise ValueError(f"lookalikes: {problem}; expected a foreign letter: one of `letters`")
        if crossing := sorted(set(self.replace) & set(self.lookalikes.values())):
            raise ValueError(f"replace: {crossing[0]!r} is what a look-alike becomes; expected one of the two")
        if unknown := sorted(set(self.certain) - set(self.lookalikes)):
            raise ValueError(f"certain: {unknown[0]!r} is none of `lookalikes`; expected letters that stand there")
        return self


def expand_letters(letters: str) -> set[str]:
    """The characters of a list with ranges, such as "A-Za-z"; a hyphen at either end is a hyphen.

    Raises:
        ValueError: a range ends before it begins.
    """
    found: set[str] = set()
    place = 0
    while place < len(letters):
        first = last = letters[place]
        if letters[place + 1 : place + 2] == "-" and place + 2 < len(letters):
            last = letters[place + 2]
            place += 2
        if last < first:
            raise ValueError(f"letters: found the range {f'{first}-{last}'!r}; expected {f'{last}-{first}'!r}")
        found.update(map(chr, range(ord(first), ord(last) + 1)))
        place += 1
    return found


def _ends(letters: str) -> set[str]:
    """The characters that are written in a list with ranges, without those that the ranges fill in."""
    return {c for at, c in enumerate(letters) if c != "-" or at in (0, len(letters) - 1)}


def name_or_block(value: Any) -> Any:
    """A block as `Language`, anything else as it is; an error stands in one line, not in one for each alternative."""
    if isinstance(value, Language):
        return value
    if isinstance(value, dict):
        try:
            return Language.model_validate(value)
        except ValidationError as error:
            raise ValueError(first_error(error)) from None
    if value not in get_args(LanguageName):
        names = ", ".join(get_args(LanguageName))
        raise ValueError(f"found {value!r}; expected one of {names}, or a block with `name`, `letters` and shares")
    return value
