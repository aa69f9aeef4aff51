"""Point 10: graphs without fake values, Dynamo's own graphs, joint graphs; copies of the result."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.compare import assert_same
from support.graphs import MARK, capture, mark_nodes, marked, with_id
from support.under_test import call, regions_with
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


def fn(x):
    y = x.exp()
    with marked():
        y = y.sin() * 2
    return y.cos()


def forget_values(gm, *keep):
    for node in gm.graph.nodes:
        if node.name not in keep:
            for key in ("val", "example_value", "tensor_meta"):
                node.meta.pop(key, None)
    return gm


# ---- graphs without fake values ---------------------------------------------------------------


def test_no_node_has_a_fake_value(under_test):
    x = torch.randn(4)
    gm = forget_values(capture(fn, x))
    assert_same(under_test.run(gm, x), fn(x))


@pytest.mark.inductor
@pytest.mark.both_lowerings
def test_inputs_of_a_region_whose_values_are_one_object(under_test):
    """Passes that copy a node's meta leave such nodes: what they hold at run time differs all the same."""

    def function(x):
        y, z = x.exp(), x.cos()
        with marked():
            y = (y - z) * 2
        return y.sin()

    x = torch.randn(4)
    gm = capture(function, x, mode="fake")
    exponential, cosine = (
        n for n in gm.graph.nodes if n.target in (aten.exp.default, aten.cos.default)
    )
    cosine.meta["val"] = exponential.meta["val"]
    assert_same(under_test.run(gm, x), function(x))


def test_symbolically_traced_graph(under_test):
    """Functions, methods and modules as torch.fx.symbolic_trace leaves them, without values."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x):
            return torch.sin(self.linear(x)).mul(2).cos()

    module, x = Net(), torch.randn(2, 4)
    gm = mark_nodes(torch.fx.symbolic_trace(module), 0)
    with under_test.watch() as seen, torch.no_grad():
        assert_same(under_test.run(gm, x), module(x))
    assert len(seen) == 1


@pytest.mark.parametrize("kept", ["x_1", "exp", "sin", "mul", "cos"])
def test_some_nodes_have_fake_values(under_test, kept):
    """A pass of the user made nodes and gave them none."""
    x = torch.randn(4)
    gm = forget_values(capture(fn, x), kept)
    assert_same(under_test.run(gm, x), fn(x))


@pytest.mark.parametrize("lost", ["x_1", "exp", "sin", "mul", "cos"])
def test_one_node_has_no_fake_value(under_test, lost):
    x = torch.randn(4)
    gm = capture(fn, x)
    forget_values(gm, *(n.name for n in gm.graph.nodes if n.name != lost))
    assert_same(under_test.run(gm, x), fn(x))


@pytest.mark.inductor
def test_no_fake_values_compiled_by_inductor(under_test):
    x = torch.randn(4)
    assert_same(under_test.run(forget_values(capture(fn, x)), x), fn(x))


# ---- Dynamo's graphs --------------------------------------------------------------------------


def dynamo_level(under_test, function):
    """The pass as a backend by itself: Dynamo's graph, values in meta["example_value"]."""

    def backend(gm, example_inputs):
        assert any("example_value" in n.meta for n in gm.graph.nodes)
        result = under_test.apply(gm, *example_inputs)
        return lambda *args: call(result, *args)

    return torch.compile(function, backend=backend, fullgraph=True)


def test_graph_of_dynamo(under_test):
    compiled = dynamo_level(under_test, fn)
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(4)
            assert_same(compiled(x), fn(x))


def test_graph_of_dynamo_with_parameters(under_test):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

    def forward(x):
        with marked():
            y = model(x).sin()
        return y.cos()

    compiled = dynamo_level(under_test, forward)
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert_same(compiled(x), forward(x))
        model[0].weight.add_(1)
        assert_same(compiled(x), forward(x))


