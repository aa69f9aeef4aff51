"""Point 7: the pass applied to a captured graph, outside `torch.compile`.

Nothing guards the inputs there and no AOTAutograd stands around the graph: parameters may change,
autograd may run through the result, and inputs may be others than those of the capture.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import assert_same
from support.graphs import capture, mark_nodes, marked
from support.under_test import call
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class Scale(torch.nn.Module):
    """One parameter and one buffer in a region, another parameter outside."""

    def __init__(self):
        super().__init__()
        self.inside = torch.nn.Parameter(torch.randn(4))
        self.outside = torch.nn.Parameter(torch.randn(4))
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x):
        with marked():
            y = (x * self.inside + self.shift).sin()
        return y.cos() * self.outside


def captured(module, x):
    """The graph of a module whose parameters are attributes of the graph module."""
    gm = capture(module, x, mode="real")
    names = [n.target for n in gm.graph.find_nodes(op="get_attr")]
    assert names, "parameters should be get_attr nodes"
    return gm


def attribute_holding(gm, tensor):
    """The name under which a captured graph holds a parameter."""
    held = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    for node in gm.graph.find_nodes(op="get_attr"):
        held.setdefault(node.target, getattr(gm, node.target))
    (name,) = [name for name, value in held.items() if value is tensor]
    return name


def test_parameter_updated_in_place_is_seen(under_test):
    module, x = Scale(), torch.randn(4)
    gm = captured(module, x)
    with torch.no_grad():
        result = under_test.apply(gm, x)
        assert_same(call(result, x), module(x))
        module.inside.add_(1)
        module.shift.mul_(2)
        module.outside.mul_(3)
        assert_same(call(result, x), module(x))


def test_parameter_replaced_on_the_result_is_seen(under_test):
    module, x = Scale(), torch.randn(4)
    gm = captured(module, x)
    name = attribute_holding(gm, module.inside)
    with torch.no_grad():
        result = under_test.apply(gm, x)
        call(result, x)
        module.inside = torch.nn.Parameter(torch.randn(4))
        setattr(result, name, module.inside)
        assert_same(call(result, x), module(x))


def test_parameter_replaced_on_the_result_by_its_data_is_seen(under_test):
    module, x = Scale(), torch.randn(4)
    gm = captured(module, x)
    with torch.no_grad():
        result = under_test.apply(gm, x)
        call(result, x)
        module.inside.data = torch.randn(4)
        assert_same(call(result, x), module(x))


def test_optimizer_over_the_parameters_of_the_result(under_test):
    module, x = Scale(), torch.randn(4)
    gm = captured(module, x)
    with torch.no_grad():
        result = under_test.apply(gm, x)
        call(result, x)
    held = [p for p in result.parameters() if p.requires_grad]
    assert {id(p) for p in (module.inside, module.outside)} <= {id(p) for p in held}
    for parameter in held:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(held, lr=0.5).step()
    with torch.no_grad():
        assert_same(call(result, x), module(x))


class Net(torch.nn.Module):
    """Nested, so that the exported program's parameters have dotted names."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x):
        x = self.blocks[0](x)
        with marked():
            x = (self.blocks[1](x) + self.shift).sin()
        return x.cos()


def exported(module, *args):
    """A strict export, whose marks survive."""
    gm = torch.export.export(module, args, strict=True).module()
    assert any("custom" in n.meta for n in gm.graph.nodes)
    return gm


def test_state_dict_loaded_into_an_exported_module_is_seen(under_test):
    module, x = Net(), torch.randn(2, 4)
    gm = exported(module, x)
    names = set(gm.state_dict())
    with torch.no_grad():
        result = under_test.apply(gm, x)
        assert_same(call(result, x), module(x))
        assert set(result.state_dict()) == names
        other = Net()
        result.load_state_dict(other.state_dict())
        assert_same(call(result, x), other(x))


def test_submodule_parameter_replaced_on_the_result_is_seen(under_test):
    module, x = Net(), torch.randn(2, 4)
    with torch.no_grad():
        result = under_test.apply(exported(module, x), x)
        call(result, x)
        new = torch.nn.Parameter(torch.randn(4, 4))
        module.blocks[1].weight = new
        result.get_submodule("blocks.1").weight = new
        assert_same(call(result, x), module(x))


def test_conversion_of_the_result_is_seen_or_raises(under_test):
    """`.double()` replaces every parameter by one of another dtype."""
    module, x = Scale(), torch.randn(4)
    with torch.no_grad():
        result = under_test.apply(captured(module, x), x)
        call(result, x)
        result.double()
        module.double()
        try:
            out = call(result, x.double())
        except (RuntimeError, TypeError, ValueError, AssertionError):
            return
        assert_same(out, module(x.double()))


