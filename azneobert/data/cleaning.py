"""Cleans the text of documents before it is tokenized, and drops documents.

Each step here, except the removal of repeated lines, depends only on the document's own text. So other documents change
neither what happens to a document nor its side of the train/validation split. Duplicates are found later, over all
collections at once (data/duplicates.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from azneobert.data.documents import HASH_BYTES, Documents
from azneobert.data.languages import find_language
from azneobert.data.letters import Letters, are_of, count_letters, is_mixed, scripts_of, why_not
from azneobert.data.lines import RepeatedLines, is_looked_at
from azneobert.data.markup import find_html, strip_html
from azneobert.data.records import Records
from azneobert.data.repair import repair_of
from azneobert.language import Language
from azneobert.recipe import Cleaning

DROP_REASONS = ("malformed", "empty", "short", "language")  # html, script and lines join them where they may drop
EXAMPLES = 3  # of each kind in a report
_SHOWN = 80  # characters of an example


@dataclass
class CleaningReport:
    """Counts of one collection: records in, kept, dropped by reason; words and characters kept.

    `html` counts the documents with a tag or an entity. `scripts` counts, for each script, the documents with most of
    their letters in it, and among them the mixed ones, with less than 90% of their letters in it. `lines` counts the
    lines examined, and the copies among them beyond the tolerated number of documents; if repeated lines are only
    reported, both are estimates from one document in eight. `examples` are the first ones of each kind, a line each.
    """

    documents: int = 0
    kept: int = 0
    validation: int = 0
    words: int = 0
    characters: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    first_malformed: str = ""  # where it stands and what is wrong with it
    html: int = 0
    scripts: dict[str, dict[str, int]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=lambda: {"seen": 0, "repeated": 0})
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count documents that are dropped."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def wants(self, kind: str) -> bool:
        """Whether there is room for another example of a kind."""
        return len(self.examples.get(kind, ())) < EXAMPLES

    def show(self, kind: str, identity: str, text: str, why: str) -> None:
        """Take a document as an example of a kind: its id, its beginning, and what is there to say about it."""
        example = f"{identity}: {' '.join(text[:_SHOWN].split())} ({why})"
        self.examples.setdefault(kind, []).append(example.encode("utf-8", "replace").decode())


def clean(
    records: Records, settings: Cleaning, report: CleaningReport, lines: RepeatedLines | None = None
) -> Documents:
    """The documents that are kept, in the order of the records; `report` counts them, and the dropped ones by reason.

    `lines` knows the lines of the documents before these; without it repeated lines are not looked for.
    """
    report.documents += len(records)
    report.drop("malformed", len(records.malformed))
    if records.malformed and not report.first_malformed:
        report.first_malformed = records.malformed[0]
    repair = repair_of(settings.language)
    kept = Documents()
    for identity, raw in zip(records.ids, records.texts, strict=True):
        if raw and ("<" in raw or "&" in raw):  # nine texts in ten contain neither and skip this
            raw = _without_html(identity, raw, settings, report)
            if raw is None:
                continue
        text = repair(raw or "")
        flat = _flat(text)
        words = flat.count(" ") + 1
        if not text:
            report.drop("empty")
        elif words < settings.min_words:
            report.drop("short")
        else:
            digest = content_hash(flat)
            _append(kept, identity, text, digest, is_validation(digest, settings.validation_fraction), words)
    kept = _of_the_language(kept, settings, report)
    if lines is not None:
        kept = _without_repeated_lines(kept, settings, report, lines)
    report.kept += len(kept)
    report.validation += sum(kept.validation)
    report.words += sum(kept.words)
    report.characters += sum(map(len, kept.texts))
    return kept


def content_hash(flat: str) -> bytes:
    """A hash of a text whose words are separated by single spaces; equal hashes mean exact duplicates."""
    return hashlib.blake2b(flat.encode(), digest_size=HASH_BYTES).digest()


def is_validation(digest: bytes, fraction: float) -> bool:
    """Whether a document is held out: its hash, read as a number in [0, 1), lies below the fraction."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _without_html(identity: str, raw: str, settings: Cleaning, report: CleaningReport) -> str | None:
    """The text as the recipe wants it, or None if the document is dropped."""
    found = find_html(raw)
    if found is None:
        return raw
    report.html += 1
    if report.wants("html"):
        report.show("html", identity, raw[found.start() :], f"holds {found[0][:20]!r}")
    if settings.html == "drop":
        report.drop("html")
        return None
    return strip_html(raw) if settings.html == "strip" else raw


