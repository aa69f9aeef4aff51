"""Reports from what the stages produced."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.fx
from torch.fx.node import Node

from ._torch import generated, ops
from ._torch.config import changed_from
from ._torch.symbols import expression_of, leaves
from .costs import Costs, costs_of
from .pipeline import Trace
from .region_key import described_environment
from .regions import (
    REGION_META,
    Compiled,
    CompiledGraph,
    CompiledRegion,
    Partitioned,
    PartitionedGraph,
    RegionCall,
)
from .report import (
    NOT_SET,
    GraphReport,
    KernelReport,
    OperatorReport,
    RegionReport,
    ValueReport,
)
from .source import module_names, user_source


def graph_reports(
    compiled: Compiled,
    trace: Trace,
    partitioned: Partitioned | None = None,
    *,
    capture: int = 0,
    direction: str = "",
) -> list[GraphReport]:
    """What the compile stage's product says, before stitching replaces its nodes.

    Args:
        compiled: The product.
        trace: When each stage began and how long it took.
        partitioned: The product of the partition stage; without it neither paths nor marks nor
            operators are known.
        capture: Number of the captured graph that this is about.
        direction: Which of its graphs this is; taken from the marks where it isn't given.
    """
    parts = partitioned.graphs if partitioned is not None else ()
    result = []
    for index, graph in enumerate(compiled.graphs):
        regions = _region_reports(graph)
        inside = sum(region.nodes for region in regions)
        outside = sum(_is_operator(n) for n in graph.outlined.graph.nodes if n not in graph.regions)
        part = parts[index] if index < len(parts) else None
        about = part.marked if part is not None else None
        own = "joint" if about is not None and about.joint else direction
        if not own:
            own = regions[0].direction if regions else ""
        result.append(
            GraphReport(
                path=about.path if about is not None else "",
                nodes=inside + outside,
                regions=regions,
                seconds=dict(trace.seconds),
                capture=capture,
                direction=own,
                marked=len(about.marks) if about is not None else inside,
                started=dict(trace.started),
                operators=_operators(part) if part is not None else (),
            )
        )
    return result


def unmarked_graph_report(
    graph: torch.fx.Graph, trace: Trace, *, capture: int, direction: str
) -> GraphReport:
    """A graph that has no mark at all, which the stages pass over."""
    operators = _operator_reports(graph, {})
    return GraphReport(
        "",
        len(operators),
        (),
        dict(trace.seconds),
        capture,
        direction,
        started=dict(trace.started),
        operators=operators,
    )


def in_environment(graphs: Sequence[GraphReport], environment: dict[str, str]) -> list[GraphReport]:
    """The reports with what is other than a report's environment now, which the first graphs fill."""
    now = described_environment()
    if not environment:
        environment.update(now)
    names = [*environment, *(name for name in now if name not in environment)]
    other = {
        name: now.get(name, NOT_SET) for name in names if now.get(name) != environment.get(name)
    }
    return [replace(graph, environment=other) for graph in graphs]


def with_times(graphs: Sequence[GraphReport], trace: Trace) -> list[GraphReport]:
    """The reports with the times of stages that ran after they were made."""
    return [
        replace(graph, seconds=dict(trace.seconds), started=dict(trace.started)) for graph in graphs
    ]


def code_of(compiled: Compiled) -> dict[str, str]:
    """The generated code of each distinct region, by key, as far as it is known."""
    found: dict[str, str] = {}
    for graph in compiled.graphs:
        for region in graph.regions.values():
            if region.key and region.key not in found:
                found[region.key] = generated.source_of(region.call)
    return {key: code for key, code in found.items() if code}


# --- regions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What is the same wherever a region key occurs."""

    costs: Costs | None
    constants: tuple[str, ...]
    kernels: tuple[KernelReport, ...] | None
    not_fused: tuple[str, ...] | None


def _region_reports(graph: CompiledGraph) -> tuple[RegionReport, ...]:
    regions = []
    known: dict[str, _Work] = {}
    for node, region in graph.regions.items():
        call: RegionCall = node.meta[REGION_META]
        module = _outlined(node, graph)
        if region.key not in known or not region.key:
            known[region.key] = _work(module, region, call)
        work = known[region.key]
        costs = work.costs
        regions.append(
            RegionReport(
                name=call.name,
                direction=call.direction,
                source=call.source,
                module_path=call.module_path,
                nodes=call.nodes,
                ops=call.ops,
                options=dict(region.options),
                key=region.key,
                shared_by=1,
                status=region.status,
                reason=region.reason,
                seconds=region.seconds,
                inputs=_values(list(node.all_input_nodes)),
                outputs=_values(list(module.graph.output_node().all_input_nodes) if module else []),
                changed_options=changed_from(region.options),
                key_parts=dict(region.key_parts),
                bytes_read=costs.bytes_read if costs else None,
                bytes_written=costs.bytes_written if costs else None,
                bytes_eager=costs.bytes_eager if costs else None,
                flops=costs.flops if costs else None,
                kernels=work.kernels,
                not_fused=work.not_fused,
                started=region.started,
                steps=_steps(region),
                constants=work.constants,
            )
        )
    return tuple(regions)


