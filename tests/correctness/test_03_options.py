"""Point 3: options apply exactly where they were written.

PyTorch's pass gives the first region's options to all regions that it merges, silently.
"""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_like_eager, assert_same, assert_trains_like_eager
from support.graphs import capture, mark_nodes, marked, with_id, with_options
from support.under_test import regions_with

# Options that change nothing in the result and are not the default.
A = {"max_fusion_size": 7}
B = {"max_fusion_size": 9, "epilogue_fusion": False}
C = {"triton.cudagraphs": False, "realize_reads_threshold": 3}


def options_of(seen, op):
    """The options of the one region that holds an op, less what was not asked for."""
    (region,) = regions_with(seen, op)
    asked = {**A, **B, **C}
    return {key: value for key, value in region.options.items() if key in asked}


def adjacent(x):
    with with_options(**A):
        y = x.sin()
    with with_options(**B):
        y = y.tanh()
    return y + 1


def adjacent_the_other_way_round(x):
    with with_options(**B):
        y = x.sin()
    with with_options(**A):
        y = y.tanh()
    return y + 1


def unconnected(x):
    with with_options(**A):
        a = x.sin()
    with with_options(**B):
        b = x.tanh()
    return a + b


def separated(x):
    with with_options(**A):
        y = x.sin()
    y = y.cos()
    with with_options(**B):
        y = y.tanh()
    return y + 1


def one_has_none(x):
    with marked():
        y = x.sin()
    with with_options(**B):
        y = y.tanh()
    return y + 1


EXPECTED = [
    (adjacent, A, B),
    (adjacent_the_other_way_round, B, A),
    (unconnected, A, B),
    (separated, A, B),
    (one_has_none, {}, B),
]
by_layout = pytest.mark.parametrize(
    ("fn", "of_sin", "of_tanh"), EXPECTED, ids=[case[0].__name__ for case in EXPECTED]
)


@by_layout
def test_each_region_gets_its_own_options(under_test, fn, of_sin, of_tanh):
    with under_test.watch() as seen:
        assert_like_eager(under_test.compile(fn), fn, torch.randn(4))
    assert options_of(seen, "sin") == of_sin
    assert options_of(seen, "tanh") == of_tanh


@by_layout
def test_on_a_make_fx_graph_where_the_pass_merges_all_it_can(under_test, fn, of_sin, of_tanh):
    x = torch.randn(4)
    with under_test.watch() as seen:
        assert_same(under_test.run(capture(fn, x), x), fn(x))
    assert options_of(seen, "sin") == of_sin
    assert options_of(seen, "tanh") == of_tanh


@pytest.mark.inductor
@by_layout
def test_options_in_effect_while_inductor_compiles(under_test, fn, of_sin, of_tanh):
    with under_test.watch() as seen:
        assert_like_eager(under_test.compile(fn), fn, torch.randn(4))
    of_sin = {k: v for k, v in of_sin.items() if k != "triton.cudagraphs"}
    assert options_of(seen, "sin") == of_sin
    assert options_of(seen, "tanh") == of_tanh


def test_innermost_options_win_and_are_not_mixed_with_the_outer_ones(under_test):
    def fn(x):
        with with_options(**A):
            y = x.sin()
            with with_options(**C):
                y = y.tanh()
            y = y.exp()
        return y + 1

    with under_test.watch() as seen:
        assert_like_eager(under_test.compile(fn), fn, torch.randn(4))
    assert options_of(seen, "sin") == A
    assert options_of(seen, "tanh") == C
    assert options_of(seen, "exp") == A


def test_backward_of_a_region_has_the_options_of_its_forward(under_test):
    with under_test.watch() as seen:
        compiled = under_test.compile(separated)
        assert_trains_like_eager(compiled, separated, torch.randn(4, requires_grad=True))
    with_a = [r for r in seen if r.options.get("max_fusion_size") == 7]
    with_b = [r for r in seen if r.options.get("max_fusion_size") == 9]
    assert len(with_a) >= 2
    assert len(with_b) >= 2
    # d tanh(y) is made of 1 - tanh(y)**2, d sin(x) of cos(x): neither in the other's region.
    assert not regions_with(with_b, "sin")
    assert not regions_with(with_a, "tanh")
    assert not regions_with(with_a, "tanh_backward")


def test_options_in_a_branch_of_cond(under_test):
    def fn(x):
        def true(x):
            with with_options(**A):
                return x.sin()

        def false(x):
            with with_options(**B):
                return x.tanh()

        return torch.cond(x.sum() > 0, true, false, (x,)) + 1

    with under_test.watch() as seen:
        compiled = under_test.compile(fn)
        for x in (torch.ones(3), -torch.ones(3)):
            assert_like_eager(compiled, fn, x)
    assert options_of(seen, "sin") == A
    assert options_of(seen, "tanh") == B


