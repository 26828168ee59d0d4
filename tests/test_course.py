"""From a step to samples, tokens and micro-batches."""

from __future__ import annotations

import pytest
from toy import toy_recipe

from azneobert.course import Course


def test_a_phase_from_its_beginning_is_multiplication() -> None:
    course = Course(8, 32)
    assert (course.samples(5), course.tokens(5)) == (40, 1280)
    assert list(course.steps(2, 5)) == [16, 24, 32]


def test_a_phase_that_changed_its_batch_goes_on_behind_what_it_has_seen() -> None:
    # 100 steps of 8 rows, then 16 rows.
    phase = toy_recipe().phase1.model_copy(update={"global_batch": 16})
    course = Course.through(phase, 100, 800, 800 * 32)
    assert course.first_sample == -800
    assert (course.samples(100), course.samples(103)) == (800, 848)
    assert (course.tokens(100), course.tokens(103)) == (25_600, 848 * 32)
    assert list(course.steps(100, 102)) == [800, 816]


@pytest.mark.parametrize(("carried", "first"), [(0, 0), (5000, 5000)])
def test_a_phase_may_begin_behind_the_samples_of_the_one_before(carried: int, first: int) -> None:
    course = Course.through(toy_recipe().phase2, 0, carried, 0)
    assert course.samples(0) == first
    assert course.tokens(1) == 4 * 64
