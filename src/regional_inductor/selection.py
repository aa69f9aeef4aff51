"""Which regions of a run stay compiled, and which of their operators: what a bisection varies.

A selection works on partitioned graphs: a region that isn't kept, or the part of it that isn't, runs
its own operators. Where regions are and in which order everything runs doesn't change.

Another process is told by the variable `REGIONAL_INDUCTOR_SELECTION`, which names a folder: the
process reads there what to keep and writes there what regions it met (see `of_environment`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch.fx
from torch.fx.node import Node

from ._torch.ops import op_name
from .regions import Partitioned, PartitionedGraph, Region, ScheduleItem, Settings
from .source import module_path, user_source

VARIABLE = "REGIONAL_INDUCTOR_SELECTION"

LEFT_EAGER = "a bisection leaves it eager"


@dataclass(frozen=True)
class MetRegion:
    """A region as a selection met it.

    Attributes:
        id: The same in each run of the same program.
        name: What the user called it.
        direction: ``"forward"`` or ``"backward"``.
        source: ``file:line`` of the user's code, or ``""``.
        module_path: Qualified name of the innermost module that holds it, or ``""``.
        units: What can be kept or left of it, in order: the names of operators, each with those
            that select its results.
        lines: For each unit the user's ``file:line``, or ``""``.
    """

    id: str
    name: str
    direction: str
    source: str
    module_path: str
    units: tuple[str, ...]
    lines: tuple[str, ...] = ()


Kept = Mapping[str, Sequence[int] | None]
"""Regions to keep by id: whole (None), or these of their units."""


@dataclass
class Selection:
    """What one run keeps, and what it met.

    Attributes:
        kept: What stays compiled; None for everything.
        script: Where to write a script of what is compiled, or None.
        met: The regions that the run has met so far.
    """

    kept: Kept | None = None
    script: Path | None = None
    met: list[MetRegion] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __repr__(self) -> str:  # goes into the keys of caches that hold whole graphs
        return f"Selection({self.digest})"

    @property
    def digest(self) -> str:
        kept = (
            None if self.kept is None else sorted((k, v and list(v)) for k, v in self.kept.items())
        )
        return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]

    def narrow(self, partitioned: Partitioned, settings: Settings) -> Partitioned:
        """A stage after `partition`: regions that aren't kept are left eager."""
        with self._lock:
            return replace(partitioned, graphs=tuple(map(self._narrowed, partitioned.graphs)))

    def note(self, region: MetRegion) -> None:
        self.met.append(region)

    def _narrowed(self, graph: PartitionedGraph) -> PartitionedGraph:
        schedule: list[ScheduleItem] = []
        for item in graph.schedule:
            schedule += self._parts(item) if isinstance(item, Region) else [item]
        regions = tuple(item for item in schedule if isinstance(item, Region))
        return replace(graph, schedule=tuple(schedule), regions=regions)

    def _parts(self, region: Region) -> list[Region]:
        units = units_of(region)
        known = self._met(region, units)
        self.note(known)
        if self.kept is None:
            return [region]
        if known.id not in self.kept:
            return [replace(region, eager_reason=LEFT_EAGER)]
        kept = self.kept[known.id]
        return [region] if kept is None else _runs(region, units, frozenset(kept))

    def _met(self, region: Region, units: Sequence[tuple[Node, ...]]) -> MetRegion:
        names = tuple(op_name(unit[0]) for unit in units)
        like = f"{region.label}.{region.direction}.{_digest(region)}"
        self._seen[like] += 1
        lines = tuple(user_source(unit[0]) for unit in units)
        return MetRegion(
            f"{like}.{self._seen[like]}",
            region.label,
            region.direction,
            region.mark.source or next(filter(None, lines), ""),
            module_path(region.nodes),
            names,
            lines,
        )


def units_of(region: Region) -> list[tuple[Node, ...]]:
    """The nodes of a region in order, each with the getitems that select its results.

    A region's outputs are tensors: what gives several must not be cut off from their selection.
    """
    units: dict[Node, list[Node]] = {}
    for node in region.nodes:
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, Node) and source in units:
            units[source].append(node)
        else:
            units[node] = [node]
    return [tuple(unit) for unit in units.values()]


def _runs(region: Region, units: Sequence[tuple[Node, ...]], kept: frozenset[int]) -> list[Region]:
    """A region cut where kept units and others meet: each run of neighbours is a region.

    Neighbours in an order that respects all edges are convex, so no cycle can come of it.
    """
    runs: list[tuple[bool, list[Node]]] = []
    for index, unit in enumerate(units):
        if not runs or runs[-1][0] != (index in kept):
            runs.append((index in kept, []))
        runs[-1][1].extend(unit)
    return [
        replace(
            region,
            name=region.name if number == 0 else f"{region.name}_part{number}",
            nodes=tuple(nodes),
            eager_reason="" if keep else LEFT_EAGER,
        )
        for number, (keep, nodes) in enumerate(runs)
    ]


def _digest(region: Region) -> str:
    """The same for regions that look the same; names of nodes are left out."""
    numbers: dict[Node, int] = {}
    digest = hashlib.sha256()
    for node in region.nodes:
        value = node.meta.get("val")
        shape = tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else ()
        inputs = [numbers.setdefault(a, len(numbers)) for a in node.all_input_nodes]
        numbers.setdefault(node, len(numbers))
        digest.update(f"{node.target} {inputs} {shape}\n".encode())
    return digest.hexdigest()[:8]


# --- other processes ------------------------------------------------------------------------------


class SharedSelection(Selection):
    """A selection that a folder holds: what to keep, and a file a process of what it met."""

    def __init__(self, folder: Path) -> None:
        document = json.loads((folder / "selection.json").read_text())
        super().__init__(document["kept"], document["script"] and Path(document["script"]))
        self._met_file = folder / f"met-{os.getpid()}.jsonl"

    def note(self, region: MetRegion) -> None:
        super().note(region)
        with self._met_file.open("a") as file:
            file.write(json.dumps(asdict(region)) + "\n")


def of_environment() -> Selection | None:
    """The selection that this process was started with, or None."""
    folder = os.environ.get(VARIABLE)
    return _shared(folder, os.getpid()) if folder else None


@functools.lru_cache(maxsize=4)
def _shared(folder: str, process: int) -> SharedSelection:
    return SharedSelection(Path(folder))


def write_kept(folder: Path, kept: Kept | None, script: Path | None = None) -> None:
    """Prepare a folder for the processes of one trial.

    Args:
        folder: The folder.
        kept: What stays compiled; None for everything.
        script: Where to write a script of the regions that are compiled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("met-*.jsonl"):
        old.unlink()
    regions = kept and {k: None if v is None else list(v) for k, v in kept.items()}
    document = {"kept": regions, "script": script and str(script.absolute())}
    (folder / "selection.json").write_text(json.dumps(document))


def read_met(folder: Path) -> list[MetRegion]:
    """The regions that the processes of a trial met; those of equal processes once."""
    found: dict[str, MetRegion] = {}
    for path in sorted(folder.glob("met-*.jsonl")):
        for line in path.read_text().splitlines():
            fields = json.loads(line)
            region = MetRegion(
                **{**fields, "units": tuple(fields["units"]), "lines": tuple(fields["lines"])}
            )
            found.setdefault(region.id, region)
    return list(found.values())
