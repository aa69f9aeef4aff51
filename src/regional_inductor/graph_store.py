"""Whole captured graphs across processes: what AOTAutograd and the pass made of one, under a key of ours.

A warm start spends most of its time in AOTAutograd, to arrive at regions that are stored. What it would arrive
at is kept here: the stitched graph, AOTAutograd's wrappers around it, and the report. The regions stay
where they are, in the store of regions, and are named.

Kept is what can be told to another process without a doubt: inference graphs of plain CPU tensors of fixed
sizes, all regions of which are stored and said nothing that a user has to hear again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
import torch.fx

from . import ranks, region_store
from ._torch import aot_results, generated, machine
from ._torch.aot_results import UnkeptError
from .disk import Disk
from .entry import SCHEMA, Entry
from .identity import times_asked
from .logs import log_regions
from .lost_marks import DynamoMarks
from .options import MARK_KEY
from .own_code import package_digest
from .packing import NotPackedError, Packer, Unpacker
from .region_backends import backend_text
from .region_key import environment_key
from .regions import Finding, RegionCall, Settings
from .report import GraphReport, Report
from .report_from_stages import in_environment
from .selection import of_environment

log = logging.getLogger("regional_inductor")

_GRAPH = "stitched"
# Said in the report alone. What warns is found anew by each process.
_SILENT = frozenset({"broken", "cheap"})
# Of those that come before AOTAutograd runs, none is looked for among what a pass finds.
_BEFORE = frozenset({"rules", "blocks", "uncaptured", "graph-break"})


@dataclass
class Place:
    """Where one captured graph is kept.

    Attributes:
        key: The key of the graph and of all that its compile depends on.
        disk: The store.
        module: The graph.
        guards: How many guards AOTAutograd had added to the capture before.
        code: The stitched graph, once it is there.
        started: When the graph was captured, in seconds on the clock of `time.perf_counter`.
    """

    key: str
    disk: Disk
    module: torch.fx.GraphModule
    guards: int
    code: Any = None
    started: float = field(default_factory=time.perf_counter)

    def taken(self, report: Report, capture: int) -> Callable[..., Any] | None:
        """What is kept for the graph, runnable; None if there is nothing. The report says what it holds."""
        entry = self.disk.get(self.key)
        if entry is None:
            return None
        try:
            kept: _Kept = pickle.loads(entry.parts["report"])
            regions = _Regions(kept.regions)
            regions.check_are_there(self.disk)
            unpacker = _Unpacker(entry.parts, regions)
            graph = unpacker.graph(_GRAPH)
            compiled = aot_results.callable_of(entry.parts["result"], graph, kept.token)
        except _MissingRegionError as error:
            log.info(
                "a captured graph is compiled anew: the region %s is not stored any more", error
            )
            return None
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, compiling helps
            self.disk.reject(self.key, f"{type(error).__name__}: {error}")
            return None
        graphs = [_as_taken(one, capture, regions) for one in kept.graphs]
        log_regions(graphs)
        report.graphs += in_environment(graphs, report.environment)
        report.findings += [one for one in kept.findings if one not in report.findings]
        for key, call in regions.made.items():
            code = generated.source_of(call)
            if code:
                report.code[key] = code
        return compiled

    def offered(self, module: torch.fx.GraphModule) -> Any:
        """The stitched graph as AOTAutograd's offer has it."""
        self.code = aot_results.offered_code(module)
        return self.code

    def keep(
        self, compiled: Any, graphs: Sequence[GraphReport], findings: Sequence[Finding]
    ) -> None:
        """Keep what was made of the graph, if it may be.

        Args:
            compiled: What AOTAutograd returned.
            graphs: What the report says of it.
            findings: All that the report has found so far.
        """
        try:
            self._keep(compiled, graphs, findings)
        except (UnkeptError, NotPackedError) as error:
            log.info("a captured graph is not kept: %s", error)
        except Exception as error:
            log.info("a captured graph is not kept: %r", error)
            log.debug("why it is not kept", exc_info=True)

    def _keep(
        self, compiled: Any, graphs: Sequence[GraphReport], findings: Sequence[Finding]
    ) -> None:
        if self.code is None or not graphs:
            raise UnkeptError("it is no inference graph")
        if aot_results.guards_so_far() != self.guards:
            raise UnkeptError("AOTAutograd added guards")
        loud = {finding.kind for finding in findings} - _SILENT - _BEFORE
        if loud:
            raise UnkeptError(f"there is something to say about it: {', '.join(sorted(loud))}")
        stored: dict[str, tuple[str, dict[str, Any]]] = {}
        for region in (region for graph in graphs for region in graph.regions):
            place = region_store.stored_under(region.key)
            if region.status == "eager" or place is None:
                raise UnkeptError(f"the region {region.name} is not stored")
            stored[region.key] = (place, dict(region.options))
        packer = _Packer(stored)
        packer.add(_GRAPH, self.code.module)
        _check_holds_no_tensors(self.code.module)
        kept = _Kept(
            tuple(replace(graph, environment={}) for graph in graphs),
            tuple(finding for finding in findings if finding.kind in _SILENT),
            stored,
            self.code.token,
        )
        parts = {
            **packer.parts,
            "result": aot_results.result_of(compiled, self.code),
            "report": pickle.dumps(kept),
        }
        self.disk.put(Entry(self.key, _about(graphs, time.perf_counter() - self.started), parts))


def place_of(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    settings: Settings,
    wanted: DynamoMarks,
    findings: Sequence[Finding],
) -> Place | None:
    """Where a captured graph is kept, or None where it may not be.

    Args:
        module: The graph, with its marks.
        inputs: What Dynamo hands over with it.
        settings: What was asked for.
        wanted: The marks in it.
        findings: What was found before the graph is compiled.
    """
    disk = region_store.disk()
    if disk is None:
        return None
    try:
        _check_may_be_kept(settings, inputs, wanted, findings, disk)
        key = _key(module, inputs, settings)
    except UnkeptError as error:
        log.info("a captured graph is not kept: %s", error)
        return None
    return Place(key, disk, module, aot_results.guards_so_far())