def test_equal_options_in_another_order_are_the_same_options(under_test):
    x = torch.randn(4)
    first = {"inductor_configs": {"max_fusion_size": 9, "epilogue_fusion": False}}
    second = {"inductor_configs": {"epilogue_fusion": False, "max_fusion_size": 9}}
    gm = capture(lambda x: x.sin().tanh() + 1, x)
    mark_nodes(gm, first, "sin")
    mark_nodes(gm, second, "tanh")
    with under_test.watch() as seen:
        under_test.apply(gm, x)
    assert len(seen) == 1


def test_true_and_one_are_different_values_of_an_option(under_test):
    """True == 1 in Python; as values of an option of type int they must not make regions equal."""
    x = torch.randn(4)
    gm = capture(lambda x: x.sin().tanh() + 1, x)
    mark_nodes(gm, {"inductor_configs": {"epilogue_fusion": True}}, "sin")
    mark_nodes(gm, {"inductor_configs": {"epilogue_fusion": False}}, "tanh")
    with under_test.watch() as seen:
        under_test.apply(gm, x)
    assert len(seen) == 2


def test_regions_with_options_that_differ_are_two_compiles(under_test, ri):
    """The same graph under other options is other work: the key tells them apart."""

    def fn(x):
        with with_options(**A):
            y = x.sin()
        y = y.cos()
        with with_options(**B):
            y = y.sin()
        return y.cos()

    under_test.compile(fn)(torch.randn(4))
    first, second = ri.last_report().regions
    assert first.key != second.key


def test_regions_with_equal_graphs_and_options_are_one_compile(under_test, ri):
    def fn(x):
        with with_options(**A):
            y = x.sin()
        y = y.cos()
        with with_options(**A):
            y = y.sin()
        return y.cos()

    under_test.compile(fn)(torch.randn(4))
    first, second = ri.last_report().regions
    assert first.key == second.key


def test_one_id_with_different_options_is_an_error(under_test, ri):
    def fn(x):
        with with_id("attention", **A):
            y = x.sin()
        y = y.cos()
        with with_id("attention", **B):
            return y.tanh()

    x = torch.randn(4)
    with pytest.raises(ValueError, match="attention") as caught:
        under_test.apply(capture(fn, x), x)
    assert isinstance(caught.value, ri.RegionError)
    assert "max_fusion_size" in str(caught.value)


def test_one_id_with_and_without_options_is_an_error(under_test, ri):
    x = torch.randn(4)
    gm = capture(lambda x: x.sin().tanh() + 1, x)
    mark_nodes(gm, {"inductor_region": "attention"}, "sin")
    mark_nodes(gm, {"inductor_region": "attention", "inductor_configs": A}, "tanh")
    with pytest.raises(ri.RegionError, match="attention"):
        under_test.apply(gm, x)


def test_ids_of_equal_options_stay_apart(under_test):
    def fn(x):
        with with_id("one", **A):
            y = x.sin()
        with with_id("two", **A):
            y = y.tanh()
        return y + 1

    x = torch.randn(4)
    with under_test.watch() as seen:
        assert_same(under_test.run(capture(fn, x), x), fn(x))
    (with_sin,), (with_tanh,) = regions_with(seen, "sin"), regions_with(seen, "tanh")
    assert with_sin is not with_tanh


def test_defaults_of_the_backend_are_overridden_by_a_region(under_test, ri):
    def fn(x):
        with with_options(max_fusion_size=7):
            y = x.sin()
        y = y.cos()
        with marked():
            y = y.tanh()
        return y + 1

    with under_test.watch() as seen:
        compiled = under_test.compile(fn, max_fusion_size=5, epilogue_fusion=False)
        assert_like_eager(compiled, fn, torch.randn(4))
    assert options_of(seen, "sin") == {"max_fusion_size": 7, "epilogue_fusion": False}
    assert options_of(seen, "tanh") == {"max_fusion_size": 5, "epilogue_fusion": False}


def test_options_written_with_ri_region(under_test, ri):
    def fn(x):
        with ri.region("first", options=A):
            y = x.sin()
        with ri.region("second", options=B):
            y = y.tanh()
        return y + 1

    with under_test.watch() as seen:
        assert_like_eager(under_test.compile(fn), fn, torch.randn(4))
    assert options_of(seen, "sin") == A
    assert options_of(seen, "tanh") == B
    assert {region.name for region in ri.last_report().regions} == {"first", "second"}


@pytest.mark.inductor
def test_inductors_config_is_as_before_afterwards(under_test):
    from torch._inductor import config

    before = config.get_config_copy()
    assert_like_eager(under_test.compile(adjacent), adjacent, torch.randn(4))
    assert config.get_config_copy() == before


@pytest.mark.inductor
def test_inductors_config_is_as_before_after_a_failure(under_test, monkeypatch):
    from torch._inductor import config

    def fail(*args, **kwargs):
        raise RuntimeError("no compiler today")

    before = config.get_config_copy()
    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    x = torch.randn(4)
    with pytest.raises(RuntimeError, match="no compiler today"):
        under_test.apply(capture(adjacent, x), x)
    assert config.get_config_copy() == before
