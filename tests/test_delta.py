"""Delta debugging finds what is needed and nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regional_inductor.delta import smallest_failing


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))
    )
)
def test_items_that_are_needed_together_are_found_exactly(case):
    count, needed = case
    assert smallest_failing(range(count), lambda part: needed <= set(part)) == tuple(sorted(needed))


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_of_what_is_found_no_item_can_be_left_out(count, seed):
    """Also where failing isn't monotone: any subset may fail or not, by a hash."""

    def fails(part):
        part = tuple(part)
        return len(part) == count or hash((seed, part)) % 3 == 0

    found = smallest_failing(range(count), fails)
    assert len(found) == 1 or not any(
        fails([other for other in found if other != item]) for item in found
    )
    assert fails(found) or len(found) == count


@pytest.mark.parametrize("count", [2, 16, 100, 1000])
def test_one_culprit_takes_as_many_tests_as_halving(count):
    for culprit in {0, count // 3, count - 1}:
        tests = []

        def fails(part, culprit=culprit, tests=tests):
            tests.append(part)
            return culprit in part

        assert smallest_failing(range(count), fails) == (culprit,)
        assert len(tests) <= 2 * math.ceil(math.log2(count))


def test_what_cannot_be_told_is_not_taken_for_a_failure():
    found = smallest_failing(range(4), lambda part: True if len(part) == 4 else None)
    assert found == (0, 1, 2, 3)


def test_nothing_is_tested_twice():
    tests = []

    def fails(part):
        tests.append(tuple(part))
        return {1, 6} <= set(part)

    assert smallest_failing(range(8), fails) == (1, 6)
    assert len(tests) == len(set(tests))