def _check_may_be_kept(
    settings: Settings,
    inputs: Sequence[Any],
    wanted: DynamoMarks,
    findings: Sequence[Finding],
    disk: Disk,
) -> None:
    reason = _why_not(settings) or aot_results.why_not_now() or region_store.forbidden()
    if not reason and any(finding.kind not in _BEFORE | _SILENT for finding in findings):
        reason = "something was found in another graph that may be found in this one as well"
    if not reason and torch.is_grad_enabled() and any(map(_requires_grad, inputs)):
        reason = "a backward graph belongs to it"
    if not reason and any(map(_is_exact, wanted.operators)):
        reason = 'a mark asks for numerics="eager"'
    if not reason and ranks.job(disk.folder if disk.seal is None else None) is not None:
        reason = "ranks of a job share what they compile"
    if reason:
        raise UnkeptError(reason)


def _why_not(settings: Settings) -> str:
    if settings.region_backend != "inductor" or settings.guarded:
        return "its regions aren't Inductor's"
    if settings.for_file or (settings.selection or of_environment()) is not None:
        return "it is compiled for something else than to run as it is"
    if settings.cudagraphs != "off":
        return "it is recorded"
    return 'numerics="eager"' if settings.numerics != "default" else ""


def _requires_grad(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _is_exact(operator: Any) -> bool:
    value = operator.value
    return isinstance(value, dict) and value.get("numerics") not in (None, "default")


def _key(module: torch.fx.GraphModule, inputs: Sequence[Any], settings: Settings) -> str:
    asked = times_asked()
    own = {
        one.name: getattr(settings, one.name)
        for one in fields(settings)
        if one.name not in ("mark_graph", "trials", "selection")
    }
    text = json.dumps(
        {
            "graph": aot_results.lines_of(module, inputs, MARK_KEY),
            "settings": aot_results.spelled(own),
            "environment": environment_key(),
            "state": aot_results.state(),
            "backend": backend_text(settings),
            "schema": SCHEMA,
            "package": package_digest(),
            "build": machine.build(),
        },
        sort_keys=True,
    )
    if times_asked() != asked:
        raise UnkeptError("its environment holds objects of this process")
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Kept:
    """What is kept besides the graph and AOTAutograd's result.

    `regions` says for each region key what the region is stored under, and its options.
    """

    graphs: tuple[GraphReport, ...]
    findings: tuple[Finding, ...]
    regions: dict[str, tuple[str, dict[str, Any]]]
    token: str


class _MissingRegionError(Exception):
    """A region that was stored and isn't any more."""


class _Regions:
    """Compiled regions by their key, from memory or from the store.

    Attributes:
        made: Those that were asked for so far.
        status: Where each of them came from.
    """

    def __init__(self, stored: dict[str, tuple[str, dict[str, Any]]]) -> None:
        self._stored = stored
        self.made: dict[str, Callable[..., Any]] = {}
        self.status: dict[str, Literal["memory", "disk"]] = {}

    def check_are_there(self, disk: Disk) -> None:
        """Before any is loaded: a region that was loaded in vain would count as one of this process."""
        for key, (stored, _) in self._stored.items():
            if region_store.in_memory(key) is None and not disk.holds(stored):
                raise _MissingRegionError(key)

    def get(self, key: str) -> Callable[..., Any]:
        if key not in self.made:
            found = region_store.loaded_by_key(key, *self._stored[key])
            if found is None:
                raise _MissingRegionError(key)
            self.made[key], self.status[key] = found
        return self.made[key]


class _Packer(Packer):
    """Packs graphs, and of their regions only the keys."""

    def __init__(self, stored: dict[str, tuple[str, dict[str, Any]]]) -> None:
        super().__init__()
        self._keys = {id(region_store.in_memory(key)): key for key in stored}

    def region(self, compiled: Any, call: RegionCall) -> Any:
        key = self._keys.get(id(compiled))
        if key is None:
            raise NotPackedError("it belongs to this process", call)
        return key


class _Unpacker(Unpacker):
    def __init__(self, parts: Any, regions: _Regions) -> None:
        super().__init__(parts)
        self._of_store = regions

    def region(self, number: Any) -> Callable[..., Any]:
        return self._of_store.get(number)


def _check_holds_no_tensors(module: torch.fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "get_attr":
            raise UnkeptError(f"its graph holds {node.target}")


def _as_taken(graph: GraphReport, capture: int, regions: _Regions) -> GraphReport:
    """A graph's report as that of a process which compiled nothing of it."""
    seen: set[str] = set()
    result = []
    for region in graph.regions:
        status = "shared" if region.key in seen else regions.status.get(region.key, "disk")
        seen.add(region.key)
        result.append(replace(region, status=status, seconds=0.0, started=None, steps={}))
    return replace(graph, capture=capture, regions=tuple(result), seconds={}, started={})


def _about(graphs: Sequence[GraphReport], seconds: float) -> dict[str, Any]:
    """What `regional-inductor cache` shows."""
    regions = [region for graph in graphs for region in graph.regions]
    return {
        "name": f"(graph) {', '.join(region.name for region in regions)}",
        "direction": graphs[0].direction,
        "nodes": sum(graph.nodes for graph in graphs),
        "ops": [],
        "options": {},
        "seconds": round(seconds, 3),
        "made": time.time(),
        "build": machine.build(),
        "devices": machine.devices(frozenset({"cpu"})),
    }
