"""Point 1: a region whose input has a derived size, or is a derived SymInt itself.

PyTorch's pass fails with an assertion at compile time or a NameError at run time.
"""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_like_eager, assert_same, assert_trains_like_eager
from support.graphs import capture, marked
from support.under_test import call
from torch._dynamo.utils import counters


def reshape_in_front(x):
    y = x.reshape(-1, x.shape[-1])
    with marked():
        y = (y * 2).sin()
    return y.cos()


def slice_in_front(x):
    y = x[:-1]
    with marked():
        y = (y * 2).sin()
    return y.cos()


def chunk_in_front(x):
    a, b = x.chunk(2)
    with marked():
        a, b = a.sin() * 2, b.cos() + 1
    return a.exp(), b.exp()


def cat_in_front(x):
    y = torch.cat([x, x, x])
    with marked():
        y = (y * 2).sin()
    return y.cos()


def symint_in_front(x):
    n = x.shape[0] * 2 - 1
    y = x.cos()
    with marked():
        y = y * n + n
    return y.exp()


def symint_as_the_size_of_a_new_tensor(x):
    n = x.shape[0] * 3 + 1
    with marked():
        y = x.new_ones(n, 2).cumsum(0) * 2
    return y.sum(0) + x.sum()


def symint_out_of_the_region(x):
    with marked():
        n = x.shape[0] * 2 + 1
        y = x.sin().sum(0)
    return x.new_ones(n, 1, 1) * y


def two_regions_of_one_derived_size(x):
    y = x[1:]
    with marked():
        y = y.sin() + 1
    y = y.cos().roll(1, 0)
    with marked():
        return y.tanh() * 3


def size_read_inside(x):
    y = x[2:]
    with marked():
        y = y / y.shape[0] + y.shape[1]
    return y.sin()


