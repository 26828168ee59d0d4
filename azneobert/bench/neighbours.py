"""A language model of counts that sees both neighbours of a token. A useful masked model has to beat it.

p(t | left, right) is a mixture of how often t stands between these two, after the left one, before the right one, and
at all: Jelinek-Mercer interpolation (Chen and Goodman, ACL 1996, 2.4). The weights depend on how often the contexts
were seen. A neighbour that is masked itself is hidden: it is -1, which is no context of any table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from azneobert.bench.prose import unigram_shares

HIDDEN = -1
_ROUNDS = 20  # of EM; on text of the sample corpus the loss no longer changes after 10
_LEVELS = 5  # of how often a context was seen: 0, 1 to 3, 4 to 15, 16 to 63, or more


@dataclass(frozen=True)
class Places:
    """Tokens and the neighbours of each, `HIDDEN` where a neighbour is masked too: int64 (M,) each."""

    left: np.ndarray
    tokens: np.ndarray
    right: np.ndarray

    def hiding(self, rate: float, numbers: np.random.Generator) -> Places:
        """The same tokens, each neighbour hidden with probability `rate`, the masking rate."""
        left, right = (
            np.where(numbers.random(len(side)) < rate, HIDDEN, side).astype(np.int64)
            for side in (self.left, self.right)
        )
        return Places(left, self.tokens, right)


class Continuations:
    """How often each token stands in each context, by sorted keys: context * V + token. `HIDDEN` is no context."""

    def __init__(self, contexts: np.ndarray, tokens: np.ndarray, vocab_size: int):
        self._vocab_size = vocab_size
        keys = contexts * vocab_size + tokens
        self._keys, counts = np.unique(keys[contexts != HIDDEN], return_counts=True)
        self._sums = np.concatenate([[0], np.cumsum(counts)])

    def totals(self, contexts: np.ndarray) -> np.ndarray:
        """How often these contexts (M,) were seen at all: int64 (M,)."""
        first, end = self._bounds(contexts)
        totals: np.ndarray = self._sums[end] - self._sums[first]
        return totals

    def counts(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """How often these tokens (M,) were seen in these contexts (M,): int64 (M,)."""
        keys = contexts * self._vocab_size + tokens
        first, end = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
        counts: np.ndarray = self._sums[end] - self._sums[first]
        return counts

    def after(self, context: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that were seen in a context, ascending, and the share of each."""
        first, end = self._bounds(np.asarray(context))
        counts = np.diff(self._sums[first : end + 1])
        return self._keys[first:end] - context * self._vocab_size, counts / max(counts.sum(), 1)

    def _bounds(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys = contexts * self._vocab_size
        return np.searchsorted(self._keys, keys), np.searchsorted(self._keys, keys + self._vocab_size)


class Neighbours:
    """The model: counts of one text, and weights fitted to another text."""

    def __init__(self, counted: Places, vocab_size: int):
        self._vocab_size = vocab_size
        self._unigram = unigram_shares(np.bincount(counted.tokens, minlength=vocab_size))
        self._tables = [Continuations(each, counted.tokens, vocab_size) for each in self._contexts(counted)]
        seen = np.stack(np.unravel_index(np.arange(_LEVELS**3), (_LEVELS,) * 3), axis=1) > 0
        self._usable = np.concatenate([seen, np.ones((_LEVELS**3, 1), dtype=bool)], axis=1)
        self._weights = self._usable / self._usable.sum(1, keepdims=True)

    def fit(self, places: Places) -> None:
        """Set the weights by EM so that these tokens are likeliest, with one use added to each table's count of uses.

        So a table that did not help on the sample keeps a little weight, and no token gets probability zero.
        """
        groups, parts = self._groups(places), self._parts(places)
        for _ in range(_ROUNDS):
            used = self._weights[groups] * parts
            used /= used.sum(1, keepdims=True)
            sums = [np.bincount(groups, column, minlength=len(self._weights)) for column in used.T]
            found = np.stack(sums, axis=1) + self._usable
            self._weights = found / found.sum(1, keepdims=True)

    def distribution(self, left: int, right: int) -> np.ndarray:
        """The probability of each token (V,) between these two."""
        one = Places(*(np.asarray([each], dtype=np.int64) for each in (left, 0, right)))
        return self._mixed([int(each[0]) for each in self._contexts(one)], int(self._groups(one)[0]))

    def score(self, places: Places) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each token in nats, (M,), and whether the token is the likeliest one, (M,)."""
        losses, hits = np.empty(len(places.tokens)), np.empty(len(places.tokens), dtype=bool)
        contexts = np.stack(self._contexts(places), axis=1).tolist()
        for number, (group, token) in enumerate(zip(self._groups(places), places.tokens, strict=True)):
            probabilities = self._mixed(contexts[number], group)
            losses[number] = -np.log(probabilities[token])
            hits[number] = probabilities.argmax() == token
        return losses, hits

    def _mixed(self, contexts: list[int], group: int) -> np.ndarray:
        *weights, least = self._weights[group]
        probabilities: np.ndarray = least * self._unigram
        for table, context, weight in zip(self._tables, contexts, weights, strict=True):
            tokens, shares = table.after(context)
            probabilities[tokens] += weight * shares
        return probabilities

    def _contexts(self, places: Places) -> list[np.ndarray]:
        """The contexts of each table: both neighbours as one number, the left one, the right one."""
        hidden = (places.left == HIDDEN) | (places.right == HIDDEN)
        return [np.where(hidden, HIDDEN, places.left * self._vocab_size + places.right), places.left, places.right]

    def _groups(self, places: Places) -> np.ndarray:
        """The number of the weights that each place uses (M,), from how often each of its contexts was seen."""
        pairs = zip(self._tables, self._contexts(places), strict=True)
        levels = np.stack([_level(table.totals(contexts)) for table, contexts in pairs])
        groups: np.ndarray = np.ravel_multi_index(tuple(levels), (_LEVELS,) * 3)
        return groups

    def _parts(self, places: Places) -> np.ndarray:
        """The probability of each token by each table alone, and last by the unigram: (M, 4)."""
        parts = [
            table.counts(contexts, places.tokens) / np.maximum(table.totals(contexts), 1)
            for table, contexts in zip(self._tables, self._contexts(places), strict=True)
        ]
        return np.stack([*parts, self._unigram[places.tokens]], axis=1)


def _level(totals: np.ndarray) -> np.ndarray:
    return np.searchsorted(4 ** np.arange(_LEVELS - 1), totals, side="right")
