"""Regions with `"triton.cudagraphs"`: compiled once like any other, recorded at each place that calls them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch.fx
from torch.fx.node import Node

from ._torch import cudagraphs, ops
from ._torch.direct import innermost_callable
from .options import Mark
from .regions import REGION_META, CompiledGraph, CompiledRegion, Finding, RegionCall, Settings

_OPTION = "triton.cudagraphs"
_NOT_RECORDED = "not recorded as a CUDA graph"


def record_call(
    region: CompiledRegion,
    node: Node,
    module: torch.fx.GraphModule,
    options: dict[str, Any],
    settings: Settings,
) -> CompiledRegion:
    """A compiled region recorded as a CUDA graph for one call site; the kernels are shared.

    Args:
        region: The region, compiled without CUDA graphs.
        node: The call, in a graph that AOTAutograd is having compiled.
        module: The outlined region.
        options: What the mark asked for, for the report.
        settings: Says whether a backward graph belongs to this one.

    Returns:
        The region with a call that records and replays; or, where that can't be, as it was, with
        the reason.
    """
    if region.call is None:
        return replace(region, options=options)
    reason = cudagraphs.why_not(module)
    if reason:
        return replace(region, options=options, reason=f"{_NOT_RECORDED}: {reason}")
    direction = "inference" if settings.inference else node.meta[REGION_META].direction
    call = region.call if region.boxed else cudagraphs.emptying(region.call)
    plan = cudagraphs.plan_region(module, node, direction)
    recorded = cudagraphs.recorded(
        call, plan, direction, trial=_trial(region, call, node, module, plan, settings)
    )
    return replace(region, call=recorded, boxed=True, options=options)


def _trial(
    region: CompiledRegion,
    call: cudagraphs.BoxedCall,
    node: Node,
    module: torch.fx.GraphModule,
    plan: cudagraphs.Plan,
    settings: Settings,
) -> cudagraphs.Trial | None:
    """Whether the recording pays is tried where the region can run once more and leave no trace."""
    if settings.trials is None or plan.mutated or not _leaves_no_trace(module):
        return None
    trial: cudagraphs.Trial | None = settings.trials.of(
        region.key,
        node.meta[REGION_META],
        innermost_callable(call),
        cudagraphs.Stopwatch(plan.device),
    )
    return trial


def _leaves_no_trace(module: torch.fx.GraphModule) -> bool:
    found = ops.body_traits(module)
    return not (found.draws or found.ordered or found.opaque or found.collective)


def recording_findings(graphs: Sequence[CompiledGraph], settings: Settings) -> Iterator[Finding]:
    """Regions that are not recorded although they ask for it, and why."""
    said: set[tuple[str, Mark]] = set()
    for graph in graphs:
        for node, region in graph.regions.items():
            call: RegionCall = node.meta[REGION_META]
            if region.reason.startswith(_NOT_RECORDED):
                message = f"the region is {region.reason}"
                remedy = "it runs without; move what can't be recorded out of the region"
            elif settings.cudagraphs == "graph" and dict(call.mark.options).get(_OPTION):
                message = 'the region is recorded with its whole graph, as cudagraphs="graph" asks'
                remedy = f'leave "{_OPTION}" out of its options'
            else:
                continue
            if (message, call.mark) not in said:
                said.add((message, call.mark))
                yield Finding("cudagraphs", message, call.source, remedy, call.name)
