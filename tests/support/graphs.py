"""Graphs for tests: captured by make_fx, or built at random; and marks on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import annotate, preserve_node_meta

MARK = "compile_with_inductor"


def marked(value: Any = 0) -> Any:
    """PyTorch's mark, as a context manager and decorator that Dynamo traces."""
    return annotate({MARK: value})


def with_options(**options: Any) -> Any:
    """PyTorch's mark with Inductor options."""
    return annotate({MARK: {"inductor_configs": options}})


def with_id(region: Hashable, **options: Any) -> Any:
    """PyTorch's mark with an explicit id."""
    mark: dict[str, Any] = {"inductor_region": region}
    if options:
        mark["inductor_configs"] = options
    return annotate({MARK: mark})


def capture(fn: Callable[..., Any], *args: Any, mode: str = "fake", **kwargs: Any) -> GraphModule:
    """A make_fx graph (fake, symbolic or real) that keeps the marks made while it is traced."""
    with preserve_node_meta():
        return make_fx(fn, tracing_mode=mode, _allow_non_fake_inputs=True, **kwargs)(*args)


def mark_nodes(gm: GraphModule, value: Any, *names: str) -> GraphModule:
    """Mark nodes of a captured graph by their names; all calls where no name is given."""
    found = set()
    for node in gm.graph.nodes:
        is_call = node.op in ("call_function", "call_module", "call_method")
        if node.name in names or (not names and is_call):
            node.meta["custom"] = {**node.meta.get("custom", {}), MARK: value}
            found.add(node.name)
    missing = set(names) - found
    assert not missing, f"no such nodes: {missing}\n{gm.graph}"
    return gm


def calls(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if n.op == "call_function"]


UNARY = (
    torch.ops.aten.sin.default,
    torch.ops.aten.cos.default,
    torch.ops.aten.tanh.default,
    torch.ops.aten.sigmoid.default,
)
BINARY = (torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor, torch.ops.aten.sub.Tensor)


def random_graph(seed: int, *, size: int, ids: int, marked_share: float = 0.6) -> GraphModule:
    """A functional graph of pointwise ops on [4] tensors, its nodes marked with random ids.

    Near operands are likelier than far ones, so that both chains and parallel streams occur. All
    sinks are outputs, so nothing is dead. One input, x.
    """
    rng = random.Random(seed)
    fake = torch._subclasses.FakeTensorMode()
    with fake:
        value = torch.empty(4)
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = value
    nodes = [x]
    for _ in range(size):
        recent = nodes[-6:] if rng.random() < 0.8 else nodes
        if rng.random() < 0.4:
            node = graph.call_function(rng.choice(UNARY), (rng.choice(recent),))
        else:
            operands = (rng.choice(recent), rng.choice(nodes))
            node = graph.call_function(rng.choice(BINARY), operands)
        node.meta["val"] = value
        if rng.random() < marked_share:
            node.meta["custom"] = {MARK: {"inductor_region": rng.randrange(ids)}}
        nodes.append(node)
    graph.output(tuple(n for n in nodes if not n.users))
    return GraphModule(torch.nn.Module(), graph)
