"""What a user should know about regions, each with the line and the remedy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx.node import Node

from ._torch import lowering, ops
from ._torch.symbols import SCALAR_TYPES
from .options import MARK_KEY, unknown_keys
from .regions import (
    Collected,
    Finding,
    MarkedGraph,
    NodeMark,
    Partitioned,
    PartitionedGraph,
    Region,
    Settings,
)
from .report import GraphReport, RegionReport
from .source import module_path, user_source
from .stages.partition import order_constraints, partition
from .timelimit import MORE_TIME

TRIAL_NODES = 300_000
"""How many nodes a dry run partitions again, on trial, to find what would join a broken mark."""

_KINDS_TO_TRY = 6
_KINDS_TO_NAME = 4

_REMEDIES = (
    ("numerics=", "leave numerics out of the mark, or out of the call, to have it compiled"),
    ("TimeLimitError", MORE_TIME),
    ("it only makes views", "take the mark off: views cost nothing in eager mode"),
    ("Inductor could not compile", 'on_error="raise" shows the whole error'),
    (
        "carries no fake value",
        "pass example inputs, or run torch.fx.passes.fake_tensor_prop.FakeTensorProp first",
    ),
    ("the body of", "mark the call of that operator instead of code inside its body"),
)


def findings_of(
    partitioned: Partitioned,
    graphs: Sequence[GraphReport],
    settings: Settings,
    *,
    trial_nodes: int = 0,
) -> list[Finding]:
    """What there is to say about the graphs of one pass.

    Args:
        partitioned: The partition stage's product.
        graphs: The report of each of its graphs, in the same order.
        settings: What the pass was asked to do.
        trial_nodes: How many nodes may be partitioned again to find out what would join a broken
            mark; none in a real compile, which should not take longer for it.
    """
    found = list(_unknown_keys(partitioned))
    budget = _Budget(trial_nodes)
    for graph in partitioned.graphs:
        found += _broken_marks(graph, settings, budget)
    found += _cheap_regions(partitioned, graphs)
    found += _regions_left_eager(graphs)
    if settings.region_backend == "inductor":
        found += _kernels_of_their_own(partitioned)
    return list(dict.fromkeys(found))


def short(source: str) -> str:
    """`model.py:31` for a full path."""
    return os.path.basename(source)


# --- misspelt keys --------------------------------------------------------------------------------


def _unknown_keys(partitioned: Partitioned) -> Iterator[Finding]:
    seen: set[int] = set()
    for graph in partitioned.graphs:
        for node, marked in graph.marked.marks.items():
            value = (node.meta.get("custom") or {}).get(MARK_KEY)
            if id(value) in seen:
                continue
            seen.add(id(value))
            for key, hint in unknown_keys(value):
                yield Finding(
                    "misspelt",
                    f"unknown key {key} in a mark has no effect",
                    marked.mark.source or user_source(node),
                    hint,
                    marked.mark.name or "",
                )


# --- one mark, several regions --------------------------------------------------------------------


@dataclass
class _Budget:
    """How many more nodes may be partitioned on trial."""

    nodes: int


@dataclass(frozen=True)
class _Broken:
    """Regions that one entry of a mark fell into, and the operators that stand between them."""

    regions: tuple[Region, ...]
    between: tuple[Node, ...]

    @property
    def signature(self) -> Hashable:
        """Equal for the same break in another layer."""
        kinds = tuple(dict.fromkeys(map(_kind, self.between)))
        first = self.regions[0]
        return (first.label, first.direction, first.mark.source, len(self.regions), kinds)


def _kind(node: Node) -> tuple[str, str]:
    return (_name(node), user_source(node))


def _name(node: Node) -> str:
    """`aten.view` for `aten.view.default`: what people call it."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet) if packet is not None else ops.op_name(node)


def _broken_marks(
    graph: PartitionedGraph, settings: Settings, budget: _Budget
) -> Iterator[Finding]:
    groups = [
        regions
        for regions in _by_entry(graph).values()
        if len(regions) > 1
        # Gradients of one entry, and what is recomputed for them, lie apart by nature.
        and regions[0].direction != "backward"
        and (budget.nodes or regions[0].mark.entry is not None)
    ]
    if not groups:
        return
    between = _Between(graph, settings)
    alike: dict[Hashable, list[_Broken]] = {}
    for regions in groups:
        broken = _Broken(tuple(regions), between.of(regions))
        alike.setdefault(broken.signature, []).append(broken)
    for places in alike.values():
        finding = _broken_finding(places, graph, settings, budget)
        if finding is not None:
            yield finding