# ---- autograd ---------------------------------------------------------------------------------


CUT = ("does not require grad", "have been used in the graph")


def right_or_raises(run, eager, leaves):
    """Gradients equal eager's, or something raises: they are never cut silently.

    That autograd finds nothing to differentiate is the sign of a cut, noticed by luck: with one
    more path around the region it would not be.
    """
    expected = torch.autograd.grad(eager().sum(), leaves)
    try:
        actual = torch.autograd.grad(run().sum(), leaves)
    except RuntimeError as error:
        message = str(error)
    else:
        assert_same(actual, expected)
        return
    assert not any(sign in message for sign in CUT), message


def test_autograd_to_an_input_of_a_region(under_test):
    def fn(x):
        with marked():
            y = (x * 2).sin()
        return y.cos()

    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    leaf = torch.randn(4, requires_grad=True)
    right_or_raises(lambda: call(result, leaf), lambda: fn(leaf), [leaf])


def test_autograd_through_a_region_between_eager_ops(under_test):
    """With a second, unmarked path to the leaf, a cut gradient would not even raise."""

    def fn(x):
        y = x.exp()
        with marked():
            z = (y * 2).sin()
        return z.cos() + y

    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    leaf = torch.randn(4, requires_grad=True)
    right_or_raises(lambda: call(result, leaf), lambda: fn(leaf), [leaf])


def test_autograd_to_parameters(under_test):
    module, x = Scale(), torch.randn(4)
    gm = captured(module, x)
    result = under_test.apply(gm, x)
    right_or_raises(lambda: call(result, x), lambda: module(x), [module.inside, module.outside])


def test_autograd_of_an_exported_module(under_test):
    module, x = Net(), torch.randn(2, 4)
    result = under_test.apply(exported(module, x), x)
    parameters = list(module.parameters())
    held = [result.get_parameter(name) for name, _ in module.named_parameters()]
    assert [id(p) for p in held] == [id(p) for p in parameters]
    right_or_raises(lambda: call(result, x), lambda: module(x), parameters)


def test_no_grad_with_parameters_that_require_gradients_just_works(under_test):
    module, x = Scale(), torch.randn(4)
    result = under_test.apply(captured(module, x), x)
    with torch.no_grad():
        assert_same(call(result, x), module(x))
    with torch.inference_mode():
        assert_same(call(result, x), module(x))


@pytest.mark.inductor
def test_autograd_through_inductor(under_test):
    def fn(x):
        y = x.exp()
        with marked():
            z = (y * 2).sin()
        return z.cos() + y

    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    leaf = torch.randn(4, requires_grad=True)
    right_or_raises(lambda: call(result, leaf), lambda: fn(leaf), [leaf])


@pytest.mark.inductor
def test_parameters_through_inductor(under_test):
    module, x = Scale(), torch.randn(4)
    gm = captured(module, x)
    name = attribute_holding(gm, module.inside)
    result = under_test.apply(gm, x)
    right_or_raises(lambda: call(result, x), lambda: module(x), [module.inside, module.outside])
    with torch.no_grad():
        module.inside.add_(1)
        assert_same(call(result, x), module(x))
        module.inside = torch.nn.Parameter(torch.randn(4))
        setattr(result, name, module.inside)
        assert_same(call(result, x), module(x))


# ---- a fake run over the result ---------------------------------------------------------------


def two_outputs(x, y):
    with marked():
        a = (x @ y).sin()
        b = a.sum(0)
    return a.t(), b.cos()


@pytest.mark.inductor
def test_fake_tensors_through_the_compiled_result(under_test):
    args = torch.randn(3, 4), torch.randn(4, 5)
    result = under_test.apply(capture(two_outputs, *args), *args)
    check_fake_run(result, args)
    assert_same(call(result, *args), two_outputs(*args))


def check_fake_run(result, args):
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(a) for a in args]
    with mode:
        outs = call(result, *fakes)
    for out, expected in zip(outs, two_outputs(*args), strict=True):
        assert isinstance(out, FakeTensor)
        assert out.shape == expected.shape
        assert out.stride() == expected.stride()
        assert out.dtype == expected.dtype


def test_fake_tensors_through_the_result(under_test):
    args = torch.randn(3, 4), torch.randn(4, 5)
    check_fake_run(under_test.apply(capture(two_outputs, *args), *args), args)


