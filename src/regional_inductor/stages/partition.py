"""partition: decide which marked nodes form which region, and the order everything runs in."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Hashable
from functools import lru_cache

import torch
from torch.fx.node import Node

from .._torch import ops
from .._torch.collectives import overlap_edges
from ..contraction import resolve
from ..regions import (
    Collected,
    MarkedGraph,
    NodeMark,
    Partitioned,
    PartitionedGraph,
    Region,
    ScheduleItem,
    Settings,
)


def partition(collected: Collected, settings: Settings) -> Partitioned:
    """Decide regions.

    Args:
        collected: The graphs and their marks.
        settings: `merge` chooses between one region for each entry of a marked scope ("scope") and
            as few regions as there can be ("all").

    Returns:
        For each graph its regions and a schedule, a topological order in which every region stands
        in one place. Contracting all regions at once leaves the graph acyclic.
    """
    return Partitioned(
        tuple(_partition_graph(graph, settings) for graph in collected.graphs), collected.findings
    )


def _partition_graph(graph: MarkedGraph, settings: Settings) -> PartitionedGraph:
    nodes = list(graph.module.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    successors = order_constraints(graph, settings, nodes, position)
    if settings.merge == "all":
        wanted = _groups_by_mark(nodes, graph)
    else:
        wanted = _groups_by_scope(nodes, graph, position)
    group, order = resolve(successors, wanted)
    if _follow_producers(nodes, graph, position, group):
        group, order = resolve(successors, group)
    return _as_schedule(graph, nodes, group, order)


def order_constraints(
    graph: MarkedGraph, settings: Settings, nodes: list[Node], position: dict[Node, int]
) -> list[list[int]]:
    """For each node's position the positions that must come after it, by data or hidden order."""
    found = ops.traits_of(nodes, graph.module)
    successors: list[list[int]] = [[position[user] for user in node.users] for node in nodes]
    ends = _ends(nodes, successors)
    for earlier, later in ops.ordering_edges(nodes, graph.module, found):
        successors[earlier].append(later)
    for earlier, later in ends:
        successors[earlier].append(later)
    if settings.merge == "scope":
        _keep_unmarked_in_order(nodes, graph, successors)
        if any(t.collective for t in found):
            movable = [node in graph.marks for node in nodes]
            for earlier, later in overlap_edges(nodes, found, movable):
                successors[earlier].append(later)
    return successors


def _ends(nodes: list[Node], successors: list[list[int]]) -> list[tuple[int, int]]:
    """Edges that keep placeholders first, in their order, and the output last.

    Args:
        nodes: A graph.
        successors: For each node its users, and nothing else yet.
    """
    placeholders = [i for i, node in enumerate(nodes) if node.op == "placeholder"]
    edges = list(itertools.pairwise(placeholders))
    output = len(nodes) - 1
    if nodes[output].op == "output":
        edges += [(i, output) for i, users in enumerate(successors) if not users and i != output]
    if placeholders:
        last = placeholders[-1]
        has_inputs = bytearray(len(nodes))
        for users in successors:
            for user in users:
                has_inputs[user] = 1
        edges += [
            (last, i)
            for i in range(last + 1, len(nodes))
            if not has_inputs[i] and nodes[i].op != "placeholder"
        ]
    return edges


def _keep_unmarked_in_order(
    nodes: list[Node], graph: MarkedGraph, successors: list[list[int]]
) -> None:
    """A chain through all unmarked nodes; attributes are free, since reading one does nothing."""
    previous = -1
    for i, node in enumerate(nodes):
        if node in graph.marks or node.op in ("placeholder", "get_attr"):
            continue
        if previous >= 0:
            successors[previous].append(i)
        previous = i


def _follow_producers(
    nodes: list[Node], graph: MarkedGraph, position: dict[Node, int], group: list[int]
) -> bool:
    """Put each selection from a tuple into its producer's region; says whether one had left it.

    That can't close a cycle: a selection depends on nothing but its producer.
    """
    moved = False
    for i, node in enumerate(nodes):
        if group[i] >= 0 and node.target is operator.getitem:
            producer = node.args[0]
            if isinstance(producer, Node) and isinstance(graph.values.get(producer), (tuple, list)):
                moved = moved or group[i] != group[position[producer]]
                group[i] = group[position[producer]]
    return moved


def _groups_by_mark(nodes: list[Node], graph: MarkedGraph) -> list[int]:
    """One group for all nodes of one mark."""
    numbers: dict[Hashable, int] = {}
    known: dict[tuple[int, str], int] = {}  # by the mark itself: many nodes share one
    group = []
    for node in nodes:
        marked = graph.marks.get(node)
        if marked is None:
            group.append(-1)
            continue
        seen = (id(marked.mark), marked.direction)
        number = known.get(seen)
        if number is None:
            number = known[seen] = numbers.setdefault(_joinable(marked), len(numbers))
        group.append(number)
    return group


