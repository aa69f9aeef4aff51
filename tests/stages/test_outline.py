"""outline: each region as a graph of its own, and the graph that calls them."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from support.graphs import capture, marked
from support.stages import after, graph_text, outlined_text

import regional_inductor as ri


def test_only_what_is_used_outside_is_an_output():
    def fn(x, y):
        with ri.region("middle"):
            a = x.sin() + y
            b = a.cos()
        return b.exp(), a

    gm = capture(fn, torch.ones(4), torch.ones(4))
    assert_expected_inline(
        outlined_text(after("outline", gm)),
        """\
x_1: input
y_1: input
middle = call middle(x_1, y_1)
add = getitem(middle, 0)
cos = getitem(middle, 1)
exp = aten.exp.default(cos)
return (exp, add)
middle:
  arg0: input
  arg1: input
  sin = aten.sin.default(arg0)
  add = aten.add.Tensor(sin, arg1)
  cos = aten.cos.default(add)
  return (add, cos)""",
    )


def test_the_callers_graph_is_only_read():
    def fn(x):
        with ri.region("r"):
            return x.sin().cos()

    gm = capture(fn, torch.ones(4))
    before = graph_text(gm.graph)
    after("outline", gm)
    assert graph_text(gm.graph) == before
    assert not dict(gm.named_children())


def test_constants_become_inputs():
    def fn(x):
        with ri.region("r"):
            return x * torch.tensor([1.0, 2.0])

    gm = capture(fn, torch.ones(2))
    assert_expected_inline(
        outlined_text(after("outline", gm)),
        """\
x_1: input
_tensor_constant0 = _tensor_constant0()
r = call r(_tensor_constant0, x_1)
mul = getitem(r, 0)
return mul
r:
  arg0: input
  arg1: input
  lift_fresh_copy = aten.lift_fresh_copy.default(arg0)
  mul = aten.mul.Tensor(arg1, lift_fresh_copy)
  return (mul,)""",
    )


def test_the_symbols_of_derived_sizes_become_inputs():
    def fn(x):
        y = x[1:]
        with ri.region("r"):
            return y + 1

    gm = capture(fn, torch.ones(5), mode="symbolic")
    assert_expected_inline(
        outlined_text(after("outline", gm)),
        """\
x_1: input
slice_1 = aten.slice.Tensor(x_1, 0, 1, 9223372036854775807)
sym_size_int = aten.sym_size.int(x_1, 0)
r = call r(slice_1, sym_size_int)
add = getitem(r, 0)
return add
r:
  arg0: input
  arg1: input
  add = aten.add.Tensor(arg0, 1)
  return (add,)""",
    )


@pytest.mark.parametrize("draws", [True, False])
def test_a_region_that_nobody_reads_goes_with_dead_code_unless_it_draws(draws):
    """What is drawn behind it would be other numbers: FX keeps a draw, and so a call of one."""

    def fn(x):
        with ri.region("noise"):
            (torch.rand_like(x) if draws else x.cos()) * 2
        return x + torch.rand_like(x)

    x = torch.zeros(4)
    gm = ri.outline_regions(capture(fn, x, mode="real"))
    assert "noise" in [node.name for node in gm.graph.nodes]
    gm.graph.eliminate_dead_code()
    gm.recompile()
    assert ("noise" in [node.name for node in gm.graph.nodes]) == draws
    torch.manual_seed(0)
    expected = fn(x)
    torch.manual_seed(0)
    torch.testing.assert_close(gm(x), expected, rtol=0, atol=0)


def test_a_marked_conditional_takes_its_bodies_along():
    def fn(x):
        with marked():
            return torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))

    gm = capture(fn, torch.ones(4))
    assert_expected_inline(
        outlined_text(after("outline", gm)),
        """\
x_1: input
region = call region(x_1)
getitem = getitem(region, 0)
return getitem
region:
  arg0: input
  true_graph_0 = true_graph_0()
  false_graph_0 = false_graph_0()
  sum_1 = aten.sum.default(arg0)
  gt = aten.gt.Scalar(sum_1, 0)
  cond = cond(gt, true_graph_0, false_graph_0, (arg0,))
  getitem = getitem(cond, 0)
  return (getitem,)""",
    )


def test_a_write_to_an_input_stays_one():
    def fn(x, y):
        with ri.region("r"):
            x.copy_(y)
        return x + 1

    gm = capture(fn, torch.ones(4), torch.ones(4))
    assert_expected_inline(
        outlined_text(after("outline", gm)),
        """\
x_1: input
y_1: input
r = call r(x_1, y_1)
copy_ = getitem(r, 0)
add = aten.add.Tensor(copy_, 1)
return add
r:
  arg0: input
  arg1: input
  copy_ = aten.copy_.default(arg0, arg1)
  return (copy_,)""",
    )
