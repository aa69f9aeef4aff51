"""The text of a graph's code is the one that FX writes, line for line."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks import _graphs
from regional_inductor._torch import fx

aten = torch.ops.aten


def own_function(x, scale=1.0, *, parts=()):
    return x * scale


def family(name):
    return lambda: _graphs.build(name, 120, ordered=True)


def captured():
    def function(x, y):
        parts = torch.split(x.sin() + 1, [1, 2], dim=0)
        full = torch.full((2,), float("inf"), dtype=torch.float64, device="cpu")
        return torch.cat([parts[1], y], 0).sum(dim=(0,), keepdim=True), {"y": parts[0]}["y"], full

    return make_fx(function, tracing_mode="fake")(torch.ones(3, 2), torch.ones(4, 2))


def built(*calls, output=None):
    """A graph of calls, each a target, its arguments after the node before, and its name."""
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    for target, arguments, name in calls:
        node = graph.create_node("call_function", target, (node, *arguments), name=name)
    graph.output(node if output is None else output)
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def with_submodule():
    root = torch.nn.Module()
    root.block = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    root.weight = torch.nn.Parameter(torch.ones(2))
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("weight")
    first = graph.call_module("block.0", (x,))
    graph.call_function(aten._assert_async.msg, (x, "a\nline"))
    graph.output((graph.call_function(aten.mul.Tensor, (first, weight)), [weight, None], (x,)))
    return torch.fx.GraphModule(root, graph)


USUAL = {
    **{name: family(name) for name in _graphs.FAMILIES},
    "captured": captured,
    "submodule": with_submodule,
    "own function": lambda: built((own_function, (2.0,), "a"), (own_function, (), "b_1")),
    "two functions of one name": lambda: built((math.sqrt, (), "a"), (torch.sqrt, (), "b")),
    "selected": lambda: built((operator.getitem, (0,), "a"), (operator.getitem, ("key",), "b")),
    "no nodes": lambda: built(output=()),
}
UNUSUAL = {
    "traced": lambda: torch.fx.symbolic_trace(lambda x, y=2, *rest: -x.view(-1)[1:] + y),
    "a global's name": lambda: built((math.sqrt, (), "math_sqrt"), (math.sqrt, (), "b")),
    "a builtin's name": lambda: renamed(built((torch.sin, (), "a")), "len"),
    "one name twice": lambda: renamed(built((torch.sin, (), "a"), (torch.sin, (), "b")), "a"),
    "getattr": lambda: built((getattr, ("shape",), "a")),
    "slice": lambda: built((operator.getitem, (slice(1, None),), "a")),
    "annotated": lambda: annotated(built((torch.sin, (), "a"))),
    "in place": lambda: built((operator.iadd, (1,), "a")),
}


def renamed(module, name):
    list(module.graph.nodes)[-2].name = name
    return module


def annotated(module):
    list(module.graph.nodes)[1].type = torch.Tensor
    return module


def texts(module, boxed):
    """What FX writes, and what we do."""
    if boxed:
        fx.set_boxed(module.graph, direct=boxed == "direct")
    found = []
    for generate in (type(module).recompile, fx.recompile):
        generate(module)
        code = module.graph.python_code("self") if generate is not fx.recompile else None
        names = {} if code is None else code.globals
        found.append((module.code, module._lineno_map, module._prologue_start))
        assert all(module.forward.__globals__[name] is value for name, value in names.items())
    return found


@pytest.mark.parametrize("boxed", ["", "boxed", "direct"])
@pytest.mark.parametrize("graph", [*USUAL, *UNUSUAL])
def test_the_text_is_the_one_that_fx_writes(graph, boxed):
    theirs, ours = texts((USUAL | UNUSUAL)[graph](), boxed)
    assert ours == theirs


@pytest.mark.skipif(
    torch.__version__.split(".")[:2] != ["2", "13"], reason="on other versions FX writes all text"
)
@pytest.mark.parametrize("graph", list(USUAL))
def test_fx_is_not_asked_for_usual_graphs(graph, monkeypatch):
    module = USUAL[graph]()
    monkeypatch.setattr(torch.fx.Graph, "python_code", None)
    fx.recompile(module)
    assert "python_code" not in vars(module.graph)


def test_a_transformer_of_the_callers_gets_the_lines_of_fx():
    seen = []
    module = captured()
    module.graph.on_generate_code(lambda _: lambda body: seen.append(list(body)) or body)
    module.recompile()
    fx.recompile(module)
    assert seen[0] == seen[1]


def test_what_was_written_runs():
    module, x = torch.fx.symbolic_trace(torch.nn.ReLU()), torch.tensor([-1.0, 2.0])
    fx.set_boxed(module.graph)
    fx.recompile(module)
    assert torch.equal(module([x]), torch.relu(x))
