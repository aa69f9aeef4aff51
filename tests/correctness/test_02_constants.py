"""Point 2: `torch.tensor(...)` and other constants in a region.

PyTorch's pass crashes ("meta" storage). Here constants are lifted to inputs of the region.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.compare import assert_like_eager, assert_same, assert_trains_like_eager
from support.graphs import capture, mark_nodes, marked, with_id
from support.under_test import call

TABLE = torch.tensor([0.5, -1.5, 2.5])
RAMP = np.arange(3, dtype=np.float32)


def tensor_literal(x):
    with marked():
        y = x * torch.tensor([1.0, 2.0, 3.0])
    return y.cos()


def scalar_tensor(x):
    with marked():
        y = x * torch.tensor(2.5)
    return y.cos()


def integer_index_tensor(x):
    with marked():
        y = x[:, torch.tensor([2, 0])] * 2
    return y.cos()


def list_index(x):
    with marked():
        y = x[:, [2, 0]] * 2
    return y.cos()


def boolean_mask_literal(x):
    with marked():
        y = torch.where(torch.tensor([True, False, True]), x, -x)
    return y.cos()


def double_literal(x):
    with marked():
        y = x.double() * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return y.cos()


def global_tensor(x):
    with marked():
        y = x * TABLE
    return y.cos()


def global_tensor_in_and_out(x):
    with marked():
        y = x * TABLE
    return y.cos() + TABLE


def numpy_array(x):
    with marked():
        y = x * torch.from_numpy(RAMP)
    return y.cos()


def literal_made_outside(x):
    t = torch.tensor([1.0, 2.0, 3.0])
    with marked():
        y = x * t
    return y.cos() + t


def literal_is_the_whole_region(x):
    with marked():
        t = torch.tensor([1.0, 2.0, 3.0])
    return x * t


def literal_returned(x):
    with marked():
        t = torch.tensor([1.0, 2.0, 3.0])
        y = x.sin() * t
    return y, t


def literal_mutated_in_the_region(x):
    with marked():
        t = torch.tensor([1.0, 2.0, 3.0])
        t.add_(1)
        y = x * t
    return y.cos()


def literals_of_different_values(x):
    with with_id("a"):
        y = x * torch.tensor([1.0, 2.0, 3.0])
    y = y.cos()
    with with_id("b"):
        z = y * torch.tensor([4.0, 5.0, 6.0])
    return z.cos()


def factory_functions(x):
    with marked():
        y = x * torch.ones(3) + torch.full((3,), 2.0) + torch.arange(3) + torch.eye(3)[1]
    return y.cos()


FUNCTIONS = [
    tensor_literal,
    scalar_tensor,
    integer_index_tensor,
    list_index,
    boolean_mask_literal,
    double_literal,
    global_tensor,
    global_tensor_in_and_out,
    numpy_array,
    literal_made_outside,
    literal_is_the_whole_region,
    literal_returned,
    literal_mutated_in_the_region,
    literals_of_different_values,
    factory_functions,
]
by_name = pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)


@by_name
def test_under_torch_compile(under_test, fn):
    compiled = under_test.compile(fn)
    for _ in range(2):
        assert_like_eager(compiled, fn, torch.randn(4, 3))


@by_name
def test_under_torch_compile_with_dynamic_shapes(under_test, fn):
    compiled = under_test.compile(fn, dynamic=True)
    for rows in (4, 6):
        assert_like_eager(compiled, fn, torch.randn(rows, 3))


@by_name
def test_training(under_test, fn):
    compiled = under_test.compile(fn)
    assert_trains_like_eager(compiled, fn, torch.randn(4, 3, requires_grad=True))


@by_name
@pytest.mark.parametrize("mode", ["fake", "symbolic", "real"])
def test_on_a_make_fx_graph(under_test, fn, mode):
    x = torch.randn(4, 3)
    result = under_test.apply(capture(fn, x, mode=mode), x)
    for _ in range(2):
        assert_like_eager(lambda x: call(result, x), fn, torch.randn(4, 3))


def test_python_numbers_tell_regions_apart(under_test):
    """Two regions that differ in a number only: sharing one compiled region would be wrong."""

    def fn(x):
        with with_id("two"):
            y = x * 2
        y = y.cos()
        with with_id("three"):
            y = y * 3
        y = y.cos()
        with with_id("float"):
            y = y * 2.0
        y = y.cos()
        with with_id("true"):
            y = y * True
        y = y.cos()
        with with_id("one"):
            y = y * 1
        return y.cos()

    for x in (torch.randn(4, 3), torch.arange(12).reshape(4, 3)):
        assert_like_eager(under_test.compile(fn, dynamic=False), fn, x)


def test_one_and_true_and_one_point_zero_are_different_constants(under_test):
    """1 == 1.0 == True in Python, also as keys of a dict; the dtype of the result differs."""

    def fn(x):
        with with_id("int"):
            a = x * 1
        with with_id("float"):
            b = x * 1.0
        with with_id("bool"):
            c = x * True
        return a + 1, b + 1, c + 1

    compiled = under_test.compile(fn)
    assert_like_eager(compiled, fn, torch.arange(4))
    assert_like_eager(compiled, fn, torch.tensor([True, False]))


def test_zero_and_minus_zero_are_different_constants(under_test):
    def fn(x):
        with with_id("plus"):
            a = x * 0.0
        with with_id("minus"):
            b = x * -0.0
        return 1 / a, 1 / b

    assert_like_eager(under_test.compile(fn), fn, torch.ones(3))


def test_constant_read_by_marked_and_unmarked_nodes_of_one_graph(under_test):
    t = torch.tensor([1.0, 2.0, 3.0])

    def fn(x):
        return (x * t).sin() + t, x - t

    gm = capture(fn, torch.randn(3), mode="real")
    mark_nodes(gm, 0, "mul", "sin", "sub")
    x = torch.randn(3)
    assert_same(under_test.run(gm, x), fn(x))


def test_marked_get_attr(under_test):
    """A mark on the get_attr itself, which is no call."""
    t = torch.tensor([1.0, 2.0, 3.0])
    gm = capture(lambda x: (x * t).sin(), torch.randn(3), mode="real")
    mark_nodes(gm, 0)
    for node in gm.graph.find_nodes(op="get_attr"):
        node.meta["custom"] = {"compile_with_inductor": 0}
    x = torch.randn(3)
    assert_same(under_test.run(gm, x), (x * t).sin())


def test_constant_in_a_branch_of_cond(under_test):
    def fn(x):
        def positive(x):
            with marked():
                return x * torch.tensor([1.0, 2.0, 3.0])

        def negative(x):
            return x * torch.tensor([-1.0, -2.0, -3.0])

        return torch.cond(x.sum() > 0, positive, negative, (x,)).cos()

    compiled = under_test.compile(fn)
    for x in (torch.ones(3), -torch.ones(3)):
        assert_like_eager(compiled, fn, x)


@pytest.mark.inductor
@pytest.mark.both_lowerings
@pytest.mark.parametrize(
    "fn",
    [
        tensor_literal,
        scalar_tensor,
        integer_index_tensor,
        global_tensor_in_and_out,
        literal_mutated_in_the_region,
        literals_of_different_values,
        literal_returned,
    ],
    ids=lambda fn: fn.__name__,
)
def test_compiled_by_inductor(under_test, fn):
    compiled = under_test.compile(fn)
    for _ in range(2):
        assert_like_eager(compiled, fn, torch.randn(4, 3))


@pytest.mark.inductor
@pytest.mark.parametrize("fn", [tensor_literal, scalar_tensor], ids=lambda fn: fn.__name__)
def test_make_fx_graph_compiled_by_inductor(under_test, fn):
    x = torch.randn(4, 3)
    result = under_test.apply(capture(fn, x, mode="fake"), x)
    assert_like_eager(lambda x: call(result, x), fn, torch.randn(4, 3))
