"""Point 4: ids that are convex one by one and cyclic together.

PyTorch's pass partitions each id alone and then fails with "found dependency cycles" (on a third
of random graphs with two ids).
"""

from __future__ import annotations

import operator

import pytest
import torch
from support.compare import assert_like_eager, assert_same, assert_trains_like_eager
from support.graphs import calls, capture, mark_nodes, random_graph, with_id
from support.under_test import regions_with


def crossed_streams(x, y):
    """Edges a1 -> b1 and b2 -> a2, nothing within a or within b."""
    with with_id("a"):
        a1 = x.sin()
    with with_id("b"):
        b1 = a1.tanh()
        b2 = y.exp()
    with with_id("a"):
        a2 = b2.sigmoid()
    return b1 + 1, a2 + 1


def test_two_ids_that_would_form_a_cycle_are_split(under_test):
    args = torch.randn(4), torch.randn(4)
    with under_test.watch() as seen:
        assert_same(under_test.run(capture(crossed_streams, *args), *args), crossed_streams(*args))
    for ops in (("sin", "tanh"), ("sin", "exp"), ("sigmoid", "tanh"), ("sigmoid", "exp")):
        assert not [region for region in seen if all(region.has(op) for op in ops)]


def test_no_more_is_split_than_the_cycle_needs(under_test, ri):
    """Three regions do: one of the two ids can stay whole."""
    args = torch.randn(4), torch.randn(4)
    with under_test.watch() as seen:
        under_test.apply(capture(crossed_streams, *args), *args)
    assert len(seen) == 3


def test_under_torch_compile(under_test):
    assert_like_eager(
        under_test.compile(crossed_streams), crossed_streams, torch.randn(4), torch.randn(4)
    )


def test_training(under_test):
    args = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    assert_trains_like_eager(under_test.compile(crossed_streams), crossed_streams, *args)


def test_cycle_of_three_ids(under_test):
    """a1 -> b1, b2 -> c1, c2 -> a2: any two of the ids are acyclic, the three are not."""

    def fn(x, y, z):
        with with_id("a"):
            a1 = x.sin()
        with with_id("b"):
            b1 = a1.tanh()
            b2 = y.exp()
        with with_id("c"):
            c1 = b2.sigmoid()
            c2 = z.cos()
        with with_id("a"):
            a2 = c2.erf()
        return b1 + 1, c1 + 1, a2 + 1

    args = torch.randn(4), torch.randn(4), torch.randn(4)
    assert_same(under_test.run(capture(fn, *args), *args), fn(*args))


def test_cycle_through_unmarked_nodes(under_test):
    def fn(x, y):
        with with_id("a"):
            a1 = x.sin()
        u1 = a1.cos()
        with with_id("b"):
            b1 = u1.tanh()
            b2 = y.exp()
        u2 = b2.cos()
        with with_id("a"):
            a2 = u2.sigmoid()
        return b1 + 1, a2 + 1

    args = torch.randn(4), torch.randn(4)
    assert_same(under_test.run(capture(fn, *args), *args), fn(*args))


def test_one_id_that_leaves_and_returns_is_split(under_test):
    """a -> unmarked -> a: not convex by itself."""

    def fn(x):
        with with_id("a"):
            y = x.sin()
        z = y.cos()
        with with_id("a"):
            return (y + z).tanh()

    x = torch.randn(4)
    with under_test.watch() as seen:
        assert_same(under_test.run(capture(fn, x), x), fn(x))
    assert not [region for region in seen if region.has("sin") and region.has("tanh")]


def test_interleaved_chains_of_three_ids(under_test):
    x = torch.randn(4)

    def fn(x):
        a = b = c = x
        for _ in range(4):
            with with_id("a"):
                a = (a + c).sin()
            with with_id("b"):
                b = (b + a).tanh()
            with with_id("c"):
                c = (c + b).sigmoid()
        return a + 1, b + 1, c + 1

    assert_same(under_test.run(capture(fn, x), x), fn(x))


def test_one_id_joins_what_lies_apart(under_test):
    """The same id on parallel streams that no cycle forbids: one region."""

    def fn(x, y):
        with with_id("a"):
            a1 = x.sin()
        u = y.cos()
        with with_id("a"):
            a2 = u.tanh()
        return a1 + 1, a2 + 1

    args = torch.randn(4), torch.randn(4)
    with under_test.watch() as seen:
        assert_same(under_test.run(capture(fn, *args), *args), fn(*args))
    assert len(seen) == 1
    assert regions_with(seen, "sin") == regions_with(seen, "tanh")


def test_ids_of_different_types(under_test):
    """Ids are any hashable values; 1, "1" and (1,) are three ids."""
    x = torch.randn(4)
    gm = capture(lambda x: x.sin().tanh().exp().cos(), x)
    mark_nodes(gm, {"inductor_region": 1}, "sin")
    mark_nodes(gm, {"inductor_region": "1"}, "tanh")
    mark_nodes(gm, {"inductor_region": (1,)}, "exp")
    with under_test.watch() as seen:
        assert_same(under_test.run(gm, x), x.sin().tanh().exp().cos())
    assert len(seen) == 3


@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("ids", [2, 3, 5])
def test_random_graphs_with_several_ids_always_compile(under_test, block, ids):
    for seed in range(block * 10, block * 10 + 10):
        gm = random_graph(seed, size=24, ids=ids)
        x = torch.randn(4)
        expected = gm(x)
        assert_same(under_test.run(gm, x), expected, bitwise=True)


@pytest.mark.parametrize("seed", range(20))
def test_outlined_random_graphs_keep_ids_apart(ri, seed):
    """No region of the outlined graph holds nodes of two ids, and no call is lost or doubled."""
    gm = random_graph(seed, size=30, ids=4)
    before = sorted(str(n.target) for n in calls(gm))
    x = torch.randn(4)
    expected = gm(x)
    outlined = ri.outline_regions(gm)
    outlined.graph.lint()
    assert_same(outlined(x), expected, bitwise=True)
    after = [n for n in calls(outlined) if n.target is not operator.getitem]
    for region in outlined.children():
        inside = [n for n in calls(region) if n.target is not operator.getitem]
        ids = {n.meta["custom"]["compile_with_inductor"]["inductor_region"] for n in inside}
        assert len(ids) == 1
        after += inside
    assert sorted(str(n.target) for n in after) == before


@pytest.mark.inductor
def test_compiled_by_inductor(under_test):
    assert_like_eager(
        under_test.compile(crossed_streams), crossed_streams, torch.randn(4), torch.randn(4)
    )


@pytest.mark.inductor
@pytest.mark.parametrize("seed", range(3))
def test_random_graph_compiled_by_inductor(under_test, seed):
    gm = random_graph(seed, size=16, ids=2)
    x = torch.randn(4)
    expected = gm(x)
    assert_same(under_test.run(gm, x), expected)