def test_fake_tensor_propagation_over_the_result(under_test):
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    args = torch.randn(3, 4), torch.randn(4, 5)
    result = under_test.apply(capture(two_outputs, *args), *args)
    outs = FakeTensorProp(result).propagate(*args)
    assert [tuple(out.shape) for out in outs] == [(5, 3), (5,)]


def test_make_fx_over_the_result(under_test):
    """Captured again, for instance by an outer pass: same results."""
    args = torch.randn(3, 4), torch.randn(4, 5)
    result = under_test.apply(capture(two_outputs, *args), *args)
    again = capture(lambda *a: call(result, *a), *args)
    assert_same(again(*args), two_outputs(*args))


def test_meta_tensors_raise_or_give_meta_tensors(under_test):
    args = torch.randn(3, 4), torch.randn(4, 5)
    result = under_test.apply(capture(two_outputs, *args), *args)
    try:
        outs = call(result, *(a.to("meta") for a in args))
    except (RuntimeError, TypeError, ValueError, AssertionError):
        return
    assert all(out.device.type == "meta" for out in outs)


# ---- other inputs than those of the capture ---------------------------------------------------


def one_region(x, y):
    with marked():
        z = x * y + 1
    return z.cos()


WRONG = {
    "dtype": lambda x: x.double(),
    "integer dtype": lambda x: x.int(),
    "complex dtype": lambda x: x.to(torch.complex64),
    "device": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("position", [0, 1])
def test_wrong_input_of_an_eager_region_raises_or_is_right(under_test, wrong, position):
    args = [torch.randn(3, 4), torch.randn(3, 4)]
    result = under_test.apply(capture(one_region, *args), *args)
    args[position] = WRONG[wrong](args[position])
    try:
        out = call(result, *args)
    except (RuntimeError, TypeError, ValueError, AssertionError):
        return
    assert_same(out, one_region(*args))


@pytest.mark.inductor
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_of_a_compiled_region_raises(under_test, wrong):
    args = [torch.randn(3, 4), torch.randn(3, 4)]
    result = under_test.apply(capture(one_region, *args), *args)
    with pytest.raises((RuntimeError, TypeError, ValueError, AssertionError)):
        call(result, WRONG[wrong](args[0]), args[1])


@pytest.mark.inductor
def test_wrong_shape_of_a_compiled_region_raises(under_test):
    """A static capture is for one shape; reading past the end of an input would be worse."""
    args = [torch.randn(3, 4), torch.randn(3, 4)]
    result = under_test.apply(capture(one_region, *args), *args)
    with pytest.raises((RuntimeError, TypeError, ValueError, AssertionError)):
        call(result, torch.randn(2, 4), torch.randn(2, 4))


@pytest.mark.inductor
def test_wrong_strides_of_a_compiled_region_raise_or_are_right(under_test):
    args = [torch.randn(4, 4), torch.randn(4, 4)]
    result = under_test.apply(capture(one_region, *args), *args)
    other = [torch.randn(4, 4).t(), args[1]]
    try:
        out = call(result, *other)
    except (RuntimeError, TypeError, ValueError, AssertionError):
        return
    torch.testing.assert_close(out, one_region(*other))


@pytest.mark.inductor
def test_unaligned_input_of_a_compiled_region(under_test):
    """A slice that starts at an odd offset has an address that vector loads may not like."""
    args = [torch.randn(64), torch.randn(64)]
    result = under_test.apply(capture(one_region, *args), *args)
    x, y = torch.randn(65)[1:], torch.randn(67)[3:]
    assert_same(call(result, x, y), one_region(x, y))


def test_updated_attribute_after_deepcopy_belongs_to_the_copy(under_test):
    module, x = Scale(), torch.randn(4)
    with torch.no_grad():
        result = under_test.apply(captured(module, x), x)
        expected = call(result, x)
        twin = copy.deepcopy(result)
        module.inside.add_(1)
        assert_same(call(twin, x), expected)
        assert_same(call(result, x), module(x))


def test_tied_parameters_stay_tied(under_test):
    weight = torch.nn.Parameter(torch.randn(4))

    def fn(x):
        with marked():
            y = x * weight
        return y.cos() * weight

    x = torch.randn(4)
    gm = capture(fn, x, mode="real")
    with torch.no_grad():
        result = under_test.apply(gm, x)
        weight.add_(1)
        assert_same(call(result, x), fn(x))


def test_whole_graph_marked_with_parameters(under_test):
    module, x = Scale(), torch.randn(4)
    gm = mark_nodes(captured(module, x), 0)
    with torch.no_grad():
        result = under_test.apply(gm, x)
        module.inside.add_(1)
        assert_same(call(result, x), module(x))
