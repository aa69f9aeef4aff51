"""collect: which nodes carry which mark, and which entry of the marked scope made them."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from support.graphs import capture, marked, with_id, with_options
from support.stages import after, collected_text

import regional_inductor as ri
from regional_inductor import RegionWarning


@ri.region("double")
def double(x):
    return (x + x) * 1.0


def test_each_call_of_a_marked_function_is_an_entry():
    def fn(x, y):
        return double(x).sin(), double(y)

    gm = capture(fn, torch.ones(4), torch.ones(4))
    assert_expected_inline(
        collected_text(after("collect", gm)),
        """\
graph (outermost):
  add: double, entry 0, forward
  mul: double, entry 0, forward
  add_1: double, entry 1, forward
  mul_1: double, entry 1, forward""",
    )


def test_pytorchs_marks_are_told_apart_by_what_lies_between():
    def fn(x):
        with marked():
            y = x.sin().cos()
        y = y.exp()
        with marked():
            return y.tanh()

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        collected_text(after("collect", gm)),
        """\
graph (outermost):
  sin: -, entry 0, forward
  cos: -, entry 0, forward
  tanh: -, entry 1, forward""",
    )


def test_options_and_ids_are_read_and_the_innermost_mark_wins():
    def fn(x):
        with with_options(max_autotune=True):
            y = x.sin()
            with with_id("tail"):
                y = y.cos()
            with ri.eager():
                y = y.exp()
        return y

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        collected_text(after("collect", gm)),
        """\
graph (outermost):
  sin: -, entry 0, forward, {'max_autotune': True}
  cos: -, entry 1, forward, id 'tail'""",
    )


def test_a_selection_from_a_tuple_follows_its_producer():
    def fn(x):
        with marked():
            pair = torch.ops.aten.sort.default(x)
        return pair[0] + 1, pair[1]

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        collected_text(after("collect", gm)),
        """\
graph (outermost):
  sort: -, entry 0, forward
  getitem: -, entry 0, forward
  getitem_1: -, entry 0, forward""",
    )


def test_bodies_come_before_the_graph_that_calls_them_and_inputs_are_never_marked():
    def fn(x):
        def then(v):
            with marked():
                return v.sin()

        y = torch.cond(x.sum() > 0, then, lambda v: v.cos(), (x,))
        with marked():
            return y + x

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        collected_text(after("collect", gm)),
        """\
graph true_graph_0:
  sin: -, entry 0, forward
graph (outermost):
  add: -, entry 0, forward""",
    )


def test_a_misspelt_key_is_reported_once():
    def fn(x):
        with torch.fx.traceback.annotate({"compile_with_inducter": 0}):
            return x.sin().cos()

    gm = capture(fn, torch.ones(4))
    with pytest.warns(RegionWarning, match="compile_with_inducter"):
        collected = after("collect", gm)
    assert_expected_inline(
        collected_text(collected),
        """misspelt: the annotation key 'compile_with_inducter' looks misspelt and marks nothing""",
    )
