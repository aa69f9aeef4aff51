"""`cudagraphs="graph"`: eager operators and compiled regions of a captured graph recorded together.

The model keeps eager's numerics outside its regions and pays for one launch a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.fx

from ._torch import cudagraphs, inductor
from .regions import Direction, Finding, Settings
from .report import Report


class Recorder:
    """Decides for each graph of one capture whether it is recorded; forward comes before backward.

    A graph that can't be recorded runs as it does without, and a finding says why.
    """

    def __init__(self, settings: Settings, report: Report, captured_inputs: int) -> None:
        self.settings = settings
        self.report = report
        self.captured_inputs = captured_inputs
        self.forward: cudagraphs.Plan | None = None

    def compile(
        self,
        graph: torch.fx.GraphModule,
        direction: Direction,
        compile_graph: Callable[[Settings], Any],
    ) -> Any:
        """Compile a graph's regions with the settings that fit, and record what comes out."""
        plan = self._plan(graph, direction)
        if plan is None:
            compiled = compile_graph(replace(self.settings, cudagraphs="off"))
            if direction == "backward" and self.forward is not None:
                return cudagraphs.running_backward(compiled, self.forward.device)
            return compiled
        with cudagraphs.no_recording_within():
            compiled = compile_graph(self.settings)
        return cudagraphs.recorded(compiled, plan, direction)

    def _plan(self, graph: torch.fx.GraphModule, direction: Direction) -> cudagraphs.Plan | None:
        if direction == "backward" and self.forward is None:
            return None  # what the forward graph saved lies elsewhere at each call
        reason = cudagraphs.why_not(graph)
        if not reason and inductor.autograd_cache_forced():
            reason = "a recording can't go into AOTAutograd's cache, which is forced"
        if reason:
            self._note(
                f"the {direction} graph is not recorded as a CUDA graph: {reason}",
                "it runs launch by launch; move what can't be recorded out of the captured function",
            )
            return None
        if direction == "backward":
            return cudagraphs.plan_backward(graph)
        plan = cudagraphs.plan_forward(graph, self.captured_inputs)
        self.forward = plan
        if plan.mutates_what_may_move:
            self._note(
                f"the {direction} graph writes to inputs that are neither parameters nor buffers; "
                "its CUDA graph is replayed only while they are results of recorded graphs",
                "make them buffers, or torch._dynamo.mark_static_address(tensor)",
            )
        return plan

    def _note(self, message: str, remedy: str) -> None:
        self.report.findings.append(Finding("cudagraphs", message, "", remedy))
