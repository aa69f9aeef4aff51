"""What was compiled, what was not, and why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.fx

from ._torch.config import changed_from
from ._torch.symbols import expression_of, leaves
from .costs import costs_of
from .regions import REGION_META, Compiled, CompiledGraph, Finding, Partitioned, RegionCall

if TYPE_CHECKING:
    from .report_diff import ReportDiff

Status = Literal["compiled", "shared", "memory", "disk", "eager", "planned"]


@dataclass(frozen=True)
class ValueReport:
    """An input or an output of a region.

    Attributes:
        name: The node it is in the graph; ``""`` where the graph doesn't say.
        dtype: ``"float32"``, or ``"SymInt"`` and the like for what is no tensor.
        shape: Sizes; a symbolic one as text, such as ``"s0"``.
        device: ``"cpu"``, ``"cuda:0"``, or ``""``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] = ()
    device: str = ""

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


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
            (compiled earlier in this process), ``"disk"`` (by another process), ``"eager"``, or
            ``"planned"`` (a dry run: this is what would be compiled).
        reason: Why it is eager, or ``""``.
        seconds: Compile time; zero unless ``status`` is ``"compiled"``.
        inputs: What goes in, tensors and symbolic sizes.
        outputs: What comes out.
        changed_options: Those of `options` that differ from what Inductor would do anyway.
        key_parts: Digests of what the key is made of, by name; empty where none were recorded.
        bytes_read: Bytes of its inputs, or None where sizes are known only at run time.
        bytes_written: Bytes of its outputs, or None likewise.
        bytes_eager: Bytes that its operators would read and write one by one, or None likewise.
        flops: Floating-point operations of matrix multiplications, convolutions and attention, or
            None likewise.
        kernels: Names of the kernels that were generated for it, or None where that isn't known.
        not_fused: Operators that have a kernel of their own, or None where that isn't known.
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
    inputs: tuple[ValueReport, ...] = ()
    outputs: tuple[ValueReport, ...] = ()
    changed_options: Mapping[str, Any] = field(default_factory=dict)
    key_parts: Mapping[str, str] = field(default_factory=dict)
    bytes_read: int | None = None
    bytes_written: int | None = None
    bytes_eager: int | None = None
    flops: int | None = None
    kernels: tuple[str, ...] | None = None
    not_fused: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GraphReport:
    """One graph that the pass went over.

    Attributes:
        path: ``""`` for the outermost graph, the attribute path for a HOP's body.
        nodes: Operators in the graph before regions were taken out, those in regions included.
        regions: The regions, in the order they run.
        seconds: Time in each stage, by the stage's name; of all graphs of one pass together.
        capture: Which of the captured graphs this belongs to, counted from 0. A graph break starts
            another, and so does a recompile; forward, backward and bodies of one share the number.
        direction: ``"forward"``, ``"backward"``, ``"inference"``, or ``"joint"`` for both in one.
        marked: How many of the nodes are marked.
    """

    path: str
    nodes: int
    regions: tuple[RegionReport, ...]
    seconds: Mapping[str, float]
    capture: int = 0
    direction: str = ""
    marked: int = 0

    @property
    def eager(self) -> int:
        """How many nodes run eagerly: unmarked ones and those of regions left eager."""
        return self.nodes - sum(r.nodes for r in self.regions if r.status != "eager")


