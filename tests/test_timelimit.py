"""A time limit stops Python code, reports itself, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import sys
import time

import pytest

from regional_inductor.timelimit import TimeLimitError, time_limit


def spin(limit):
    with time_limit(limit):
        while True:
            time.sleep(0.001)


def test_code_that_takes_too_long_is_stopped():
    with pytest.raises(TimeLimitError, match=r"longer than 0\.05 s"):
        spin(0.05)


def test_code_within_its_time_is_left_alone():
    with time_limit(60):
        value = sum(range(1000))
    assert value == 499500


def test_no_limit_is_no_limit():
    with time_limit(None):
        pass


def test_an_error_of_the_code_itself_is_passed_on():
    def divide():
        with time_limit(60):
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        divide()


def test_code_that_swallows_the_exception_still_fails():
    def swallowing():
        with time_limit(0.02), contextlib.suppress(Exception):
            while True:
                time.sleep(0.001)

    with pytest.raises(TimeLimitError):
        swallowing()


def test_nothing_arrives_after_the_block():
    for _ in range(20):
        with contextlib.suppress(TimeLimitError), time_limit(0.001):
            time.sleep(0.001)
    for _ in range(100):
        time.sleep(0.0001)


def test_a_profiler_goes_on_after_a_limit_was_reached():
    """CPython 3.11 hangs under a profile function if an exception on its way is taken back."""
    with contextlib.suppress(TimeLimitError):
        spin(0.01)
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    try:
        sorted([3, 1, 2], key=lambda value: -value)
    finally:
        sys.setprofile(None)
    assert calls