def test_graph_of_dynamo_with_mutation(under_test):
    def mutates(x):
        with marked():
            y = x.sin()
        x.add_(1)
        with marked():
            return y + x.cos()

    x = torch.randn(4)
    twin = x.clone()
    assert_same(dynamo_level(under_test, mutates)(x), mutates(twin))
    assert_same(x, twin)


@pytest.mark.inductor
def test_graph_of_dynamo_compiled_by_inductor(under_test):
    with torch.no_grad():
        x = torch.randn(4)
        assert_same(dynamo_level(under_test, fn)(x), fn(x))


# ---- joint graphs -----------------------------------------------------------------------------


def joint_graph(function, *args):
    """Forward and backward in one graph, before partitioning: call it as gm(primals, tangents)."""
    with preserve_node_meta():
        return aot_export_joint_simple(lambda *a: (function(*a),), args, trace_joint=True)


def wholly_marked(x, w):
    with marked():
        return (x @ w).sin() * x


def partly_marked(x, w):
    with marked():
        y = (x @ w).sin()
    y = y.cos()
    with marked():
        return y * x


def wholly_marked_with_an_id(x, w):
    with with_id("all"):
        return (x @ w).sin() * x


JOINT = [wholly_marked, partly_marked, wholly_marked_with_an_id]
by_name = pytest.mark.parametrize("function", JOINT, ids=lambda f: f.__name__)


def joint_case(function):
    args = [torch.randn(3, 3, requires_grad=True) for _ in range(2)]
    tangent = torch.randn(3, 3)
    out = function(*args)
    expected = [out, *torch.autograd.grad(out, args, tangent)]
    return joint_graph(function, *args), [a.detach() for a in args], [tangent], expected


def call_joint(result, primals, tangents):
    if getattr(result, "_in_spec", None) is not None and hasattr(
        result.graph._codegen, "pytree_info"
    ):
        return result(primals, tangents)
    return call(result, *primals, *tangents)


@by_name
def test_joint_graph(under_test, function):
    gm, primals, tangents, expected = joint_case(function)
    outs = call_joint(under_test.apply(gm), primals, tangents)
    assert_same(tree_leaves(outs), [e.detach() for e in expected])


@by_name
def test_forward_and_backward_of_a_joint_graph_share_no_region(under_test, ri, function):
    """Else a partitioner could not tell them apart any more."""
    gm, *_ = joint_case(function)
    outlined = ri.outline_regions(gm)
    backward = {n for n in outlined.graph.find_nodes(op="placeholder") if "tangent" in n.name}
    assert backward
    for node in outlined.graph.nodes:
        if node.op != "output" and any(operand in backward for operand in node.all_input_nodes):
            backward.add(node)
    (output,) = outlined.graph.find_nodes(op="output")
    assert tree_leaves(output.args)[0] not in backward


@by_name
def test_joint_graph_partitioned_after_the_pass(under_test, function):
    """The pass as a joint pass of AOTAutograd, then its partitioner."""
    check_partitioned_after_the_pass(under_test, function)


@pytest.mark.inductor
@by_name
def test_compiled_joint_graph_partitioned_after_the_pass(under_test, function):
    check_partitioned_after_the_pass(under_test, function)


def check_partitioned_after_the_pass(under_test, function):
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import default_partition

    def partition(joint, joint_inputs, **kwargs):
        return default_partition(under_test.apply(joint, *joint_inputs), joint_inputs, **kwargs)

    halves = []

    def compiler(gm, example_inputs):
        halves.append(gm)
        return make_boxed_func(gm.forward)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, partition_fn=partition)
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    args = [torch.randn(3, 3, requires_grad=True) for _ in range(2)]
    out = compiled(*args)
    expected = function(*args)
    assert_same(out, expected)
    grads = torch.autograd.grad(out.sum(), args)
    assert_same(grads, torch.autograd.grad(expected.sum(), args))
    assert len(halves) == 2


# ---- copies of the result ---------------------------------------------------------------------


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x):
        y = x.exp()
        with marked():
            y = y.sin() * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return y.cos()