def _groups_by_scope(nodes: list[Node], graph: MarkedGraph, position: dict[Node, int]) -> list[int]:
    """Nodes of one entry, of one id, or connected by data, as far as their marks are equal.

    Modules of one class that feed one another (a tower of blocks) stay apart: each is a place of
    its own, and together they would be one large region where apart they compile once.
    """
    parent = list(range(len(nodes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    towers = _towers(graph)
    entries: dict[Hashable, int] = {}
    for i, node in enumerate(nodes):
        marked = graph.marks.get(node)
        if marked is None:
            continue
        joinable = _joinable(marked)
        place: Hashable = (joinable, marked.entry)
        if marked.mark.id is not None:
            place = (joinable, None)
        parent[root(i)] = root(entries.setdefault(place, i))
        for argument in node.all_input_nodes:
            other = graph.marks.get(argument)
            if other is None or _joinable(other) != joinable:
                continue
            apart = marked.entry != other.entry and (
                marked.mark.scope in towers or other.mark.scope in towers
            )
            if not apart or marked.mark.id is not None:
                parent[root(i)] = root(position[argument])
    return [root(i) if node in graph.marks else -1 for i, node in enumerate(nodes)]


def _towers(graph: MarkedGraph) -> set[str]:
    """Scopes of marked modules of which one feeds another of the same class directly."""
    towers = set()
    for node, marked in graph.marks.items():
        scope = marked.mark.scope
        if scope is None or not scope.startswith("module:"):
            continue
        for argument in node.all_input_nodes:
            other = graph.marks.get(argument)
            if other is not None and other.mark.scope == scope and other.entry != marked.entry:
                towers.add(scope)
    return towers


def _joinable(marked: NodeMark) -> Hashable:
    """What two nodes must have in common to share a region."""
    return (marked.mark.join_key, marked.direction)


def _as_schedule(
    graph: MarkedGraph, nodes: list[Node], group: list[int], order: list[int]
) -> PartitionedGraph:
    members: list[list[Node]] = [[] for _ in range(1 + max(group, default=-1))]
    for node, g in zip(nodes, group, strict=True):
        if g >= 0:
            members[g].append(node)
    schedule: list[ScheduleItem] = []
    regions: list[Region] = []
    taken: dict[str, int] = {}
    for first in order:
        if group[first] < 0:
            schedule.append(nodes[first])
            continue
        inside = tuple(members[group[first]])
        marked = graph.marks[inside[0]]
        label = _label(inside, graph)
        if marked.direction == "backward":
            inside = in_order_of_use(inside, graph.module)
        region = Region(_region_name(label, taken), label, inside, marked.mark, marked.direction)
        regions.append(region)
        schedule.append(region)
    return PartitionedGraph(graph, tuple(regions), tuple(schedule))


def in_order_of_use(nodes: tuple[Node, ...], module: torch.nn.Module) -> tuple[Node, ...]:
    """The nodes of a region, each where what it serves first needs it; as they are if order matters.

    AOTAutograd's partitioners place what a backward graph computes again wherever that is first free to run,
    which differs from layer to layer. Regions that differ in nothing else are then one region.
    """
    if any(ops.traits(node, module).order_matters for node in nodes):
        return nodes
    members = set(nodes)
    placed: dict[Node, None] = {}
    for last in nodes:
        if last.users and all(user in members for user in last.users):
            continue
        stack = [(last, iter(last.all_input_nodes))]
        while stack:
            node, arguments = stack[-1]
            waiting = next((n for n in arguments if n in members and n not in placed), None)
            if waiting is None:
                placed[node] = None
                stack.pop()
            else:
                stack.append((waiting, iter(waiting.all_input_nodes)))
    return tuple(placed)


def _label(nodes: tuple[Node, ...], graph: MarkedGraph) -> str:
    """What the user called the scopes that make up a region: `norm`, `norm+mlp`."""
    marks = graph.marks
    names = dict.fromkeys([marks[node].mark.name for node in nodes])
    return "+".join(name for name in names if name) or "region"


def _region_name(label: str, taken: dict[str, int]) -> str:
    name = _as_name(label)
    number = taken.get(name, 0)
    taken[name] = number + 1
    return f"{name}_{number}" if number else name


@lru_cache(maxsize=1024)
def _as_name(label: str) -> str:
    name = re.sub(r"\W+", "_", label).strip("_") or "region"
    return f"region_{name}" if name[0].isdigit() else name
