"""The n-gram of both neighbours, against dictionaries that are filled token by token."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from azneobert.bench import neighbours
from azneobert.bench.masked import framed
from azneobert.bench.neighbours import HIDDEN, Neighbours, Places

VOCAB_SIZE = 9
Triple = tuple[int, int, int]  # left, token, right


def places(triples: list[Triple]) -> Places:
    return Places(*np.asarray(triples, dtype=np.int64).T)


def text(count: int, seed: int) -> list[Triple]:
    """Tokens of which each depends on the one before it, some of their neighbours hidden."""
    numbers = np.random.default_rng(seed)
    tokens = [0]
    for _ in range(count + 1):
        tokens.append(int((tokens[-1] + numbers.geometric(0.5)) % (VOCAB_SIZE - 1)))  # the last one is never seen
    hidden = numbers.random(count + 2) < 0.2
    seen = [HIDDEN if hide else token for token, hide in zip(tokens, hidden, strict=True)]
    return [(seen[at - 1], tokens[at], seen[at + 1]) for at in range(1, count + 1)]


class Dictionaries:
    """The same model, of one token at a time."""

    def __init__(self, counted: list[Triple], fitted: list[Triple]):
        self.tables: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(3)]
        self.unigram = Counter(token for _, token, _ in counted)
        for left, token, right in counted:
            for table, context in zip(self.tables, self.contexts(left, right), strict=True):
                if HIDDEN not in context:
                    table[context][token] += 1
        self.weights: dict[tuple[int, ...], list[float]] = {}
        for _ in range(neighbours._ROUNDS):
            used: dict[tuple[int, ...], list[list[float]]] = defaultdict(list)
            for left, token, right in fitted:
                parts = self.parts(left, token, right)
                shares = [w * p for w, p in zip(self.weights_of(left, right), parts, strict=True)]
                used[self.levels(left, right)].append([share / sum(shares) for share in shares])
            for levels, found in used.items():
                one = [int(level > 0) for level in levels] + [1]
                sums = [sum(column) + more for column, more in zip(zip(*found, strict=True), one, strict=True)]
                self.weights[levels] = [each / sum(sums) for each in sums]

    @staticmethod
    def contexts(left: int, right: int) -> list[tuple[int, ...]]:
        return [(left, right), (left,), (HIDDEN - 1, right)]

    def seen(self, left: int, right: int) -> list[int]:
        pairs = zip(self.tables, self.contexts(left, right), strict=True)
        return [table[context].total() if context in table else 0 for table, context in pairs]

    def levels(self, left: int, right: int) -> tuple[int, ...]:
        return tuple(sum(total >= bound for bound in (1, 4, 16, 64)) for total in self.seen(left, right))

    def weights_of(self, left: int, right: int) -> list[float]:
        levels = self.levels(left, right)
        usable = [*(level > 0 for level in levels), True]
        return self.weights.get(levels, [each / sum(usable) for each in usable])

    def parts(self, left: int, token: int, right: int) -> list[float]:
        rows = zip(self.tables, self.contexts(left, right), self.seen(left, right), strict=True)
        parts = [table[context][token] / total if total else 0.0 for table, context, total in rows]
        return [*parts, (self.unigram[token] + 1) / (self.unigram.total() + VOCAB_SIZE)]

    def distribution(self, left: int, right: int) -> list[float]:
        weights = self.weights_of(left, right)
        return [
            sum(w * p for w, p in zip(weights, self.parts(left, token, right), strict=True))
            for token in range(VOCAB_SIZE)
        ]


@pytest.fixture(scope="module")
def fitted() -> Neighbours:
    model = Neighbours(places(text(400, 1)), VOCAB_SIZE)
    model.fit(places(text(100, 2)))
    return model


def test_it_is_what_dictionaries_say(fitted: Neighbours) -> None:
    slow = Dictionaries(text(400, 1), text(100, 2))
    assert {levels[0] for levels in slow.weights} >= {0, 1, 2, 3}
    for left in range(HIDDEN, VOCAB_SIZE):
        for right in range(HIDDEN, VOCAB_SIZE):
            expected = slow.distribution(left, right)
            assert fitted.distribution(left, right) == pytest.approx(np.asarray(expected), rel=1e-9)


def test_the_vocabulary_has_all_of_the_probability_whether_contexts_were_seen_or_not(fitted: Neighbours) -> None:
    for model in (fitted, Neighbours(places(text(400, 1)), VOCAB_SIZE)):
        for left in range(HIDDEN, VOCAB_SIZE):
            for right in range(HIDDEN, VOCAB_SIZE):
                probabilities = model.distribution(left, right)
                assert probabilities.sum() == pytest.approx(1, abs=1e-12)
                assert probabilities.min() > 0


def test_scores_are_those_of_the_distribution(fitted: Neighbours) -> None:
    tried = text(60, 3)
    losses, hits = fitted.score(places(tried))
    for (left, token, right), loss, hit in zip(tried, losses, hits, strict=True):
        probabilities = fitted.distribution(left, right)
        assert loss == pytest.approx(-np.log(probabilities[token]))
        assert hit == (probabilities.argmax() == token)
    assert 0 < hits.mean() < 1


def test_a_pattern_without_exceptions_costs_next_to_nothing() -> None:
    cycle = [np.arange(3, 53)] * 200
    pattern = framed(cycle, 50, 0, 1)
    model = Neighbours(pattern, 60)
    model.fit(framed(cycle, 50, 0, 1))
    losses, hits = model.score(framed(cycle[:1], 50, 0, 1))
    assert losses.max() < 0.02
    assert hits.all()


def test_fitting_makes_the_sample_likelier() -> None:
    sample = places(text(300, 2))
    model = Neighbours(places(text(400, 1)), VOCAB_SIZE)
    before = model.score(sample)[0].mean()
    model.fit(sample)
    assert model.score(sample)[0].mean() < before


def test_a_hidden_neighbour_is_drawn_as_often_as_asked_and_the_others_stay() -> None:
    all_seen = Places(*np.full((3, 20_000), 5, dtype=np.int64))
    hidden = all_seen.hiding(0.2, np.random.default_rng(1))
    for side in (hidden.left, hidden.right):
        assert set(side.tolist()) == {5, HIDDEN}
        assert (side == HIDDEN).mean() == pytest.approx(0.2, abs=0.02)
    assert (hidden.tokens == 5).all()


def test_long_documents_are_cut_where_rows_cut_them() -> None:
    found = framed([np.asarray([5, 6, 7]), np.asarray([8])], 2, 0, 1)
    assert found.left.tolist() == [0, 5, 0, 0]
    assert found.tokens.tolist() == [5, 6, 7, 8]
    assert found.right.tolist() == [6, 1, 1, 1]