def from_pickle(result):
    return pickle.loads(pickle.dumps(result))


def from_graph_pickler(result):
    pickler = pytest.importorskip("torch.fx._graph_pickler")
    data = pickler.GraphPickler.dumps(result, pickler.Options(ops_filter=None))
    loaded = pickler.GraphPickler.loads(data, FakeTensorMode(shape_env=ShapeEnv()))
    loaded.recompile()
    return loaded


COPIES = [copy.deepcopy, copy.copy, from_pickle, from_graph_pickler]
by_way = pytest.mark.parametrize("make_copy", COPIES, ids=lambda way: way.__name__)
# A GraphModule is pickled as code and traced again, which torch itself can't do for these.
by_way_of_any_graph = pytest.mark.parametrize(
    "make_copy", [way for way in COPIES if way is not from_pickle], ids=lambda way: way.__name__
)


@by_way
def test_copy_of_the_result(under_test, make_copy):
    x = torch.randn(4)
    twin = make_copy(under_test.apply(capture(fn, x), x))
    assert_same(call(twin, x), fn(x))


@by_way
def test_copy_of_a_result_with_parameters_and_constants(under_test, make_copy):
    module, x = Scaled(), torch.randn(4)
    twin = make_copy(under_test.apply(capture(module, x, mode="real"), x))
    assert_same(call(twin, x), module(x))


@by_way_of_any_graph
def test_copy_of_a_result_with_symbolic_shapes(under_test, make_copy):
    x = torch.randn(4, 3)
    twin = make_copy(under_test.apply(capture(fn, x, mode="symbolic"), x))
    for rows in (4, 7):
        x = torch.randn(rows, 3)
        assert_same(call(twin, x), fn(x))


@by_way_of_any_graph
def test_copy_of_a_result_with_a_region_in_a_branch(under_test, make_copy):
    def branches(x):
        def positive(x):
            with marked():
                return x.sin() * 2

        return torch.cond(x.sum() > 0, positive, lambda x: x.cos(), (x,)) + 1

    x = torch.rand(4)
    twin = make_copy(under_test.apply(capture(branches, x), x))
    for x in (torch.rand(4), -torch.rand(4)):
        assert_same(call(twin, x), branches(x))


@pytest.mark.inductor
@pytest.mark.both_lowerings
@by_way
def test_copy_of_a_compiled_result(under_test, make_copy):
    x = torch.randn(4)
    twin = make_copy(under_test.apply(capture(fn, x), x))
    assert_same(call(twin, x), fn(x))


def test_original_and_copy_run_side_by_side(under_test):
    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    twin = copy.deepcopy(result)
    assert_same(call(twin, x), call(result, x))
    del result
    assert_same(call(twin, x), fn(x))


# ---- the pass on its own result ---------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_pass_on_its_own_result_is_a_no_op(under_test, mode):
    x = torch.randn(4)
    result = under_test.apply(capture(fn, x, mode=mode), x)
    before = [(n.op, str(n.target)) for n in result.graph.nodes]
    again = under_test.apply(result, x)
    assert [(n.op, str(n.target)) for n in again.graph.nodes] == before
    assert_same(call(again, x), fn(x))


def test_pass_on_its_own_result_finds_no_region(under_test):
    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    with under_test.watch() as seen:
        under_test.apply(result, x)
    assert not seen


def test_pass_on_its_own_result_with_regions_in_bodies(under_test):
    def branches(x):
        def positive(x):
            with marked():
                return x.sin() * 2

        return torch.cond(x.sum() > 0, positive, lambda x: x.cos(), (x,)) + 1

    x = torch.rand(4)
    result = under_test.apply(capture(branches, x), x)
    with under_test.watch() as seen:
        again = under_test.apply(result, x)
    assert not seen
    for x in (torch.rand(4), -torch.rand(4)):
        assert_same(call(again, x), branches(x))


