"""Errors and warnings: what, where, and the way out, as text."""

from __future__ import annotations

import pickle

import pytest

from regional_inductor.errors import (
    ConflictError,
    MarkError,
    MissingValueError,
    OptionError,
    RegionCompileError,
    RegionError,
    RegionWarning,
    did_you_mean,
    warn,
)

KINDS = [ConflictError, MarkError, MissingValueError, OptionError, RegionCompileError]


def test_a_message_says_what_where_and_the_way_out():
    error = RegionError("it failed", region="mlp", source="model.py:3", hint="try again")
    assert str(error) == ("it failed\n  region: mlp\n  marked at: model.py:3\n  way out: try again")


def test_unknown_parts_leave_no_empty_line():
    assert str(RegionError("it failed", hint="try again")) == "it failed\n  way out: try again"
    assert str(RegionError("it failed")) == "it failed"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_region_error_and_survives_pickling_with_its_parts(kind):
    error = kind("it failed", region="mlp", source="model.py:3", hint="try again")
    copied = pickle.loads(pickle.dumps(error))
    assert isinstance(error, RegionError)
    assert type(copied) is kind
    assert str(copied) == str(error)
    assert (copied.what, copied.region, copied.source, copied.hint) == (
        "it failed",
        "mlp",
        "model.py:3",
        "try again",
    )


@pytest.mark.parametrize("kind", [ConflictError, MarkError, OptionError])
def test_mistakes_of_the_user_are_value_errors(kind):
    assert issubclass(kind, ValueError)


def test_a_warning_has_the_same_shape_and_points_at_the_caller():
    with pytest.warns(RegionWarning) as caught:
        warn("no effect", region="mlp", hint="spell it right", stacklevel=1)
    assert str(caught[0].message) == "no effect\n  region: mlp\n  way out: spell it right"
    assert caught[0].filename == __file__


def test_a_hint_names_near_words_or_falls_back():
    assert did_you_mean("colour", ["color", "size"]) == "did you mean 'color'?"
    assert did_you_mean("xyz", ["color"], "see the list") == "see the list"
