"""What the compile stage would do with outlined regions, without compiling any: for dry runs."""

from __future__ import annotations

from torch.fx.node import Node

from .region_requests import RegionRequest, requests_of
from .regions import Compiled, CompiledGraph, CompiledRegion, Outlined, Settings


class Planner:
    """Plays the compile stage; a key that it met before, in any graph, is `shared`."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def plan(self, outlined: Outlined, settings: Settings) -> Compiled:
        """For each region call its key, and whether it would be compiled, shared or left eager."""
        planned: dict[Node, CompiledRegion] = {}
        requests = list(requests_of(outlined, settings))
        for request in requests:
            planned[request.node] = self._planned(request)
        graphs = tuple(
            CompiledGraph(graph, {r.node: planned[r.node] for r in requests if r.graph is graph})
            for graph in outlined.graphs
        )
        return Compiled(graphs, outlined.findings)

    def _planned(self, request: RegionRequest) -> CompiledRegion:
        options = request.asked
        if request.reason:
            return CompiledRegion("", None, "eager", request.reason, options=options)
        known = request.key in self._keys and not request.unshared
        self._keys.add(request.key)
        return CompiledRegion(
            request.key,
            None,
            "shared" if known else "planned",
            options=options,
            key_parts=request.key_parts or {},
        )