def test_more_marks_after_a_first_pass(under_test):
    """A second pass compiles what was marked since and leaves the first one's regions alone."""
    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    names = [n.name for n in result.graph.nodes if n.target is torch.ops.aten.cos.default]
    mark_nodes(result, 0, *names)
    with under_test.watch() as seen:
        again = under_test.apply(result, x)
    assert len(seen) == 1
    assert regions_with(seen, "cos")
    assert_same(call(again, x), fn(x))


@pytest.mark.inductor
def test_pass_on_its_own_result_compiles_nothing(under_test):
    x = torch.randn(4)
    result = under_test.apply(capture(fn, x), x)
    with under_test.watch() as seen:
        again = under_test.apply(result, x)
    assert not seen
    assert_same(call(again, x), fn(x))


# ---- odd graphs -------------------------------------------------------------------------------


def test_graph_without_marks_is_left_alone(under_test):
    x = torch.randn(4)
    gm = capture(lambda x: x.sin() + 1, x)
    before = [(n.op, str(n.target)) for n in gm.graph.nodes]
    result = under_test.apply(gm, x)
    assert [(n.op, str(n.target)) for n in result.graph.nodes] == before
    assert_same(call(result, x), x.sin() + 1)


def test_graph_without_inputs(under_test):
    def constant():
        with marked():
            y = torch.ones(3).sin()
        return y + 1

    assert_same(call(under_test.apply(capture(constant))), constant())


def test_graph_that_returns_inputs_and_nones_and_numbers(under_test):
    def odd(x):
        with marked():
            y = x.sin()
        return {"x": x, "y": [y, None], "n": 3}

    x = torch.randn(4)
    gm = capture(odd, x)
    assert_same(under_test.run(gm, x), odd(x))


def test_region_with_an_output_that_nobody_uses(under_test):
    def unused(x):
        with marked():
            y = x.sin()
            x.tanh()
        return y + 1

    x = torch.randn(4)
    assert_same(under_test.run(capture(unused, x), x), unused(x))


def test_marked_op_with_several_outputs(under_test):
    def several(x):
        with marked():
            values, indices = x.sort(dim=0)
            a, b = torch.split(values, 2)
        return indices, a + 1, b

    x = torch.randn(4)
    assert_same(under_test.run(capture(several, x), x), several(x))


def test_getitem_follows_its_producer(under_test):
    """A marked op whose getitems carry no mark: what crosses the border are tensors, no tuples."""

    def several(x):
        values, indices = x.sort(dim=0)
        return values + 1, indices

    x = torch.randn(4)
    gm = mark_nodes(capture(several, x), 0, "sort")
    with under_test.watch() as seen:
        assert_same(under_test.run(gm, x), several(x))
    assert len(seen) == 1


def test_marked_getitem_of_an_unmarked_op(under_test):
    x = torch.randn(4)
    gm = capture(lambda x: x.sort(dim=0)[0] + 1, x)
    mark_nodes(gm, 0, "getitem", "add")
    assert_same(under_test.run(gm, x), x.sort(dim=0)[0] + 1)


def test_marked_placeholder_and_output_are_no_region(under_test):
    x = torch.randn(4)
    gm = capture(lambda x: x.sin(), x)
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "output"):
            node.meta["custom"] = {MARK: 0}
    with under_test.watch() as seen:
        assert_same(under_test.run(gm, x), x.sin())
    assert not seen


def test_keyword_arguments_of_ops(under_test):
    def keywords(x, y):
        with marked():
            return torch.add(input=x, other=y, alpha=2).sum(dim=0, keepdim=True).cos()

    args = torch.randn(3, 4), torch.randn(3, 4)
    assert_same(under_test.run(capture(keywords, *args), *args), keywords(*args))


def test_lists_of_tensors_as_arguments_of_ops(under_test):
    def lists(x, y):
        with marked():
            z = torch.cat([x, y, x.sin()])
        return torch.stack([z, z]).cos()

    args = torch.randn(3, 4), torch.randn(3, 4)
    assert_same(under_test.run(capture(lists, *args), *args), lists(*args))