@dataclass(repr=False)
class Report:
    """What one compile did, or what it would do; forward and backward graphs come together.

    Printing it gives a table of regions and the findings, in plain text, 100 columns wide.

    Attributes:
        graphs: The graphs, in the order in which they were captured.
        findings: What is worth knowing, each with its line and its remedy.
        environment: The settings outside the graphs that region keys depend on, as text by name.
        dry_run: Whether nothing was compiled, as with `explain`.

    Example:
        >>> import regional_inductor as ri
        >>> report = ri.last_report()  # None before the first compile
    """

    graphs: list[GraphReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False

    @property
    def regions(self) -> list[RegionReport]:
        """The regions of all graphs; `shared_by` counts over all of them."""
        regions = [region for graph in self.graphs for region in graph.regions]
        places = Counter(region.key for region in regions if region.key)
        return [
            replace(region, shared_by=places[region.key]) if region.key else region
            for region in regions
        ]

    @property
    def compiles(self) -> int:
        """How many regions went through the compiler."""
        return sum(region.status == "compiled" for region in self.regions)

    @property
    def distinct(self) -> int:
        """How many different compiled regions there are."""
        return len({region.key for region in self.regions if region.status != "eager"})

    @property
    def captures(self) -> int:
        """How many graphs were captured: one, and one more for each graph break and recompile."""
        return 1 + max((graph.capture for graph in self.graphs), default=-1)

    def capture(self, number: int) -> Report:
        """The part of the report about one captured graph.

        Args:
            number: From 0 to `captures` - 1.

        Returns:
            A report of its own, so that two captures can be compared:
            ``report.capture(0).diff(report.capture(1))``. Findings stay with the whole.
        """
        graphs = [replace(graph, capture=0) for graph in self.graphs if graph.capture == number]
        return Report(graphs, [], dict(self.environment), self.dry_run)

    def diff(self, other: Report) -> ReportDiff:
        """What changed from this report to another.

        Args:
            other: The report of a later compile, of the same model as a rule.

        Returns:
            Regions gained, lost, split, joined and re-keyed, these with the parts of the key that
            changed. Printing it gives a line for each; it is false when nothing changed.

        Example:
            >>> import torch, regional_inductor as ri
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
            >>> _ = ri.mark(model, "1", name="norm")
            >>> short = ri.explain(model, torch.ones(2, 4), region_backend="eager")
            >>> long = ri.explain(model, torch.ones(3, 4), region_backend="eager")
            >>> print(short.diff(long).rekeyed[0].details[0])
            input 0: float32[2, 4] -> float32[3, 4]
        """
        from .report_diff import diff

        return diff(self, other)

    def to_json(self, *, indent: int | None = None) -> str:
        """The report as JSON; docs/report-schema.md describes it.

        Args:
            indent: Spaces for each level; one line by default.
        """
        from .report_json import dumps

        return dumps(self, indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """A report from what `to_json` wrote.

        Raises:
            ValueError: No JSON, no report, or one of a newer schema than this version reads.
        """
        from .report_json import loads

        return loads(text)

    def __str__(self) -> str:
        from .render import render

        return render(self)

    def __rich__(self) -> Any:
        from .render import renderable

        return renderable(self)

    def __repr__(self) -> str:
        return (
            f"<Report: {len(self.graphs)} graphs, {len(self.regions)} regions, "
            f"{len(self.findings)} findings>"
        )


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


def graph_reports(
    compiled: Compiled,
    seconds: Mapping[str, float],
    partitioned: Partitioned | None = None,
    *,
    capture: int = 0,
    direction: str = "",
) -> list[GraphReport]:
    """What the compile stage's product says, before stitching replaces its nodes.

    Args:
        compiled: The product.
        seconds: Time in each stage, by name.
        partitioned: The product of the partition stage; without it paths and marks aren't known.
        capture: Number of the captured graph that this is about.
        direction: Which of its graphs this is; taken from the marks where it isn't given.
    """
    marked = [graph.marked for graph in partitioned.graphs] if partitioned is not None else []
    result = []
    for index, graph in enumerate(compiled.graphs):
        regions = _region_reports(graph)
        inside = sum(region.nodes for region in regions)
        outside = sum(_is_operator(n) for n in graph.outlined.graph.nodes if n not in graph.regions)
        about = marked[index] if index < len(marked) else None
        own = "joint" if about is not None and about.joint else direction
        if not own:
            own = regions[0].direction if regions else ""
        result.append(
            GraphReport(
                path=about.path if about is not None else "",
                nodes=inside + outside,
                regions=regions,
                seconds=dict(seconds),
                capture=capture,
                direction=own,
                marked=len(about.marks) if about is not None else inside,
            )
        )
    return result


def unmarked_graph_report(
    graph: torch.fx.Graph, seconds: Mapping[str, float], *, capture: int, direction: str
) -> GraphReport:
    """A graph that has no mark at all, which the stages pass over."""
    nodes = sum(_is_operator(node) for node in graph.nodes)
    return GraphReport("", nodes, (), dict(seconds), capture, direction)


def _region_reports(graph: CompiledGraph) -> tuple[RegionReport, ...]:
    regions = []
    costs: dict[str, Any] = {}
    for node, region in graph.regions.items():
        call: RegionCall = node.meta[REGION_META]
        module = _outlined(node, graph)
        if region.key not in costs or not region.key:
            costs[region.key] = costs_of(module) if module is not None else None
        cost = costs[region.key]
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
                inputs=_values(list(node.all_input_nodes)),
                outputs=_values(list(module.graph.output_node().all_input_nodes) if module else []),
                changed_options=changed_from(region.options),
                key_parts=dict(region.key_parts),
                bytes_read=cost and cost.bytes_read,
                bytes_written=cost and cost.bytes_written,
                bytes_eager=cost and cost.bytes_eager,
                flops=cost and cost.flops,
            )
        )
    return tuple(regions)


def _outlined(node: torch.fx.Node, graph: CompiledGraph) -> torch.fx.GraphModule | None:
    name = str(node.target)
    module = graph.outlined.submodules.get(name) or getattr(graph.outlined.module, name, None)
    return module if isinstance(module, torch.fx.GraphModule) else None


def _values(nodes: Sequence[torch.fx.Node]) -> tuple[ValueReport, ...]:
    return tuple(_value(node.name, leaf) for node in nodes for leaf in leaves(node.meta.get("val")))


def _value(name: str, value: Any) -> ValueReport:
    if not isinstance(value, torch.Tensor):
        return ValueReport(name, type(value).__name__)
    shape = tuple(size if type(size) is int else _symbolic(size) for size in value.shape)
    return ValueReport(name, str(value.dtype).removeprefix("torch."), shape, str(value.device))


def _symbolic(size: Any) -> str:
    node = getattr(size, "node", None)
    return str(node.expr) if node is not None else expression_of(size)


def _is_operator(node: torch.fx.Node) -> bool:
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    first = node.args[0] if node.args else None
    return not (isinstance(first, torch.fx.Node) and REGION_META in first.meta)
