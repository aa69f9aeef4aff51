"""What a partition must be, decided independently of the package: by brute force, or by running.

Nothing here asks the package about operators, marks or order: marks are read from raw meta,
mutation and draws are seen by executing each node and looking at versions and generator state.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from .graphs import MARK

Edges = list[tuple[Node, Node]]


# --- order that data edges don't show, found by running --------------------------------------------


class _Watch(Interpreter):
    """Runs a graph and takes down for each node the storages it reads and writes, and its draws."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.reads: dict[Node, set[int]] = {}
        self.writes: dict[Node, set[int]] = {}
        self.draws: set[Node] = set()
        self.effects: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        if not n.op.startswith("call"):
            return super().run_node(n)
        tensors = [self.env[a] for a in n.all_input_nodes if isinstance(self.env[a], torch.Tensor)]
        versions = [t._version for t in tensors]
        state = torch.get_rng_state()
        try:
            result = super().run_node(n)
        except RuntimeError as error:
            if "assert " not in str(error):
                raise
            result = None  # a failing assert still stands in the order
        written = {_storage(t) for t, v in zip(tensors, versions, strict=True) if t._version != v}
        only_views = not written and _shares_storage(result, tensors)
        self.writes[n] = written
        self.reads[n] = set() if only_views else {_storage(t) for t in tensors}
        if not torch.equal(state, torch.get_rng_state()):
            self.draws.add(n)
        if any(name in str(n.target) for name in ("record", "_assert", "all_reduce")):
            self.effects.add(n)
        return result


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _shares_storage(result: Any, tensors: Iterable[torch.Tensor]) -> bool:
    results = result if isinstance(result, (tuple, list)) else (result,)
    known = {_storage(t) for t in tensors}
    tensor_results = [r for r in results if isinstance(r, torch.Tensor)]
    return bool(tensor_results) and all(_storage(r) in known for r in tensor_results)


def hidden_order(gm: GraphModule, args: Sequence[Any]) -> Edges:
    """All pairs of nodes (earlier, later) whose exchange could be seen, without data edges."""
    watch = _Watch(gm)
    watch.run(*args)
    nodes = [n for n in gm.graph.nodes if n in watch.writes]
    pairs = []
    for i, later in enumerate(nodes):
        for earlier in nodes[:i]:
            touched = watch.reads[later] | watch.writes[later]
            touched_before = watch.reads[earlier] | watch.writes[earlier]
            if (
                watch.writes[earlier] & touched
                or watch.writes[later] & touched_before
                or {earlier, later} <= watch.draws
                or {earlier, later} <= watch.effects
            ):
                pairs.append((earlier, later))
    return pairs


# --- marks, read from raw meta ---------------------------------------------------------------------


def raw_mark(node: Node) -> tuple[Hashable, ...] | None:
    """What must be equal for two nodes to share a region, or None for an unmarked node."""
    custom = node.meta.get("custom") or {}
    if node.op in ("placeholder", "output", "get_attr") or MARK not in custom:
        return None
    value = custom[MARK]
    if not isinstance(value, dict):
        value = {}
    if value.get("eager"):
        return None
    return (
        tuple(sorted((k, repr(v)) for k, v in value.get("inductor_configs", {}).items())),
        repr(value.get("inductor_region")),
        value.get("numerics"),
    )


def producer_of(node: Node) -> Node:
    """The node itself, or what made the tuple from which it selects."""
    while node.target is operator.getitem and isinstance(value_of(node.args[0]), (tuple, list)):
        node = node.args[0]
    return node


def value_of(node: Node) -> Any:
    return node.meta.get("val", node.meta.get("example_value"))


def is_marked(node: Node) -> bool:
    return raw_mark(producer_of(node)) is not None


def may_stay_out(node: Node) -> bool:
    """Whether a marked node asks for `numerics="eager"`, which leaves out what it can't give bit for bit."""
    value = producer_of(node).meta["custom"][MARK]
    return isinstance(value, dict) and value.get("numerics") == "eager"


# --- graph facts by brute force --------------------------------------------------------------------


def data_edges(nodes: Iterable[Node]) -> Edges:
    return [(argument, node) for node in nodes for argument in node.all_input_nodes]


def unit_edges(edges: Edges, unit: dict[Node, Hashable]) -> dict[Hashable, set[Hashable]]:
    result: dict[Hashable, set[Hashable]] = {u: set() for u in unit.values()}
    for a, b in edges:
        if unit[a] != unit[b]:
            result[unit[a]].add(unit[b])
    return result


def on_a_cycle(edges: dict[Hashable, set[Hashable]]) -> set[Hashable]:
    """Which vertices reach themselves, by walking from each."""
    cyclic = set()
    for start in edges:
        reached: set[Hashable] = set()
        walk = list(edges[start])
        while walk:
            u = walk.pop()
            if u not in reached:
                reached.add(u)
                walk += edges[u]
        if start in reached:
            cyclic.add(start)
    return cyclic


def is_acyclic(edges: dict[Hashable, set[Hashable]]) -> bool:
    """The same question for graphs too large to walk from each vertex: sinks away until none is left."""
    before: dict[Hashable, list[Hashable]] = {u: [] for u in edges}
    for u, after in edges.items():
        for v in after:
            before[v].append(u)
    left = {u: len(after) for u, after in edges.items()}
    sinks = [u for u, count in left.items() if count == 0]
    for u in sinks:  # grows while it is walked
        for v in before[u]:
            left[v] -= 1
            if left[v] == 0:
                sinks.append(v)
    return len(sinks) == len(edges)


def unmarked_chain(nodes: Sequence[Node]) -> Edges:
    """Guarantee 4 as edges: unmarked nodes one after another."""
    plain = [n for n in nodes if n.op not in ("placeholder", "get_attr") and not is_marked(n)]
    return list(itertools.pairwise(plain))


def fewest_pieces(members: set[Node], nodes: Sequence[Node], edges: Edges) -> int:
    """The fewest convex pieces of one set of nodes: the most times that a path enters it."""
    after: dict[Node, list[Node]] = {n: [] for n in nodes}
    waiting = dict.fromkeys(nodes, 0)
    for a, b in edges:
        after[a].append(b)
        waiting[b] += 1
    entered = {n: int(n in members) for n in nodes}
    ready = [n for n in nodes if waiting[n] == 0]
    seen = 0
    while ready:
        n = ready.pop()
        seen += 1
        for m in after[n]:
            step = int(m in members and n not in members)
            entered[m] = max(entered[m], entered[n] + step)
            waiting[m] -= 1
            if waiting[m] == 0:
                ready.append(m)
    assert seen == len(nodes)
    return max((entered[n] for n in members), default=0)


# --- a partition, as plain data --------------------------------------------------------------------


def places(partitioned: Any) -> dict[Node, int]:
    """Each node's place in the schedule of a partitioned graph."""
    found: dict[Node, int] = {}
    for place, item in enumerate(partitioned.schedule):
        for node in (item,) if isinstance(item, Node) else item.nodes:
            assert node not in found
            found[node] = place
    return found


def schedule_of(partitioned: Any) -> list[tuple[str, ...]]:
    """A schedule by names, to compare two of them."""
    return [
        (item.name,) if isinstance(item, Node) else ("region", *(n.name for n in item.nodes))
        for item in partitioned.schedule
    ]
