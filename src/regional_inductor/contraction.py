"""Contracting groups of a directed acyclic graph so that it stays acyclic.

Pure integer graph code, apart from FX: nodes are positions ``0..n-1`` in a topological order,
``group[i]`` is the group of node ``i`` or ``-1``. Everything here is near-linear in nodes and edges
except where groups form cycles with one another; there the effort is bounded.

The levels are the longest-path layering of DAG scheduling (Sugiyama, Tagawa and Toda 1981, section
on layer assignment), counting only alternations between a group and the rest.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

Adjacency = Sequence[Sequence[int]]

_EFFORT = 3_000_000
"""Most node visits spent on looking for fewer regions in one cyclic component."""

_FEW = 4
"""So many groups are levelled over the whole graph before anybody looks for the cycles."""


def resolve(successors: Adjacency, group: Sequence[int]) -> tuple[list[int], list[int]]:
    """Split groups until contracting all of them at once leaves the graph acyclic.

    Args:
        successors: For each node the nodes that must run after it; every edge goes from a lower to
            a higher position.
        group: For each node the group it would like to be in, or -1.

    Returns:
        The group of each node after splitting (numbered by first member, -1 kept) and the order in
        which contracted units run, each unit given by its first member.
    """
    result = _renumber(group)
    levelled = _levelled(successors, result)
    if levelled is not None:
        order, cyclic = _order(successors, levelled)
        if not cyclic:
            return levelled, order
    while True:
        order, cyclic = _order(successors, result)
        if not cyclic:
            return result, order
        fresh = len(group)
        for component in _components(successors, result, cyclic):
            fresh = _split(successors, result, component, fresh)
        result = _renumber(result)


def _levelled(successors: Adjacency, group: Sequence[int]) -> list[int] | None:
    """Groups split by their levels in the whole graph, where there are few and one of them must split.

    What `_best_split` tries first in each cyclic component, for all of them at once: a group's levels
    differ only along paths that leave it and come back, and such a path lies in one component.
    """
    groups = 1 + max(group, default=-1)
    if not 0 < groups <= _FEW:
        return None
    predecessors = _reversed(successors)
    levels = [_levels(predecessors, group, g) for g in range(groups)]
    split = _join_levels(group, levels)
    return None if 1 + max(split) == groups else split


def _renumber(group: Sequence[int]) -> list[int]:
    numbers: dict[int, int] = {}
    return [-1 if g < 0 else numbers.setdefault(g, len(numbers)) for g in group]


def _units(group: Sequence[int]) -> tuple[list[int], list[int]]:
    """For each node its unit (named by the unit's first member), and each unit's last member."""
    first: dict[int, int] = {}
    unit = [i if g < 0 else first.setdefault(g, i) for i, g in enumerate(group)]
    last = list(range(len(group)))
    for i, u in enumerate(unit):
        last[u] = i
    return unit, last


def _order(successors: Adjacency, group: Sequence[int]) -> tuple[list[int], list[int]]:
    """Order of units, each as near to its last member's old place as it can be; and what is left.

    Kahn's algorithm with a heap. Units left over lie on or behind a cycle.
    """
    unit, last = _units(group)
    count = len(group)
    waiting = [0] * count
    for i in range(count):
        u = unit[i]
        for j in successors[i]:
            if unit[j] != u:
                waiting[unit[j]] += 1
    members: dict[int, list[int]] = {}
    for i in range(count):
        if group[i] >= 0:
            members.setdefault(unit[i], []).append(i)
    # A unit is known by its last member's place, so that the heap holds plain numbers.
    heap = [last[i] for i in range(count) if unit[i] == i and waiting[i] == 0]
    heapq.heapify(heap)
    pop, push = heapq.heappop, heapq.heappush
    order: list[int] = []
    done = [False] * count
    while heap:
        u = unit[pop(heap)]
        order.append(u)
        done[u] = True
        for i in members.get(u) or (u,):
            for j in successors[i]:
                v = unit[j]
                if v != u:
                    waiting[v] -= 1
                    if not waiting[v]:
                        push(heap, last[v])
    left = [i for i in range(count) if not done[unit[i]]]
    return order, left


def _components(successors: Adjacency, group: Sequence[int], nodes: list[int]) -> list[list[int]]:
    """Node lists of the strongly connected components (of units) with a cycle. Tarjan, iterative.

    `nodes` are those that `_order` left over: whatever comes after one of them is one of them too.
    """
    unit, _ = _units(group)
    members: dict[int, list[int]] = {}
    for i in nodes:
        members.setdefault(unit[i], []).append(i)
    index = [0] * len(group)  # 0: not seen yet
    low = [0] * len(group)
    on_stack = bytearray(len(group))
    stack: list[int] = []
    components: list[list[int]] = []
    seen = 0

    def after(u: int) -> Iterator[int]:
        return iter([unit[j] for i in members[u] for j in successors[i]])

    for start in members:
        if index[start]:
            continue
        seen += 1
        index[start] = low[start] = seen
        stack.append(start)
        on_stack[start] = 1
        work = [(start, after(start))]
        while work:
            u, ahead = work[-1]
            for v in ahead:
                if not index[v]:
                    seen += 1
                    index[v] = low[v] = seen
                    stack.append(v)
                    on_stack[v] = 1
                    work.append((v, after(v)))
                    break
                if on_stack[v] and index[v] < low[u]:
                    low[u] = index[v]
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[u])
                if low[u] < index[u]:
                    continue
                component: list[int] = []
                while not component or component[-1] != u:
                    component.append(stack.pop())
                    on_stack[component[-1]] = 0
                if len(component) > 1:
                    components.append(sorted(i for v in component for i in members[v]))
    return components


def _split(successors: Adjacency, group: list[int], component: list[int], fresh: int) -> int:
    """Give the nodes of one cyclic component new groups that contract without a cycle.

    The new groups are numbered from `fresh` on; returns the next number.
    """
    local = {node: i for i, node in enumerate(component)}
    edges = [[local[j] for j in successors[node] if j in local] for node in component]
    colour = _renumber([group[node] for node in component])
    best = _best_split(edges, colour)
    for i, node in enumerate(component):
        if best[i] >= 0:
            group[node] = fresh + best[i]
    return fresh + 1 + max(best)


def _best_split(edges: Adjacency, colour: list[int]) -> list[int]:
    """The split with the fewest groups among those tried.

    Each colour split alone by its levels is the fewest there can be; where that is acyclic taken
    together, it is returned. Otherwise colours are split one after another, each in the graph with
    those before it contracted (never cyclic), in several orders, and by a greedy schedule.
    """
    colours = 1 + max(colour)
    size = len(colour) + sum(map(len, edges))
    if colours * size > _EFFORT:
        return _greedy(edges, colour)
    predecessors = _reversed(edges)
    early = _join_levels(colour, [_levels(predecessors, colour, c) for c in range(colours)])
    if not _order(edges, early)[1]:
        return early
    late = _join_levels(colour, [_late_levels(edges, colour, c) for c in range(colours)])
    if not _order(edges, late)[1]:
        return late
    candidates = [_greedy(edges, colour)]
    if 4 * colours * size <= _EFFORT:
        counts = [
            len({e for e, c in zip(early, colour, strict=True) if c == k}) for k in range(colours)
        ]
        ascending = sorted(range(colours), key=lambda k: (counts[k], k))
        for order in (ascending, ascending[::-1], list(range(colours)), list(range(colours))[::-1]):
            candidates.append(_one_after_another(edges, colour, order))
    return min(candidates, key=lambda groups: len(set(groups)))


def _reversed(edges: Adjacency) -> list[list[int]]:
    result: list[list[int]] = [[] for _ in edges]
    for i, after in enumerate(edges):
        for j in after:
            result[j].append(i)
    return result


def _levels(predecessors: Adjacency, colour: Sequence[int], c: int) -> list[int]:
    """How many groups of colour ``c`` must have run before each node can. One sweep."""
    inside = [0] * len(colour)  # what a node of the colour sees at its predecessors
    outside = [0] * len(colour)  # and any other node: one more behind a node of the colour
    of_inside, of_outside = inside.__getitem__, outside.__getitem__
    for i, before in enumerate(predecessors):
        if colour[i] == c:
            if before:
                inside[i] = max(map(of_inside, before))
            outside[i] = inside[i] + 1
        elif before:
            inside[i] = outside[i] = max(map(of_outside, before))
    return inside


def _late_levels(successors: Adjacency, colour: Sequence[int], c: int) -> list[int]:
    """The same counted from the end: how many groups must still come after, negated."""
    level = [0] * len(colour)
    for i in range(len(colour) - 1, -1, -1):
        lowest = 0
        mine = colour[i] == c
        for s in successors[i]:
            reached = level[s] - (colour[s] == c and not mine)
            if reached < lowest:
                lowest = reached
        level[i] = lowest
    return level


def _join_levels(colour: Sequence[int], levels: Sequence[Sequence[int]]) -> list[int]:
    numbers: dict[tuple[int, int], int] = {}
    return [
        -1 if c < 0 else numbers.setdefault((c, levels[c][i]), len(numbers))
        for i, c in enumerate(colour)
    ]


def _one_after_another(edges: Adjacency, colour: Sequence[int], order: Sequence[int]) -> list[int]:
    """Split colours in the given order, each by its levels in the graph contracted so far."""
    result = [-1] * len(colour)
    fresh = 0
    for c in order:
        units, left = _order(edges, result)
        assert not left
        unit, _ = _units(result)
        rank = {u: k for k, u in enumerate(units)}
        place = [rank[u] for u in unit]
        before: list[list[int]] = [[] for _ in units]
        shade = [-1] * len(units)
        for i, after in enumerate(edges):
            if colour[i] == c:
                shade[place[i]] = c
            for j in after:
                if place[i] != place[j]:
                    before[place[j]].append(place[i])
        level = _levels(before, shade, c)
        numbers: dict[int, int] = {}
        for i in range(len(colour)):
            if colour[i] == c:
                result[i] = fresh + numbers.setdefault(level[place[i]], len(numbers))
        fresh += len(numbers)
    return result


def _greedy(edges: Adjacency, colour: Sequence[int]) -> list[int]:
    """Schedule: all uncoloured nodes that are ready, then the colour that gets furthest, as a group.

    The order it makes has each group in one piece, so no cycle can arise.
    """
    count = len(colour)
    waiting = [0] * count
    remaining: dict[int, int] = {}
    for i, after in enumerate(edges):
        for j in after:
            waiting[j] += 1
        if colour[i] >= 0:
            remaining[colour[i]] = remaining.get(colour[i], 0) + 1
    plain = [i for i in range(count) if waiting[i] == 0 and colour[i] < 0]
    ready: dict[int, list[int]] = {}
    for i in range(count):
        if waiting[i] == 0 and colour[i] >= 0:
            ready.setdefault(colour[i], []).append(i)
    result = [-1] * count
    fresh = 0

    def finish(i: int) -> None:
        for j in edges[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                if colour[j] < 0:
                    plain.append(j)
                else:
                    ready.setdefault(colour[j], []).append(j)

    def closure(c: int) -> list[int]:
        """All nodes of a colour that could run now in one go."""
        taken = list(ready[c])
        less: dict[int, int] = {}
        for i in taken:
            for j in edges[i]:
                less[j] = less.get(j, 0) + 1
                if colour[j] == c and waiting[j] == less[j]:
                    taken.append(j)
        return taken

    while plain or ready:
        while plain:
            finish(plain.pop())
        if not ready:
            break
        chosen: list[int] = []
        # A few candidates are enough: looking at all of them each time would be quadratic.
        for c in sorted(ready, key=lambda k: min(ready[k]))[:8]:
            taken = closure(c)
            complete = len(taken) == remaining[c]
            if complete or len(taken) > len(chosen):
                chosen = taken
            if complete:
                break
        c = colour[chosen[0]]
        remaining[c] -= len(chosen)
        pending = dict.fromkeys(ready.pop(c))
        assert pending.keys() <= set(chosen)
        for i in chosen:
            result[i] = fresh
        fresh += 1
        for i in chosen:
            for j in edges[i]:
                waiting[j] -= 1
                if waiting[j] == 0 and result[j] < 0:
                    if colour[j] < 0:
                        plain.append(j)
                    else:
                        ready.setdefault(colour[j], []).append(j)
    return result
