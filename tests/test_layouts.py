"""Eager operators whose results lie in memory in another way than their fake implementation said."""

from __future__ import annotations

import warnings

import pytest
import torch

import regional_inductor as ri
from regional_inductor import layouts, runtime
from regional_inductor.options import Mark
from regional_inductor.regions import RegionCall

CALL = RegionCall("r", "r", Mark(), "forward", 1, (), "model.py:3", "")


def transposed():
    return torch.randn(37, 65).t()[:, ::2]


@pytest.mark.inductor
@pytest.mark.both_lowerings
def test_a_region_behind_an_operator_with_other_strides_than_its_fake_equals_eager():
    def f(x):
        y = 2.3**x  # torch's fake keeps the order of dimensions, its kernel doesn't
        with ri.region("scaled"):
            return y * 2 + 1

    compiled = ri.compile(f, on_error="raise")
    with pytest.warns(ri.RegionWarning, match="gives other strides") as warned:
        first = compiled(x := transposed())
    (message,) = [str(w.message) for w in warned if w.category is ri.RegionWarning]
    assert "region: scaled" in message
    assert torch.equal(first, f(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert torch.equal(compiled(x := transposed()), f(x))


def strict(seen):
    """Stands in for Inductor's call, which raises where strides differ."""

    def call(args):
        (x,) = args
        args.clear()
        assert x.stride() == (1, 65)
        seen.append(x)
        return (x + 1,)

    return call


def test_an_input_is_copied_at_each_call_if_it_was_at_the_first():
    seen = []
    region = runtime.boxed_function(strict(seen), CALL, [(1, 65)])
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ri.RegionWarning)
            x = torch.randn(65, 19)
            args = [x]
            assert torch.equal(region(args)[0], x + 1)
            assert args == []
            assert seen.pop().data_ptr() != x.data_ptr()


def test_an_input_that_lies_as_promised_is_passed_on():
    seen = []
    region = runtime.boxed_function(strict(seen), CALL, [(1, 65)])
    x = torch.randn(19, 65).t()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        region([x])
    assert seen.pop() is x


@pytest.mark.parametrize(
    ("value", "strides"),
    [
        (torch.ones(1, 5), (7, 1)),  # nobody steps along a dimension of one element
        (torch.ones(0, 5), (9, 9)),
        (torch.ones(5), None),
        (3, None),
    ],
)
def test_strides_that_no_kernel_reads_are_no_difference(value, strides):
    assert layouts.misplaced([value], [strides]) == {}


def test_symbolic_sizes_promise_nothing():
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    fake = mode.from_tensor(torch.ones(4, 3), symbolic_context=context)
    assert layouts.promised_strides([fake, torch.ones(4, 3), 2]) == (None, (3, 1), None)