def _work(module: torch.fx.GraphModule | None, region: CompiledRegion, call: RegionCall) -> _Work:
    costs = costs_of(module) if module is not None else None
    constants = _constants(module) if module is not None else ()
    code = generated.source_of(region.call)
    if not code:
        return _Work(costs, constants, None, None)
    kernels = generated.kernels_in(code, call.ops)
    reports = tuple(KernelReport(kernel.name, kernel.kind, kernel.ops) for kernel in kernels)
    return _Work(costs, constants, reports, _not_fused(reports))


def _constants(module: torch.fx.GraphModule) -> tuple[str, ...]:
    """What operators are given besides the graph's values: `aten.add.Tensor(_, 1)`."""
    found = []
    for node in module.graph.nodes:
        if not node.op.startswith("call") or node.target is operator.getitem:
            continue
        given = [_constant(value) for value in node.args]
        given += [f"{name}={_constant(value)}" for name, value in node.kwargs.items()]
        if any(one != _A_VALUE for one in given):
            found.append(f"{ops.op_name(node)}({', '.join(given)})")
    return tuple(found)


_A_VALUE = "_"


def _constant(value: Any) -> str:
    if isinstance(value, Node):
        return _A_VALUE
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_constant, value))}]"
    return str(value)


def _not_fused(kernels: Sequence[KernelReport]) -> tuple[str, ...]:
    """Operators outside the largest generated kernel; the kernels of one operator many times over
    count once each."""
    fused = [kernel for kernel in kernels if kernel.kind == "generated"]
    largest = max(fused, key=lambda kernel: len(kernel.ops), default=None)
    return tuple(op for kernel in kernels if kernel is not largest for op in kernel.ops)


def _steps(region: CompiledRegion) -> dict[str, float]:
    if not region.steps:
        return {}
    rest = max(region.seconds - sum(region.steps.values()), 0.0)
    return {"prepare": rest, **region.steps}


def _outlined(node: torch.fx.Node, graph: CompiledGraph) -> torch.fx.GraphModule | None:
    name = str(node.target)
    module = graph.outlined.submodules.get(name) or getattr(graph.outlined.module, name, None)
    return module if isinstance(module, torch.fx.GraphModule) else None


# --- operators ------------------------------------------------------------------------------------


def _operators(graph: PartitionedGraph) -> tuple[OperatorReport, ...]:
    regions = {node: i for i, region in enumerate(graph.regions) for node in region.nodes}
    return _operator_reports(graph.marked.module.graph, regions)


def _operator_reports(
    graph: torch.fx.Graph, regions: Mapping[Node, int]
) -> tuple[OperatorReport, ...]:
    numbers: dict[Node, int] = {}
    found = []
    for node in graph.nodes:
        if not _is_operator(node):
            continue
        names = module_names(node)
        found.append(
            OperatorReport(
                name=node.name,
                op=ops.op_name(node),
                region=regions.get(node),
                inputs=tuple(numbers[n] for n in node.all_input_nodes if n in numbers),
                module_path=names[-1] if names else "",
                source=user_source(node),
                value=_described(node.meta.get("val")),
            )
        )
        numbers[node] = len(numbers)
    return tuple(found)


def _is_operator(node: Node) -> bool:
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    first = node.args[0] if node.args else None
    return not (isinstance(first, Node) and REGION_META in first.meta)


# --- values ---------------------------------------------------------------------------------------


def _values(nodes: Sequence[torch.fx.Node]) -> tuple[ValueReport, ...]:
    return tuple(_value(node.name, leaf) for node in nodes for leaf in leaves(node.meta.get("val")))


def _described(value: Any) -> str:
    """What `str` makes of the value reports."""
    if not isinstance(value, torch.Tensor):
        return ", ".join(str(_value("", leaf)) for leaf in leaves(value))
    if all(type(size) is int for size in value.shape):
        return _kind(value.dtype, tuple(value.shape))
    return str(_value("", value))


@lru_cache(maxsize=4096)
def _kind(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Kinds of values are few, and operators many."""
    return str(ValueReport("", str(dtype).removeprefix("torch."), shape))


def _value(name: str, value: Any) -> ValueReport:
    if not isinstance(value, torch.Tensor):
        return ValueReport(name, type(value).__name__)
    shape = tuple(size if type(size) is int else _symbolic(size) for size in value.shape)
    dtype, device = str(value.dtype).removeprefix("torch."), str(value.device)
    strides = value.stride() if value.layout is torch.strided else ()
    stride = tuple(one if type(one) is int else _symbolic(one) for one in strides)
    return ValueReport(name, dtype, shape, device, stride, value.requires_grad)


def _symbolic(size: Any) -> str:
    node = getattr(size, "node", None)
    return str(node.expr) if node is not None else expression_of(size)
