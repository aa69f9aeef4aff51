"""What was compiled, what was not, and why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx

from .regions import REGION_META, Compiled, Finding, RegionCall


@dataclass(frozen=True)
class RegionReport:
    """One region of one graph.

    Attributes:
        name: The region's name, unique in its graph.
        direction: ``"forward"``, ``"backward"`` or ``"inference"``.
        source: ``file:line`` of the user's code, or ``""``.
        module_path: Qualified name of the innermost module that holds all its nodes, or ``""``.
        nodes: How many graph nodes it has.
        ops: Their operators, in order.
        options: Inductor's options for it: its own, and the backend's defaults.
        key: The region key; ``""`` for a region left eager before a key was made.
        shared_by: How many places of this report run the same compiled region.
        status: ``"compiled"``, ``"shared"`` (with another place of this compile), ``"memory"``
            (compiled earlier in this process) or ``"eager"``.
        reason: Why it is eager, or ``""``.
        seconds: Compile time; zero unless ``status`` is ``"compiled"``.
    """

    name: str
    direction: str
    source: str
    module_path: str
    nodes: int
    ops: tuple[str, ...]
    options: Mapping[str, Any]
    key: str
    shared_by: int
    status: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class GraphReport:
    """One graph that the pass went over.

    Attributes:
        path: ``""`` for the outermost graph, the attribute path for a HOP's body.
        nodes: Operators in the graph before regions were taken out, those in regions included.
        regions: The regions, in the order they run.
        seconds: Time in each stage, by the stage's name.
    """

    path: str
    nodes: int
    regions: tuple[RegionReport, ...]
    seconds: Mapping[str, float]


@dataclass
class Report:
    """What one compile did; forward and backward graphs of one capture come together.

    Printing it gives a table of regions.

    Example:
        >>> import regional_inductor as ri
        >>> report = ri.last_report()  # None before the first compile
    """

    graphs: list[GraphReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def regions(self) -> list[RegionReport]:
        """The regions of all graphs; `shared_by` counts over all of them."""
        regions = [region for graph in self.graphs for region in graph.regions]
        places = Counter(region.key for region in regions if region.key)
        return [_with_places(region, places[region.key]) for region in regions]

    @property
    def compiles(self) -> int:
        """How many regions went through the compiler."""
        return sum(region.status == "compiled" for region in self.regions)

    @property
    def distinct(self) -> int:
        """How many different compiled regions there are."""
        return len({region.key for region in self.regions if region.status != "eager"})

    def __str__(self) -> str:
        return render(self)


def _with_places(region: RegionReport, places: int) -> RegionReport:
    from dataclasses import replace

    return replace(region, shared_by=places)


_last: Report | None = None
_lock = threading.Lock()


def last_report() -> Report | None:
    """The report of the latest compile of this process, or None before the first.

    A training step's backward graph is compiled when it first runs; its regions appear in the same
    report from then on.

    Returns:
        The `Report`, which goes on growing while its capture does.

    Example:
        >>> import torch, regional_inductor as ri
        >>> @ri.region("scale")
        ... def scale(x):
        ...     return x * 2 + 1
        >>> compiled = ri.compile(scale, region_backend="eager")
        >>> _ = compiled(torch.ones(3))
        >>> [region.name for region in ri.last_report().regions]
        ['scale']
    """
    return _last


def publish(report: Report) -> None:
    global _last
    with _lock:
        _last = report


def graph_reports(compiled: Compiled, seconds: Mapping[str, float]) -> list[GraphReport]:
    """What the compile stage's product says, before stitching replaces its nodes."""
    result = []
    for graph in compiled.graphs:
        outlined = graph.outlined
        regions = []
        inside = 0
        for node, region in graph.regions.items():
            call: RegionCall = node.meta[REGION_META]
            inside += call.nodes
            regions.append(
                RegionReport(
                    name=call.name,
                    direction=call.direction,
                    source=call.source,
                    module_path=call.module_path,
                    nodes=call.nodes,
                    ops=call.ops,
                    options=dict(region.options),
                    key=region.key,
                    shared_by=1,
                    status=region.status,
                    reason=region.reason,
                    seconds=region.seconds,
                )
            )
        outside = sum(_is_operator(n) for n in outlined.graph.nodes if n not in graph.regions)
        result.append(GraphReport("", inside + outside, tuple(regions), dict(seconds)))
    return result


def _is_operator(node: torch.fx.Node) -> bool:
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    first = node.args[0] if node.args else None
    return not (isinstance(first, torch.fx.Node) and REGION_META in first.meta)


def render(report: Report) -> str:
    """The report as a table of at most 100 columns, as plain text."""
    from rich.console import Console

    console = Console(width=100, color_system=None, record=False, file=None, no_color=True)
    with console.capture() as capture:
        console.print(table(report))
        for finding in report.findings:
            console.print(f"{finding.kind}: {finding.message}", soft_wrap=True, markup=False)
    return capture.get().rstrip()


def table(report: Report) -> Any:
    """The report's regions as a rich table: one row for each distinct region and direction."""
    from rich.table import Table

    regions = report.regions
    rows: dict[Any, list[RegionReport]] = {}
    for region in regions:
        row = region.key or (region.name, region.source)
        rows.setdefault((row, region.direction), []).append(region)
    eager = sum(region.status == "eager" for region in regions)
    result = Table(
        title=f"{len(regions)} regions, {report.distinct} distinct, {report.compiles} compiled now"
        + (f", {eager} left eager" if eager else ""),
        title_justify="left",
    )
    for header, right in (
        ("region", False),
        ("pass", False),
        ("where", False),
        ("nodes", True),
        ("places", True),
        ("options", False),
        ("status", False),
        ("seconds", True),
    ):
        result.add_column(header, justify="right" if right else "left", overflow="fold")
    for places in rows.values():
        first = places[0]
        seconds = sum(region.seconds for region in places)
        result.add_row(
            first.name,
            first.direction,
            _where(places),
            str(first.nodes),
            str(len(places)),
            ", ".join(f"{k}={v}" for k, v in first.options.items()),
            "eager: " + first.reason if first.status == "eager" else first.status,
            f"{seconds:.2f}" if seconds else "",
        )
    return result


def _where(places: list[RegionReport]) -> str:
    """Module paths with the parts that differ between places as `*`, or the source line."""
    paths = [place.module_path.split(".") for place in places if place.module_path]
    if not paths:
        return places[0].source.rpartition("/")[2]
    if len({len(path) for path in paths}) > 1:
        return ".".join(paths[0]) + ", ..."
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*paths, strict=True))