def floor_division_of_sizes(x):
    y = x.flatten()[: x.shape[0] * x.shape[-1] // 2]
    with marked():
        y = y.sin() * (y.shape[0] // 3)
    return y.cos()


FUNCTIONS = [
    reshape_in_front,
    slice_in_front,
    chunk_in_front,
    cat_in_front,
    symint_in_front,
    symint_as_the_size_of_a_new_tensor,
    symint_out_of_the_region,
    two_regions_of_one_derived_size,
    size_read_inside,
    floor_division_of_sizes,
]
by_name = pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)


@by_name
def test_under_torch_compile(under_test, fn):
    compiled = under_test.compile(fn, dynamic=True)
    for rows in (6, 9, 4):
        assert_like_eager(compiled, fn, torch.randn(rows, 5, 3))


@by_name
def test_on_a_symbolic_make_fx_graph(under_test, fn):
    x = torch.randn(6, 5, 3)
    result = under_test.apply(capture(fn, x, mode="symbolic"), x)

    for rows in (6, 9, 4):
        assert_like_eager(lambda *args: call(result, *args), fn, torch.randn(rows, 5, 3))


@by_name
def test_training(under_test, fn):
    compiled = under_test.compile(fn, dynamic=True)
    for rows in (6, 9):
        assert_trains_like_eager(compiled, fn, torch.randn(rows, 5, 3, requires_grad=True))


@by_name
def test_one_graph_serves_all_sizes(under_test, fn):
    """A region adds no guard: what eager's capture keeps general stays general."""
    counters.clear()
    compiled = under_test.compile(fn, dynamic=True)
    for rows in (6, 10, 7, 12):
        compiled(torch.randn(rows, 5, 3))
    assert counters["stats"]["unique_graphs"] == 1


def unbacked_from_item(x, count):
    u = count.item()
    torch._check(u >= 2)
    torch._check(u < 100)
    y = x.new_ones(2 * u, 3)
    with marked():
        y = y.sin() * 2
    return y.cos()


def unbacked_from_nonzero(x, count):
    rows = torch.nonzero(x[:, 0, 0] > -100)
    both = torch.cat([rows, rows])
    with marked():
        both = both * 2 + count
    return both - 1


def unbacked_as_a_factor(x, count):
    u = count.item()
    v = 2 * u + 1
    y = x.sin()
    with marked():
        y = y * v
    return y.cos()


def unbacked_made_in_the_region(x, count):
    y = x.sin()
    with marked():
        rows = torch.nonzero(y[:, 0, 0] > -100) * 2
    return rows + 1


def unbacked_item_in_the_region(x, count):
    with marked():
        u = count.item()
        y = x.sin() * (u + 1)
    return y.cos() * u


UNBACKED = [
    unbacked_from_item,
    unbacked_from_nonzero,
    unbacked_as_a_factor,
    unbacked_made_in_the_region,
    unbacked_item_in_the_region,
]
by_name_unbacked = pytest.mark.parametrize("fn", UNBACKED, ids=lambda fn: fn.__name__)


@pytest.fixture
def unbacked():
    """Lets Dynamo trace `item()` and `nonzero()`."""
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        yield


@by_name_unbacked
def test_unbacked_under_torch_compile(under_test, unbacked, fn):
    compiled = under_test.compile(fn, dynamic=True)
    for rows, count in ((6, 5), (9, 3)):
        assert_like_eager(compiled, fn, torch.randn(rows, 5, 3), torch.tensor(count))


@by_name_unbacked
def test_unbacked_on_a_symbolic_make_fx_graph(under_test, fn):

    args = torch.randn(6, 5, 3), torch.tensor(5)
    result = under_test.apply(capture(fn, *args, mode="symbolic"), *args)
    for rows, count in ((6, 5), (9, 3)):
        args = torch.randn(rows, 5, 3), torch.tensor(count)
        assert_like_eager(lambda *a: call(result, *a), fn, *args)


def test_static_shapes_beside_dynamic_ones(under_test):
    """Of two inputs one is dynamic; the region that sees only the static one stays static."""

    def fn(x, w):
        y = x.reshape(-1, 4)
        with marked():
            y = y @ w
        w = w.cos()
        with marked({"inductor_region": "static"}):
            w = w.sin() * 2
        return y + w.sum()

    compiled = under_test.compile(fn)
    w = torch.randn(4, 4)
    for rows in (3, 5, 8):
        x = torch.randn(rows, 2, 4)
        torch._dynamo.mark_dynamic(x, 0)
        assert_same(compiled(x, w), fn(x, w))


def test_regions_of_equal_ops_and_different_derived_sizes(under_test):
    """x[:-1] and x[:-2] give the same ops on sizes s0-1 and s0-2: no sharing may confuse them."""

    def fn(x):
        a, b = x[:-1], x[:-2]
        with marked({"inductor_region": "a"}):
            a = a.sin() * a.shape[0]
        with marked({"inductor_region": "b"}):
            b = b.sin() * b.shape[0]
        return a.cos(), b.cos()

    compiled = under_test.compile(fn, dynamic=True)
    for rows in (6, 9):
        assert_like_eager(compiled, fn, torch.randn(rows, 3))


def test_sizes_spelt_apart_that_are_equal_at_capture_only(under_test):
    """Two regions alike but for which symbols are equal: one takes [s0, s0], one [s0, s1]."""

    def fn(x, y):
        a, b = x.t() + 0, y.t() + 0
        with marked({"inductor_region": "square"}):
            a = a + a.t()[: a.shape[0]].sum() + a.shape[0] * 100 + a.shape[1]
        with marked({"inductor_region": "wide"}):
            b = b + b.t()[: b.shape[0]].sum() + b.shape[0] * 100 + b.shape[1]
        return a * 2, b * 2

    compiled = under_test.compile(fn, dynamic=True)
    for n, m in ((6, 7), (5, 9)):
        assert_like_eager(compiled, fn, torch.randn(n, n), torch.randn(n, m))


@pytest.mark.inductor
@pytest.mark.parametrize(
    "fn",
    [
        reshape_in_front,
        slice_in_front,
        chunk_in_front,
        cat_in_front,
        symint_in_front,
        symint_out_of_the_region,
    ],
    ids=lambda fn: fn.__name__,
)
def test_compiled_by_inductor(under_test, fn):
    compiled = under_test.compile(fn, dynamic=True)
    for rows in (6, 9):
        assert_like_eager(compiled, fn, torch.randn(rows, 5, 3))


@pytest.mark.inductor
@pytest.mark.parametrize(
    "fn", [reshape_in_front, slice_in_front, cat_in_front], ids=lambda fn: fn.__name__
)
def test_make_fx_graph_compiled_by_inductor(under_test, fn):

    x = torch.randn(6, 5, 3)
    result = under_test.apply(capture(fn, x, mode="symbolic"), x)
    for rows in (6, 9):
        assert_like_eager(lambda *args: call(result, *args), fn, torch.randn(rows, 5, 3))


@pytest.mark.inductor
@by_name_unbacked
def test_unbacked_compiled_by_inductor(under_test, unbacked, fn):
    compiled = under_test.compile(fn, dynamic=True)
    for rows, count in ((6, 5), (9, 3)):
        assert_like_eager(compiled, fn, torch.randn(rows, 5, 3), torch.tensor(count))
