"""stitch: put compiled regions into the caller's modules. Nothing can fail from here on."""

from __future__ import annotations

from dataclasses import replace

import torch.fx
from torch.fx.node import Node

from .._torch.fx import has_plain_codegen, make_stitched, set_boxed
from ..regions import (
    REGION_META,
    Compiled,
    CompiledGraph,
    CompiledRegion,
    RegionCall,
    Settings,
    Stitched,
)
from ..runtime import EffectfulRegion, guarded_function, named_function


def stitch(compiled: Compiled, settings: Settings) -> Stitched:
    """Replace region calls by compiled regions and give each module its new graph, in place.

    Args:
        compiled: What each region call became.
        settings: `guarded` adds checks of arguments for graphs that run without Dynamo's guards.

    Returns:
        The modules that now call compiled regions.
    """
    for graph in compiled.graphs:
        for node, region in graph.regions.items():
            _replace_call(node, region, graph, settings)
    for graph in compiled.graphs:
        commit(graph)
    return Stitched(tuple(g.outlined.module for g in compiled.graphs), compiled.findings)


def commit(graph: CompiledGraph) -> None:
    """Give a module its new graph and submodules."""
    module = graph.outlined.module
    for name, submodule in graph.outlined.submodules.items():
        module.add_module(name, submodule)
    make_stitched(module)
    module.graph = graph.outlined.graph
    module.recompile()


def set_calling_convention(module: torch.fx.GraphModule) -> None:
    """Boxed or positional, for the outermost graph; HOPs call the bodies with plain arguments."""
    if has_plain_codegen(module.graph):
        set_boxed(module.graph)
        module.recompile()


def _replace_call(
    node: Node, region: CompiledRegion, graph: CompiledGraph, settings: Settings
) -> None:
    call: RegionCall = replace(node.meta[REGION_META], stitched=True)
    node.meta[REGION_META] = call
    if region.call is None:
        return
    submodules = graph.outlined.submodules
    name = str(node.target)
    if isinstance(region.call, torch.fx.GraphModule):
        submodules[name] = region.call  # type: ignore[index]
        return
    eager = submodules.get(name) or graph.outlined.module.get_submodule(name)
    assert isinstance(eager, torch.fx.GraphModule)
    if settings.guarded:
        expected = [n.meta.get("val") for n in eager.graph.nodes if n.op == "placeholder"]
        function = guarded_function(region.call, eager, expected, call)
    else:
        function = named_function(region.call, call.name)
    if call.effectful:
        submodules[name] = EffectfulRegion(function, call)  # type: ignore[index]
        return
    node.op = "call_function"
    node.target = function
    if not settings.guarded:
        submodules.pop(name, None)  # type: ignore[attr-defined]
