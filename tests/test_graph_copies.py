"""Copies of nodes are those that FX makes."""

from __future__ import annotations

import torch
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx

from regional_inductor._torch.fx import Appender, copy_graph, lazy_graph_module


def captured() -> torch.fx.GraphModule:
    def function(x, y):
        parts = torch.split(x.sin() + 1, [1, 2], dim=0)
        return torch.cat([parts[1], y], 0).sum(dim=(0,), keepdim=True), {"y": parts[0]}

    return make_fx(function, tracing_mode="fake")(torch.ones(3, 2), torch.ones(4, 2))


def described(graph: torch.fx.Graph) -> list[tuple]:
    return [
        (
            node.op,
            node.name,
            node.target,
            str(node.args),
            str(node.kwargs),
            node.type,
            sorted(map(str, node.users)),
            sorted(node.meta),
        )
        for node in graph.nodes
    ]


def test_a_copy_is_the_one_that_fx_makes():
    graph = captured().graph
    theirs, ours = torch.fx.Graph(), torch.fx.Graph()
    of_theirs: dict = {}
    of_ours: dict = {}
    appender = Appender(ours)
    for node in graph.nodes:
        of_theirs[node] = theirs.node_copy(node, of_theirs.__getitem__)
        of_ours[node] = appender.copy(node, of_ours)
    ours.lint()
    assert described(ours) == described(theirs)
    assert len(ours.nodes) == len(theirs.nodes)
    for node in graph.nodes:
        wanted = {"op": node.op}
        if node.op == "call_function":
            wanted["target"] = node.target
        assert list(map(str, ours.find_nodes(**wanted))) == list(
            map(str, theirs.find_nodes(**wanted))
        )
    assert all(of_ours[n].meta is not n.meta for n in graph.nodes)


def test_a_taken_name_gets_a_number():
    graph = captured().graph
    copied = copy_graph(graph)
    placeholder = next(iter(graph.nodes))
    again = Appender(copied).copy(placeholder, {})
    assert again.name not in {node.name for node in graph.nodes}


NAMES = (
    *(
        "x",
        "x",
        "x_1",
        "x_007",
        "x_7",
        "x",
        "x_",
        "_1",
        "_",
        "x__2",
        "x__2",
        "len",
        "len",
        "len_1",
        "class",
    ),
    *("a.b", "1st", "", "über", "x_1_2", "x_1_2", "arg0", "arg0_1", "arg0", "x_٣"),
)


def test_names_are_those_that_fx_gives():
    theirs, ours = torch.fx.Graph(), torch.fx.Graph()
    appender = Appender(ours)
    for name in NAMES:
        theirs.create_node("call_function", torch.sin, (), {}, name=name)
        appender.add("call_function", torch.sin, (), {}, name)
    assert [node.name for node in ours.nodes] == [node.name for node in theirs.nodes]
    theirs.create_node("call_function", torch.sin, (), {}, name="x")
    ours.create_node("call_function", torch.sin, (), {}, name="x")
    assert [node.name for node in ours.nodes] == [node.name for node in theirs.nodes]


def test_a_lazy_module_is_the_one_that_fx_makes():
    graph = captured().graph
    with _use_lazy_graph_module(True):
        theirs = _make_graph_module({}, graph, "region")
    ours, another = (lazy_graph_module({}, copy_graph(graph), "region") for _ in range(2))
    assert {name: type(value) for name, value in vars(ours).items()} == {
        name: type(value) for name, value in vars(theirs).items()
    }
    for name, value in vars(ours).items():
        if isinstance(value, (dict, list, set)):
            assert value is not vars(another)[name], name
    assert type(ours).__name__ == "region"
    assert type(ours).__mro__[1:] == type(theirs).__mro__[1:]
    assert type(ours) is not type(another)
    assert ours.graph.owning_module is ours
    assert ours.code == theirs.code
    x, y = torch.randn(3, 2), torch.randn(4, 2)
    assert torch.equal(ours(x, y)[0], theirs(x, y)[0])
