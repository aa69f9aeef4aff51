"""What the calls of outlined regions ask for: a compiled region each, by key.

Keys are known before anything is compiled, so that equal regions are found over all graphs and those
that nobody compiled yet can be compiled together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx
from torch.fx.node import Node

from ._torch import cudagraphs
from ._torch.symbols import Sizes, UnstatedError
from .identity import times_asked
from .region_backends import backend_text, numerics_text
from .region_key import combined_key, environment_key, key_parts, parts_for_all, sizes_of
from .regions import REGION_META, Outlined, OutlinedGraph, RegionCall, Settings


@dataclass(frozen=True)
class RegionRequest:
    """One region call and what it takes to serve it.

    Attributes:
        node: The call.
        graph: The outlined graph that it is in.
        call: What the node says of itself.
        module: The outlined region.
        asked: Inductor's options as the mark and the defaults have them.
        options: Those to compile with; a recording of ours is made around what they give.
        reason: Why the region stays eager, or ``""``; then it has no key.
        key: The region key.
        key_parts: What the key is made of.
        recorded: Whether the call is recorded as a CUDA graph of its own.
        unshared: Whether the compiled region belongs to this one call.
        local: Why no key would mean anything to another process, or ``""``.
        parts_for_all: What such a key is made of.
        sizes: The region's symbolic sizes.
        early: Whether it is of a backward graph that nobody has asked for yet.
    """

    node: Node
    graph: OutlinedGraph
    call: RegionCall
    module: torch.fx.GraphModule
    asked: dict[str, Any]
    options: dict[str, Any]
    reason: str = ""
    key: str = ""
    key_parts: Mapping[str, str] | None = None
    recorded: bool = False
    unshared: bool = False
    local: str = ""
    parts_for_all: Mapping[str, str] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=dict)
    early: bool = False


def requests_of(outlined: Outlined, settings: Settings) -> Iterator[RegionRequest]:
    """What each region call of each graph asks for, in order.

    Args:
        outlined: Stitching graphs and region modules.
        settings: Options for all regions, and how they are compiled.
    """
    asked = times_asked()
    environment = environment_key()
    backend = backend_text(settings)
    local = "its environment holds objects of this process" if times_asked() != asked else ""
    unshared = 0
    for graph in outlined.graphs:
        for node in graph.graph.nodes:
            if not _awaits_compilation(node):
                continue
            request = _request(node, graph, settings, backend, environment, unshared, local)
            unshared += request.unshared
            yield request


def why_eager(call: RegionCall, settings: Settings) -> str:
    """Why a region must not be compiled, or ``""``."""
    if call.eager_reason:
        return call.eager_reason
    return ""


def _request(
    node: Node,
    graph: OutlinedGraph,
    settings: Settings,
    backend: str,
    environment: str,
    number: int,
    local: str,
) -> RegionRequest:
    call: RegionCall = node.meta[REGION_META]
    module = _module_of(node, graph)
    asked = settings.options_of(call.mark)
    recorded = _is_recorded(asked, settings)
    options = {k: v for k, v in asked.items() if k != "triton.cudagraphs"} if recorded else asked
    reason = why_eager(call, settings)
    if reason:
        return RegionRequest(node, graph, call, module, asked, options, reason, recorded=recorded)
    objects = times_asked()
    text = backend + numerics_text(call, settings)
    parts = key_parts(module, options, backend=text, environment=environment)
    if times_asked() != objects:
        local = local or "it holds objects of this process"
    sizes: Sizes = {}
    try:
        sizes = sizes_of(module)
    except UnstatedError as error:
        local = local or str(error)
    key = combined_key(parts)
    unshared = bool(options.get("triton.cudagraphs"))
    if unshared:
        key = f"{key}:{number}"  # Inductor's own recording belongs to one call site
        local = local or "it belongs to one call"
    for_all = {} if local else parts_for_all(parts, sizes)
    return RegionRequest(
        node,
        graph,
        call,
        module,
        asked,
        options,
        "",
        key,
        parts,
        recorded,
        unshared,
        local,
        for_all,
        sizes,
    )


def _is_recorded(options: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a call is recorded by us, around a region compiled without CUDA graphs."""
    if settings.guarded or settings.region_backend != "inductor":
        return False
    return settings.cudagraphs != "graph" and cudagraphs.is_asked_for(options)


def _awaits_compilation(node: Node) -> bool:
    call = node.meta.get(REGION_META)
    return node.op == "call_module" and isinstance(call, RegionCall) and not call.stitched


def _module_of(node: Node, graph: OutlinedGraph) -> torch.fx.GraphModule:
    module = graph.submodules.get(str(node.target))
    if module is None:
        module = graph.module.get_submodule(str(node.target))
    assert isinstance(module, torch.fx.GraphModule)
    return module
