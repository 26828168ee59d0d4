"""Lines that many documents of a collection share, such as a site's menu: found in one pass and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

_SAMPLE = 8  # if lines are only reported, one document in this many is looked at
_LONGEST = 1000  # characters of a line; a longer one that repeats is a text of its own
_MOST_LINES = 1 << 14  # that are remembered from part to part


@dataclass
class RepeatedLines:
    """Counts the documents that hold each line, by lossy counting (Manku and Motwani 2002), one part at a time.

    Within a part every line is counted. At its end, a line is forgotten if its count is at most the number of parts
    since the line was first seen. So a count is never too high, and too low by at most the number of parts: a line in
    `copies` documents or fewer is never taken for boilerplate, and one in more than `copies` + parts always is, as long
    as no more than 16,384 lines repeat so often. The fields are plain JSON, so that an ingest can continue from them.
    """

    parts: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)  # how many parts had ended when a line was first seen

    def drop(self, text: str, copies: int) -> tuple[str, int, int]:
        """Count a text's lines; returns the text without copies beyond the `copies`-th, its lines, and how many go."""
        lines = text.split("\n")
        for line in dict.fromkeys(lines):
            if 0 < len(line) <= _LONGEST:
                self.counts[line] = self.counts.get(line, 0) + 1
        stay = [line for line in lines if self.counts.get(line, 0) <= copies]
        return ("\n".join(stay) if len(stay) < len(lines) else text), len(lines), len(lines) - len(stay)

    def count(self, text: str, copies: int) -> tuple[int, int]:
        """Count the lines of a sampled text; returns estimates of all lines, and of copies beyond the `copies`-th."""
        counts, most, beyond = self.counts, copies / _SAMPLE, 0
        lines = text.split("\n")
        for line in dict.fromkeys(lines):
            if 0 < len(line) <= _LONGEST:
                counts[line] = found = counts.get(line, 0) + 1
                beyond += found > most
        return len(lines) * _SAMPLE, beyond * _SAMPLE

    def end_part(self) -> None:
        """Forget the lines that are too rare; an ingest calls this wherever it could be resumed."""
        first = self.parts
        self.parts += 1
        stays = [
            (line, count) for line, count in self.counts.items() if count + self.missed.get(line, first) > self.parts
        ]
        if len(stays) > _MOST_LINES:
            stays = sorted(stays, key=lambda entry: (-entry[1], entry[0]))[:_MOST_LINES]
        self.missed = {line: self.missed.get(line, first) for line, _ in stays}
        self.counts = dict(stays)

    def most_frequent(self, copies: int, sampled: bool, number: int) -> list[str]:
        """The lines that stand in more than `copies` documents, the most frequent first, in a few words each."""
        by = _SAMPLE if sampled else 1
        found = sorted((-count * by, line) for line, count in self.counts.items() if count * by > copies)
        about = "about " if sampled else ""
        return [f"in {about}{-count:,} documents: {line[:80]}" for count, line in found[:number]]


def is_looked_at(digest: bytes) -> bool:
    """Whether a document with this content hash is in the sample that is looked at if lines are only reported."""
    return digest[8] % _SAMPLE == 0
