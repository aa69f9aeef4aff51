"""What was compiled, what was not, and why."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .regions import Finding

if TYPE_CHECKING:
    from .report_diff import ReportDiff

NOT_SET = "not set"
"""How a setting is shown that isn't there."""

Status = Literal["compiled", "shared", "memory", "disk", "fetched", "eager", "planned"]


@dataclass(frozen=True)
class ValueReport:
    """An input or an output of a region.

    Attributes:
        name: The node it is in the graph; ``""`` where the graph doesn't say.
        dtype: ``"float32"``, or ``"SymInt"`` and the like for what is no tensor.
        shape: Sizes; a symbolic one as text, such as ``"s0"``.
        device: ``"cpu"``, ``"cuda:0"``, or ``""``.
        stride: Its strides, as `shape` is written; empty for what is no strided tensor.
        requires_grad: Whether it requires gradients.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] = ()
    device: str = ""
    stride: tuple[int | str, ...] = ()
    requires_grad: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class KernelReport:
    """One kernel that a compiled region runs.

    Attributes:
        name: ``"cpp_fused_add_mul_0"``, ``"extern_kernels.mm"``, ``"torch.ops.aten.cumsum"``.
        kind: ``"generated"`` by Inductor, ``"library"`` (a matrix multiplication and the like), or
            ``"fallback"`` (an operator that runs as it is in eager mode).
        ops: The operators in it, as far as the generated code names them.
    """

    name: str
    kind: str
    ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class OperatorReport:
    """One operator of a graph.

    Attributes:
        name: Its node in the graph.
        op: ``"aten.add.Tensor"`` and the like.
        region: Which region of the graph it is in, counted from 0, or None.
        inputs: Which operators of the graph it reads, by their number.
        module_path: Qualified name of the module that it was called in, or ``""``.
        source: ``file:line`` of the user's code, or ``""``.
        value: What it gives, such as ``"float32[2, 8]"``.
    """

    name: str
    op: str
    region: int | None = None
    inputs: tuple[int, ...] = ()
    module_path: str = ""
    source: str = ""
    value: str = ""


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
            (compiled earlier in this process), ``"disk"`` (by another process of this machine),
            ``"fetched"`` (by another rank, or another machine of the fleet), ``"eager"``, or
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
        kernels: The kernels that it runs, in order, or None where that isn't known.
        not_fused: Operators outside its largest generated kernel, or None where that isn't known;
            empty if all of it became one kernel.
        started: When its compile began, in seconds on the clock that `GraphReport.started` is on,
            or None.
        constants: The arguments of its operators that aren't values of the graph, such as
            ``"aten.add.Tensor(_, 1)"``.
        steps: Seconds in each step of its compile: ``"prepare"`` (tracing, looking into Inductor's
            caches), ``"lower"``, ``"generate"`` (scheduling and code), ``"compile"`` (the C++ or
            Triton compiler, and loading).
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
    kernels: tuple[KernelReport, ...] | None = None
    not_fused: tuple[str, ...] | None = None
    started: float | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
    constants: tuple[str, ...] = ()


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
        started: When each stage began, in seconds on a clock of which only differences mean
            something.
        operators: The nodes, in the order in which they were captured; empty where that isn't
            known: for graphs that were outlined before, say.
        recomputed: Of a forward graph, how many of its operators run again in the backward graph.
        saved_bytes: Of a forward graph, the bytes that it keeps for the backward graph, its inputs not
            counted; None for other graphs, and where a size is known only at run time.
        saved_bytes_otherwise: The same if nothing ran again.
        compiled_early: Of a forward graph, how many regions of its backward graph were compiled with it; each
            shows in the backward graph, once that has run.
        environment: Those settings that were other than `Report.environment` has them when this
            graph was compiled, ``"not set"`` for what wasn't there.
    """

    path: str
    nodes: int
    regions: tuple[RegionReport, ...]
    seconds: Mapping[str, float]
    capture: int = 0
    direction: str = ""
    marked: int = 0
    started: Mapping[str, float] = field(default_factory=dict)
    operators: tuple[OperatorReport, ...] = ()
    recomputed: int = 0
    saved_bytes: int | None = None
    saved_bytes_otherwise: int | None = None
    compiled_early: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

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
        environment: The settings outside the graphs that region keys depend on, as text by name,
            when the first was compiled; a graph knows what was other for it.
        dry_run: Whether nothing was compiled, as with `explain`.
        code: The code that Inductor generated, by region key.

    Example:
        >>> import regional_inductor as ri
        >>> report = ri.last_report()  # None before the first compile
    """

    graphs: list[GraphReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    code: dict[str, str] = field(default_factory=dict)

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
        keys = {region.key for graph in graphs for region in graph.regions}
        code = {key: text for key, text in self.code.items() if key in keys}
        return Report(graphs, [], dict(self.environment), self.dry_run, code)

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

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML file that needs no network.

        It has the regions as a table to sort and filter, a picture of each graph with regions as
        coloured boxes that open to the operators inside, a time line of the compile, and the
        generated code of each region.

        Args:
            path: The file to write; one that is there is replaced.

        Raises:
            OSError: The file can't be written.

        Example:
            >>> import pathlib, tempfile, torch, regional_inductor as ri
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
            >>> _ = ri.mark(model, "1", name="norm")
            >>> report = ri.explain(model, torch.ones(2, 4), region_backend="eager")
            >>> file = pathlib.Path(tempfile.mkdtemp()) / "report.html"
            >>> report.to_html(file)
            >>> file.read_text()[:15]
            '<!doctype html>'
        """
        from .report_html import to_html

        Path(path).write_text(to_html(self), encoding="utf-8")

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


def put_back(report: Report | None) -> None:
    """Have `last_report` give what it gave before a compile that nobody is to notice."""
    global _last
    with _lock:
        _last = report
