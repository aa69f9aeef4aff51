"""The frozen dataclasses that pass between stages.

Identity is data here: a region is recognised by the `RegionCall` in its node's meta, never by a
name prefix, so that a user's own passes between the halves may rename what they like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch.fx

from .errors import compose
from .options import Mark

Direction = Literal["forward", "backward", "inference"]

REGION_META = "regional_inductor_region"
"""Key in `node.meta` of a region's call; its value is a `RegionCall`."""


@dataclass(frozen=True)
class Settings:
    """What one run of the pipeline was asked to do; the same for the pass and the backend."""

    merge: Literal["scope", "all"] = "scope"
    on_error: Literal["eager", "raise"] = "eager"
    numerics: Literal["default", "eager"] = "default"
    collectives: Literal["exclude", "include"] = "exclude"
    region_backend: Literal["inductor", "eager"] = "inductor"
    lowering: Literal["auto", "direct", "standalone"] = "auto"
    """How Inductor is called: directly where a region is functional, or always standalone."""
    inference: bool = False
    """Whether no backward graph belongs to this one, as far as AOTAutograd knows."""
    recompute: Literal["regions", "off"] = "regions"
    """Whether backward regions compute again what forward ones need not keep for them then."""
    backward: Literal["auto", "early", "late"] = "auto"
    """When backward regions are compiled: with the forward graph's, or when the backward graph first runs."""
    tries_operators: bool = True
    """Whether operators under ``numerics="eager"`` may be compiled on trial; not in a dry run."""
    cudagraphs: Literal["off", "graph"] = "off"
    """Whether the stitching graph is recorded as a whole; then no region records itself."""
    default_options: Mapping[str, Any] = field(default_factory=dict)
    mark_graph: Callable[[torch.fx.GraphModule, list[Finding]], None] | None = field(
        default=None, repr=False
    )
    """Marks a captured graph before anything reads marks, and says what it could not find."""
    trials: Any = field(default=None, repr=False, compare=False)
    """The `Trials` that say whether CUDA graphs of single regions pay; None where nobody is told."""
    early: Any = field(default=None, repr=False, compare=False)
    """The `EarlyBackward` of a capture whose backward regions are compiled with its forward ones, or None."""
    selection: Any = None
    """A `Selection` of what stays compiled, while something is bisected; None else."""
    for_file: bool = False
    """Whether what comes out is to be packed: the graph is left alone, and its code is in a wrapper."""
    guarded: bool = True
    """Whether each call checks its arguments; the registered backend has Dynamo's guards instead."""

    def options_of(self, mark: Mark) -> dict[str, Any]:
        """Inductor's options for a region with this mark."""
        options = {**self.default_options, **dict(mark.options)}
        if self.cudagraphs == "graph":
            options.pop("triton.cudagraphs", None)
        return options


@dataclass(frozen=True)
class Finding:
    """Something the user should know, with the line and the remedy.

    Attributes:
        kind: A word for the kind of finding: docs/report-schema.md lists them.
        message: What was found, one sentence without a full stop.
        source: ``file:line`` of the user's code, or ``""``.
        remedy: What to do about it, or ``""``.
        region: Name of the region it is about, or ``""``.
    """

    kind: str
    message: str
    source: str = ""
    remedy: str = ""
    region: str = ""

    @property
    def text(self) -> str:
        """The finding as a warning says it."""
        return compose(self.message, region=self.region, source=self.source, hint=self.remedy)


@dataclass(frozen=True)
class NodeMark:
    """A node's mark, and which entry of the marked scope produced the node."""

    mark: Mark
    entry: int
    direction: Direction


@dataclass(frozen=True)
class MarkedGraph:
    """One graph (the outermost one, or a HOP's body) with the marks that were found in it."""

    path: str
    module: torch.fx.GraphModule
    values: Mapping[torch.fx.Node, Any]
    marks: Mapping[torch.fx.Node, NodeMark]
    direction: Direction
    joint: bool = False
    """Whether this is a joint graph, which AOTAutograd will cut into forward and backward later."""
    eager_reason: str = ""
    """Why no region of this graph may be compiled (a body that runs under vmap, say)."""


@dataclass(frozen=True)
class Collected:
    """Result of `collect`: graphs in processing order, bodies before the graphs that call them."""

    graphs: tuple[MarkedGraph, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Region:
    """A set of marked nodes with one mark, compiled as one unit.

    `name` is unique in its graph; `label` is what the user called it, and may recur. `eager_reason` says
    why it must not be compiled, or ``""``.
    """

    name: str
    label: str
    nodes: tuple[torch.fx.Node, ...]
    mark: Mark
    direction: Direction
    eager_reason: str = ""


ScheduleItem: TypeAlias = "torch.fx.Node | Region"


@dataclass(frozen=True)
class PartitionedGraph:
    """A marked graph, its regions, and the order in which nodes and regions will run."""

    marked: MarkedGraph
    regions: tuple[Region, ...]
    schedule: tuple[ScheduleItem, ...]


@dataclass(frozen=True)
class Partitioned:
    """Result of `partition`."""

    graphs: tuple[PartitionedGraph, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class RegionCall:
    """What a region's call node says of itself; lives in `node.meta[REGION_META]`.

    `submodule` is where the outlined region is found; `stitched` says that it was dealt with, so
    that a second run of the pass leaves it alone.
    """

    name: str
    submodule: str
    mark: Mark
    direction: Direction
    nodes: int
    ops: tuple[str, ...]
    source: str
    module_path: str
    effectful: bool = False
    eager_reason: str = ""
    joint: bool = False
    stitched: bool = False


@dataclass(frozen=True)
class OutlinedGraph:
    """The new stitching graph of one module, not yet put into it.

    `submodules` will be added to the module; those in `obsolete` that are not among them will go.
    """

    module: torch.fx.GraphModule
    graph: torch.fx.Graph
    submodules: dict[str, torch.nn.Module]
    obsolete: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Outlined:
    """Result of `outline`: nothing of the caller's has been touched yet."""

    graphs: tuple[OutlinedGraph, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class CompiledRegion:
    """A callable for a region key, or the reason why there is none.

    A boxed callable takes one list of arguments, which it empties; others take the arguments.
    """

    key: str
    call: Callable[..., Any] | None
    status: Literal["compiled", "shared", "memory", "disk", "fetched", "eager", "planned"]
    reason: str = ""
    seconds: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    key_parts: Mapping[str, str] = field(default_factory=dict)
    boxed: bool = False
    started: float | None = None
    """When its compile began, on the clock of `time.perf_counter`."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """Seconds in each step of its compile, by name; part of `seconds`."""


@dataclass(frozen=True)
class CompiledGraph:
    """An outlined graph with what each of its region calls became, by node."""

    outlined: OutlinedGraph
    regions: Mapping[torch.fx.Node, CompiledRegion]


@dataclass(frozen=True)
class Compiled:
    """Result of `compile`."""

    graphs: tuple[CompiledGraph, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Stitched:
    """Result of `stitch`: the modules that now call compiled regions."""

    modules: tuple[torch.fx.GraphModule, ...]
    findings: tuple[Finding, ...] = ()
