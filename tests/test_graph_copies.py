"""Copies of nodes are those that FX makes."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from regional_inductor._torch.fx import copy_graph, copy_node


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
    for node in graph.nodes:
        of_theirs[node] = theirs.node_copy(node, of_theirs.__getitem__)
        of_ours[node] = copy_node(ours, node, of_ours.__getitem__)
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
    again = copy_node(copied, placeholder, lambda node: node)
    assert again.name not in {node.name for node in graph.nodes}