def _by_entry(graph: PartitionedGraph) -> dict[Hashable, list[Region]]:
    """Regions by the entry of a marked scope that their nodes come from.

    Marks without entries (PyTorch's own, and those on nodes) count as one entry for each module.
    """
    groups: dict[Hashable, dict[str, Region]] = {}
    for region in graph.regions:
        for node in region.nodes:
            marked = graph.marked.marks[node]
            key: Hashable = (marked.mark.join_key, marked.direction, marked.entry)
            if marked.mark.entry is None:
                # Equal dicts of two annotations can't be told apart; their lines can.
                place = module_path((node,))
                key = (marked.mark.join_key, marked.mark.name, marked.direction, place)
            groups.setdefault(key, {})[region.name] = region
    return {key: list(regions.values()) for key, regions in groups.items()}


class _Between:
    """Finds the nodes on any path from one region of a group to another."""

    def __init__(self, graph: PartitionedGraph, settings: Settings) -> None:
        self.nodes = list(graph.marked.module.graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.successors = order_constraints(graph.marked, settings, self.nodes, self.position)

    def of(self, regions: Iterable[Region]) -> tuple[Node, ...]:
        inside = {self.position[node] for region in regions for node in region.nodes}
        first, last = min(inside), max(inside)
        after = set(inside)
        for i in range(first, last + 1):
            if i in after:
                after.update(j for j in self.successors[i] if j <= last)
        before = set(inside)
        for i in range(last, first - 1, -1):
            if i not in before and any(j in before for j in self.successors[i]):
                before.add(i)
        return tuple(self.nodes[i] for i in sorted((after & before) - inside))


def _broken_finding(
    places: Sequence[_Broken], graph: PartitionedGraph, settings: Settings, budget: _Budget
) -> Finding | None:
    broken = places[0]
    region = broken.regions[0]
    count = len(broken.regions)
    unmarked = [node for node in broken.between if node not in graph.marked.marks]
    added, left = _joined_by(broken, unmarked, graph, settings, budget)
    if region.mark.entry is None and not added:
        return None  # several regions of a mark without entries are no surprise
    where = f" in {len(places)} places" if len(places) > 1 else ""
    message = f"one mark broke into {count} regions{where}"
    if added:
        listed = _listed(added)
        remedy = f"add {listed} to the region and {count} regions become {left}"
        if any(_is_kept_eager(node) for node in unmarked if _kind(node) in added):
            remedy += ": take ri.eager off it"
    elif unmarked:
        kinds = _kinds(unmarked)
        listed = _listed(kinds[:_KINDS_TO_NAME])
        more = len(kinds) - _KINDS_TO_NAME
        listed += f" ({more} more)" if more > 0 else ""
        remedy = (
            f"add what lies between them to the region, or move it out of the marked code: {listed}"
        )
    else:
        remedy = (
            "regions of other marks lie between them: give all of them the same options and one id"
        )
    source = region.mark.source or user_source(region.nodes[0])
    return Finding("broken", message, source, remedy, region.label)


def _kinds(nodes: Iterable[Node]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(map(_kind, nodes)))


def _listed(kinds: Iterable[tuple[str, str]]) -> str:
    """ "`aten.view` at model.py:31, `aten.mm` and `aten.mul` at model.py:32"."""
    names = [f"`{name}` at {short(at)}" if at else f"`{name}`" for name, at in kinds]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _is_kept_eager(node: Node) -> bool:
    value = (node.meta.get("custom") or {}).get(MARK_KEY)
    return isinstance(value, Mapping) and bool(value.get("eager"))


def _joined_by(
    broken: _Broken,
    unmarked: Sequence[Node],
    graph: PartitionedGraph,
    settings: Settings,
    budget: _Budget,
) -> tuple[list[tuple[str, str]], int]:
    """Which operators would have to be marked to have fewer regions, and how many there are then."""
    usable = [node for node in unmarked if _can_be_marked(node, graph.marked)]
    kinds = _kinds(usable)
    best: tuple[list[tuple[str, str]], int] = ([], len(broken.regions))
    if not kinds or len(kinds) > _KINDS_TO_TRY:
        return best
    trials = [[kind] for kind in kinds]
    if len(kinds) > 1:
        trials.append(kinds)
    for trial in trials:
        if budget.nodes <= 0:
            break
        budget.nodes -= len(graph.marked.module.graph.nodes)
        added = [node for node in usable if _kind(node) in trial]
        left = _regions_with(added, broken, graph.marked, settings)
        if left < best[1]:
            best = (trial, left)
        if left == 1:
            break
    return best


def _can_be_marked(node: Node, graph: MarkedGraph) -> bool:
    if not node.op.startswith("call"):
        return False
    traits = ops.traits(node, graph.module)
    return not (traits.switch or traits.collective or traits.opaque)


def _regions_with(
    added: Iterable[Node], broken: _Broken, graph: MarkedGraph, settings: Settings
) -> int:
    """In how many regions the marked nodes of a group end up once more nodes are marked like them."""
    inside = {node for region in broken.regions for node in region.nodes}
    example: NodeMark = graph.marks[broken.regions[0].nodes[0]]
    marks = {**graph.marks, **dict.fromkeys(added, example)}
    ordered = {node: marks[node] for node in graph.module.graph.nodes if node in marks}
    trial = partition(Collected((replace(graph, marks=ordered),)), settings).graphs[0]
    return sum(not inside.isdisjoint(region.nodes) for region in trial.regions)


# --- regions that don't pay -----------------------------------------------------------------------


def _cheap_regions(partitioned: Partitioned, graphs: Sequence[GraphReport]) -> Iterator[Finding]:
    found: Counter[tuple[str, str, str]] = Counter()
    for graph, report in zip(partitioned.graphs, graphs, strict=True):
        for region, said in zip(graph.regions, report.regions, strict=True):
            computing = [node for node in region.nodes if _computes(node, graph.marked)]
            if said.status == "eager" or region.direction == "backward" or len(computing) != 1:
                continue
            if torch.Tag.pointwise in getattr(computing[0].target, "tags", ()):
                at = user_source(computing[0]) or said.source
                found[(region.label, _name(computing[0]), at)] += 1
    for (label, name, at), count in found.items():
        regions = f"{count} regions consist" if count > 1 else "a region consists"
        yield Finding(
            "cheap",
            f"{regions} of one cheap op, `{name}`: there is nothing to fuse it with",
            at,
            "mark what comes before or after it too, or take the mark off",
            label,
        )


def _computes(node: Node, graph: MarkedGraph) -> bool:
    return not ops.is_view(node) and not isinstance(graph.values.get(node), SCALAR_TYPES)


def _regions_left_eager(graphs: Sequence[GraphReport]) -> Iterator[Finding]:
    by_reason: dict[str, list[RegionReport]] = {}
    for graph in graphs:
        for region in graph.regions:
            if region.status == "eager":
                by_reason.setdefault(region.reason, []).append(region)
    for reason, regions in by_reason.items():
        names = ", ".join(dict.fromkeys(region.name for region in regions))
        stays = (
            f"{len(regions)} regions stay eager ({names})" if len(regions) > 1 else "stays eager"
        )
        yield Finding(
            "eager",
            f"{stays}: {reason}",
            next((region.source for region in regions if region.source), ""),
            next((remedy for start, remedy in _REMEDIES if start in reason), ""),
            regions[0].name if len(regions) == 1 else "",
        )


def _kernels_of_their_own(partitioned: Partitioned) -> Iterator[Finding]:
    found: dict[tuple[str, str, str], int] = {}
    for graph in partitioned.graphs:
        for region in graph.regions:
            for node in region.nodes:
                if region.mark.numerics == "eager":
                    continue  # what it may hold has code, of Inductor or of ours
                if lowering.runs_as_a_kernel_of_its_own(node.target):
                    key = (region.label, _name(node), user_source(node))
                    found[key] = found.get(key, 0) + 1
    for (label, name, at), count in found.items():
        times = f", {count} times" if count > 1 else ""
        yield Finding(
            "fallback",
            f"Inductor has no code of its own for `{name}`{times}: it runs as it is, and nothing "
            "fuses across it",
            at,
            "keep it out of the region with ri.eager, or give it a decomposition",
            label,
        )