def _of_the_language(kept: Documents, settings: Cleaning, report: CleaningReport) -> Documents:
    """The documents that are of the recipe's language and in one of its scripts."""
    if not len(kept):
        return kept
    language = find_language(settings.language)
    letters = count_letters(kept.texts, language)
    stays = _in_a_script(kept, letters, language, settings, report)
    if language is not None:
        of_it = are_of(letters, language)
        foreign = np.flatnonzero(stays & ~of_it).tolist()
        report.drop("language", len(foreign))
        for at in foreign[:EXAMPLES]:
            if report.wants("language"):
                report.show("language", kept.ids[at], kept.texts[at], why_not(letters, at, language))
        stays &= of_it
    return kept if stays.all() else _only(kept, np.flatnonzero(stays).tolist())


def _in_a_script(
    kept: Documents, letters: Letters, language: Language | None, settings: Cleaning, report: CleaningReport
) -> np.ndarray:
    """Count the scripts, and return which documents are in a script that the recipe wants: bool (documents,)."""
    wanted = settings.scripts
    main, others = scripts_of(letters, language)
    stays = np.full(len(kept), not wanted or main in wanted)
    if main is not None and len(others) < len(kept):
        _count_script(report, main, len(kept) - len(others))
    for at, script, share in others:
        _count_script(report, script, 1, mixed=script != "none" and is_mixed(share))
        stays[at] = not wanted or script in wanted
        if (script != main or not stays[at]) and report.wants(f"{script} script"):
            report.show(f"{script} script", kept.ids[at], kept.texts[at], f"{share:.1%} of its letters")
    report.drop("script", len(kept) - int(np.count_nonzero(stays)))
    return stays


def _count_script(report: CleaningReport, script: str, count: int, mixed: bool = False) -> None:
    row = report.scripts.setdefault(script, {"documents": 0, "mixed": 0})
    row["documents"] += count
    row["mixed"] += count if mixed else 0


def _without_repeated_lines(
    kept: Documents, settings: Cleaning, report: CleaningReport, lines: RepeatedLines
) -> Documents:
    """Count the lines of the documents, and take the surplus copies away if the recipe says so.

    A document of one line is left to the search for duplicates.
    """
    copies = settings.line_copies
    if settings.repeated_lines == "report":
        for text, digest in zip(kept.texts, kept.hashes, strict=True):
            if is_looked_at(digest) and "\n" in text:
                _count_lines(report, *lines.count(text, copies))
        return kept
    stays = Documents()
    for identity, text, digest, validation, words in zip(*vars(kept).values(), strict=True):
        fewer, seen, repeated = lines.drop(text, copies) if "\n" in text else (text, 0, 0)
        _count_lines(report, seen, repeated)
        if not repeated:
            _append(stays, identity, text, digest, validation, words)
            continue
        text = repair_of(settings.language)(fewer)
        flat = _flat(text)
        words = flat.count(" ") + 1
        if text and words >= settings.min_words:
            digest = content_hash(flat)
            _append(stays, identity, text, digest, is_validation(digest, settings.validation_fraction), words)
        else:
            report.drop("lines")
    return stays


def _count_lines(report: CleaningReport, seen: int, repeated: int) -> None:
    report.lines["seen"] += seen
    report.lines["repeated"] += repeated


def _flat(text: str) -> str:
    """A repaired text with its words separated by single spaces."""
    return text.replace("\n\n", " ").replace("\n", " ")


def _append(kept: Documents, identity: str, text: str, digest: bytes, validation: bool, words: int) -> None:
    kept.ids.append(identity)
    kept.texts.append(text)
    kept.hashes.append(digest)
    kept.validation.append(validation)
    kept.words.append(words)


def _only(documents: Documents, chosen: list[int]) -> Documents:
    return Documents(**{name: [column[i] for i in chosen] for name, column in vars(documents).items()})
