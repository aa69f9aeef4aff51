"""stitch: put compiled regions into the caller's modules. Nothing can fail from here on."""

from __future__ import annotations

from dataclasses import replace

import torch.fx
from torch.fx.node import Node

from .. import layouts
from .._torch.direct import is_lowered_directly, refusal
from .._torch.fx import has_plain_codegen, recompile, set_boxed, set_graph
from ..checked_calls import guarded_function
from ..options import MARK_KEY
from ..region_backends import serialisable
from ..regions import (
    REGION_META,
    Compiled,
    CompiledGraph,
    CompiledRegion,
    OutlinedGraph,
    RegionCall,
    Settings,
    Stitched,
)
from ..runtime import EffectfulRegion, boxed_function, named_function
from ..stitched import make_stitched


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
            graph.outlined.obsolete.add(str(node.target))
            _replace_call(node, region, graph, settings)
    for graph in compiled.graphs:
        commit(graph)
    return Stitched(tuple(g.outlined.module for g in compiled.graphs), compiled.findings)


def commit(graph: CompiledGraph) -> None:
    """Give a module its new graph and submodules, and drop those that nothing calls any more."""
    module = graph.outlined.module
    for name, submodule in graph.outlined.submodules.items():
        module.add_module(name, submodule)
    for name in graph.outlined.obsolete:
        if name not in graph.outlined.submodules:
            module.delete_submodule(name)
    make_stitched(module)
    set_graph(module, graph.outlined.graph)


def set_calling_convention(module: torch.fx.GraphModule, settings: Settings) -> None:
    """Boxed or positional, for the outermost graph; HOPs call the bodies with plain arguments.

    What AOTAutograd alone calls calls eager operators directly; the code of a graph in the user's hands
    reads as the graph does.
    """
    if has_plain_codegen(module.graph):
        set_boxed(module.graph, direct=not (settings.guarded or settings.for_file))
        recompile(module)


def _replace_call(
    node: Node, region: CompiledRegion, graph: CompiledGraph, settings: Settings
) -> None:
    call: RegionCall = replace(node.meta[REGION_META], stitched=True)
    node.meta[REGION_META] = call
    submodules = graph.outlined.submodules
    name = str(node.target)
    eager = submodules.get(name) or graph.outlined.module.get_submodule(name)
    assert isinstance(eager, torch.fx.GraphModule)
    submodules.pop(name, None)
    if region.call is None:
        _put_back(node, eager, graph.outlined)
        return
    if isinstance(region.call, torch.fx.GraphModule):
        function = named_function(region.call, call)
        submodules[name] = region.call
    elif region.boxed and not settings.guarded:
        function = boxed_function(region.call, call, _promised_strides(region, eager))
        node.args = (list(node.args),)
    elif settings.guarded:
        expected = [n.meta.get("val") for n in eager.graph.nodes if n.op == "placeholder"]
        compiled = serialisable(region.call, eager, dict(region.options), call, settings)
        functional = _is_functional(region, eager)
        function = guarded_function(compiled, eager, expected, call, functional=functional)
        submodules[name] = eager
    else:
        strict = settings.region_backend == "inductor"  # others take tensors as they are
        promised = _promised_strides(region, eager) if strict else ()
        function = named_function(region.call, call, promised)
    if call.joint:
        # AOTAutograd's partitioners copy functions only.
        if call.effectful:
            torch.fx.node.has_side_effect(function)
    elif isinstance(region.call, torch.fx.GraphModule):
        return
    elif call.effectful:
        submodules[name] = EffectfulRegion(function, call)
        return
    node.op = "call_function"
    node.target = function


def _is_functional(region: CompiledRegion, eager: torch.fx.GraphModule) -> bool:
    """Whether a region neither writes to its inputs nor returns views of them."""
    return is_lowered_directly(region.call) or not refusal(eager, region.options)


def _promised_strides(
    region: CompiledRegion, eager: torch.fx.GraphModule
) -> tuple[layouts.Strides, ...]:
    if not _is_functional(region, eager):
        return ()  # a copy of an input would not do
    return layouts.promised_strides(
        n.meta.get("val") for n in eager.graph.nodes if n.op == "placeholder"
    )


def _put_back(call: Node, region: torch.fx.GraphModule, outlined: OutlinedGraph) -> None:
    """Replace the call of a region that stays eager by the region's own nodes, no longer marked."""
    graph = outlined.graph
    arguments = iter(call.args)
    inner: dict[Node, Node] = {}
    outputs: tuple[Node, ...] = ()
    with graph.inserting_before(call):
        for node in region.graph.nodes:
            if node.op == "placeholder":
                argument = next(arguments)
                assert isinstance(argument, Node)
                inner[node] = argument
            elif node.op == "output":
                outputs = node.args[0]
            else:
                inner[node] = graph.node_copy(node, inner.__getitem__)
                _unmark(inner[node])
                if node.op in ("get_attr", "call_module"):
                    inner[node].target = _attach(str(node.target), region, outlined)
    for user in list(call.users):
        index = user.args[1]
        assert isinstance(index, int)
        user.replace_all_uses_with(inner[outputs[index]])
        graph.erase_node(user)
    graph.erase_node(call)


def _unmark(node: Node) -> None:
    custom = node.meta.get("custom")
    if isinstance(custom, dict) and MARK_KEY in custom:
        node.meta["custom"] = {key: value for key, value in custom.items() if key != MARK_KEY}


def _attach(path: str, region: torch.fx.GraphModule, outlined: OutlinedGraph) -> str:
    """Make a HOP's body of the region a submodule of the stitching graph, under a free name."""
    body = region.get_submodule(path)
    name, number = path.replace(".", "_"), 0
    while outlined.submodules.get(name, getattr(outlined.module, name, body)) is not body:
        number += 1
        name = f"{path.replace('.', '_')}_{number}"
    outlined.submodules[name] = body
    return name
