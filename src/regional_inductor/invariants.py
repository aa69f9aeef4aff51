"""What must hold after each stage. Always checked in tests; `REGIONAL_INDUCTOR_CHECK=1` elsewhere."""

from __future__ import annotations

import os
from typing import Any

import torch.fx
from torch.fx.node import Node

from ._torch import ops
from .regions import (
    Collected,
    Outlined,
    Partitioned,
    PartitionedGraph,
    Region,
    Settings,
)


class InvariantError(AssertionError):
    """A stage broke its promise: a bug of this package, not of the caller's."""


def enabled() -> bool:
    return os.environ.get("REGIONAL_INDUCTOR_CHECK", "") not in ("", "0")


def check(product: Any, settings: Settings) -> None:
    """Check a stage's product, whichever stage it is of."""
    if isinstance(product, Collected):
        _check_collected(product)
    elif isinstance(product, Partitioned):
        for graph in product.graphs:
            check_partitioned(graph, settings)
    elif isinstance(product, Outlined):
        for outlined in product.graphs:
            _check_runnable_order(outlined.graph)


def _check_collected(collected: Collected) -> None:
    for graph in collected.graphs:
        nodes = set(graph.module.graph.nodes)
        for node in graph.marks:
            _require(node in nodes, "a mark is on a node of another graph", node)
            _require(node.op.startswith("call"), "only operators can be marked", node)


def check_partitioned(graph: PartitionedGraph, settings: Settings) -> None:
    """The partition guarantees: one mark a region, each node once, all order kept."""
    place: dict[Node, int] = {}
    for index, item in enumerate(graph.schedule):
        for node in item.nodes if isinstance(item, Region) else (item,):
            _require(node not in place, "a node is scheduled twice", node)
            place[node] = index
    nodes = list(graph.marked.module.graph.nodes)
    for node in nodes:
        _require(node in place, "a node is missing from the schedule", node)
        for argument in node.all_input_nodes:
            _require(place[argument] <= place[node], f"runs before its input {argument.name}", node)
    for region in graph.regions:
        keys = {
            (graph.marked.marks[n].mark.join_key, graph.marked.marks[n].direction)
            for n in region.nodes
        }
        _require(len(keys) == 1, f"region {region.name} mixes marks", region.nodes[0])
    found = [ops.traits(node, graph.marked.module) for node in nodes]
    for earlier, later in ops.ordering_edges(nodes, graph.marked.module, found):
        _require(
            place[nodes[earlier]] <= place[nodes[later]],
            f"overtakes {nodes[earlier].name}, which it must follow",
            nodes[later],
        )
    if settings.merge == "scope":
        unmarked = [
            place[n]
            for n in nodes
            if n not in graph.marked.marks and n.op not in ("placeholder", "get_attr")
        ]
        _require(unmarked == sorted(unmarked), "unmarked nodes changed places", nodes[0])


def _check_runnable_order(graph: torch.fx.Graph) -> None:
    seen: set[Node] = set()
    for node in graph.nodes:
        for argument in node.all_input_nodes:
            _require(argument in seen, f"uses {argument.name} before it is made", node)
        seen.add(node)


def _require(condition: bool, what: str, node: Node) -> None:
    if condition:
        return
    around = [
        f"  {'->' if other is node else '  '} {other.format_node()}" for other in _neighbours(node)
    ]
    raise InvariantError("\n".join([f"{node.name}: {what}", *around]))


def _neighbours(node: Node, distance: int = 4) -> list[Node]:
    nodes = list(node.graph.nodes)
    at = nodes.index(node)
    return nodes[max(0, at - distance) : at + distance + 1]
