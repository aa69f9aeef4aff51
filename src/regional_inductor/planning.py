"""What the compile stage would do with outlined regions, without compiling any: for dry runs."""

from __future__ import annotations

import torch.fx
from torch.fx.node import Node

from ._torch import inductor
from .region_key import combined_key, environment_key, key_parts
from .regions import (
    REGION_META,
    Compiled,
    CompiledGraph,
    CompiledRegion,
    Outlined,
    OutlinedGraph,
    RegionCall,
    Settings,
)
from .stages.compile import _may_lower_directly, _unsupported


class Planner:
    """Plays the compile stage; a key that it met before, in any graph, is `shared`."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def plan(self, outlined: Outlined, settings: Settings) -> Compiled:
        """For each region call its key, and whether it would be compiled, shared or left eager."""
        environment = environment_key()
        return Compiled(
            tuple(
                CompiledGraph(
                    graph,
                    {
                        node: self._planned(node, graph, settings, environment)
                        for node in graph.graph.nodes
                        if node.op == "call_module" and _awaits_compilation(node)
                    },
                )
                for graph in outlined.graphs
            ),
            outlined.findings,
        )

    def _planned(
        self, node: Node, graph: OutlinedGraph, settings: Settings, environment: str
    ) -> CompiledRegion:
        call: RegionCall = node.meta[REGION_META]
        options = settings.options_of(call.mark)
        reason = call.eager_reason or _unsupported(call, settings)
        if reason:
            return CompiledRegion("", None, "eager", reason, options=options)
        module = graph.submodules[str(node.target)]
        assert isinstance(module, torch.fx.GraphModule)
        backend: str = settings.region_backend
        if backend == "inductor":
            backend = f"{inductor.backend_identity()} {_may_lower_directly(settings)}"
        parts = key_parts(module, options, backend=backend, environment=environment)
        key = combined_key(parts)
        if options.get("triton.cudagraphs"):
            key = f"{key}:{len(self._keys)}"  # a recording belongs to one call site
        known = key in self._keys
        self._keys.add(key)
        return CompiledRegion(
            key, None, "shared" if known else "planned", options=options, key_parts=parts
        )


def _awaits_compilation(node: Node) -> bool:
    call = node.meta.get(REGION_META)
    return isinstance(call, RegionCall) and not call.stitched
