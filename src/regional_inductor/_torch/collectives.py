"""Collectives in flight: what was issued and is not waited for yet, and what runs meanwhile.

Checked on torch 2.11 and 2.13: a functional collective returns at once, and `wait_tensor`, whose first
argument is its result or a selection or view of it, is where the caller needs it.
"""

from __future__ import annotations

import heapq
import operator

from torch.fx.node import Node

from .ops import OpTraits


def overlap_edges(
    nodes: list[Node], found: list[OpTraits], movable: list[bool]
) -> list[tuple[int, int]]:
    """Pairs of positions that keep computation beside the collectives that it hides.

    What runs between a collective and its wait stays there: after the last one that was issued before
    it, before the first wait that follows. Starts and waits keep their own order (`ordering_edges`), so
    two edges a node say it for all that are in flight.

    Args:
        nodes: A graph, in order.
        found: What each does besides computing.
        movable: Which nodes might otherwise be moved.
    """
    waits = _waits(nodes, found)
    edges: list[tuple[int, int]] = []
    issued: list[int] = []  # by position; those that have been waited for go when they are last
    awaited: list[int] = []  # a heap of the waits of what was issued
    for i, node in enumerate(nodes):
        if i in waits:
            issued.append(i)
            for wait in waits[i]:
                heapq.heappush(awaited, wait)
        if not movable[i] or not _computes(node, found[i]):
            continue
        while issued and waits[issued[-1]] and waits[issued[-1]][-1] <= i:
            issued.pop()
        while awaited and awaited[0] <= i:
            heapq.heappop(awaited)
        if issued:
            edges.append((issued[-1], i))
        if awaited:
            edges.append((i, awaited[0]))
    return edges


def _waits(nodes: list[Node], found: list[OpTraits]) -> dict[int, list[int]]:
    """For the position of each collective those of its waits; none where the caller waits."""
    position = {node: i for i, node in enumerate(nodes)}
    waits: dict[int, list[int]] = {
        i: [] for i, node in enumerate(nodes) if found[i].collective and not _is_wait(node)
    }
    for i, node in enumerate(nodes):
        if not found[i].collective or not _is_wait(node):
            continue
        source = node.args[0] if node.args else None
        while isinstance(source, Node) and position[source] not in waits:
            if not (source.target is operator.getitem or found[position[source]].aliases):
                break
            source = source.args[0] if source.args else None
        if isinstance(source, Node) and position[source] in waits:
            waits[position[source]].append(i)
    return waits


def _is_wait(node: Node) -> bool:
    return getattr(node.target, "__name__", "").partition(".")[0] == "wait_tensor"


def _computes(node: Node, traits: OpTraits) -> bool:
    """Whether running a node takes time that a collective might hide; views and selections don't."""
    is_call = node.op in ("call_function", "call_method", "call_module")
    is_view = bool(traits.aliases) and not traits.writes
    return is_call and not is_view and not traits.collective and node.target is not operator.getitem
