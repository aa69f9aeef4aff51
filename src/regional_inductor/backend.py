"""The entry points: the drop-in graph pass, its two halves, the torch.compile backend."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.fx

from . import graph_store, pipeline
from ._torch import aot_results, dynamo, inductor, ops, workers
from ._torch.fx import copy_graph, copy_graph_module
from .early_backward import EarlyBackward
from .errors import OptionError, did_you_mean
from .findings import findings_of
from .garbage import paused_collection
from .logs import log_regions, log_stage
from .lost_marks import (
    remember_marks,
    restore_marks,
    take_over_surrounding_mark,
    warn_of_lost_regions,
)
from .options import check_options, mode_options
from .recomputing import RecomputationChooser
from .recording import Recorder
from .regions import (
    REGION_META,
    CompiledGraph,
    Direction,
    Outlined,
    OutlinedGraph,
    RegionCall,
    Settings,
)
from .replay_trial import Trials
from .report import GraphReport, Report, publish
from .report_from_stages import (
    code_of,
    graph_reports,
    in_environment,
    unmarked_graph_report,
    with_times,
)
from .reproduction import recorder_of
from .selection import Selection, of_environment
from .stages.collect import collect
from .stages.compile import compile as compile_stage
from .stages.outline import outline
from .stages.partition import partition
from .stages.stitch import commit, set_calling_convention, stitch

_M = TypeVar("_M", bound=Callable[..., Any])
Stages = Sequence[Callable[..., Any]]

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "merge": ("scope", "all"),
    "on_error": ("eager", "raise"),
    "numerics": ("default", "eager"),
    "collectives": ("exclude", "include"),
    "recompute": ("regions", "off"),
    "backward": ("auto", "early", "late"),
    "cudagraphs": ("off", "graph"),
    "region_backend": ("inductor", "eager"),
    "lowering": ("auto", "direct", "standalone"),
}


def read_settings(
    options: Mapping[str, Any] | None, *, mode: str | None = None, **defaults: Any
) -> Settings:
    """Split options into ours and Inductor's, and check both.

    Raises:
        OptionError: A key that neither has, or a value that can't be.
    """
    ours: dict[str, Any] = dict(defaults)
    if "REGIONAL_INDUCTOR_LOWERING" in os.environ:
        ours["lowering"] = os.environ["REGIONAL_INDUCTOR_LOWERING"]
    inductors: dict[str, Any] = dict(mode_options(mode)) if mode else {}
    known = set(_CHOICES)
    for key, value in (options or {}).items():
        if key in _CHOICES:
            if value not in _CHOICES[key]:
                raise OptionError(
                    f"{key}={value!r} is not a choice",
                    hint=f"one of {', '.join(map(repr, _CHOICES[key]))}",
                )
            ours[key] = value
        else:
            inductors[key] = value
    if ours.get("backward") == "early" and ours.get("cudagraphs") == "graph":
        raise OptionError(
            'backward="early" and cudagraphs="graph" exclude each other: what is recorded as a whole is '
            "compiled when it is recorded",
            hint='leave backward="auto"',
        )
    if inductors:
        try:
            check_options(inductors)
        except OptionError as error:
            unknown = next((k for k in inductors if repr(k) in error.what), "")
            own = did_you_mean(unknown, known)
            if own and "did you mean" not in error.hint:
                raise OptionError(error.what, hint=own) from None
            raise
    return Settings(**ours, default_options=inductors)


_WHO_CAN = "use regional_inductor.compile, or the backend of torch.compile"


def _pass_settings(options: Mapping[str, Any]) -> Settings:
    """Settings of the drop-in pass and its halves, which see one graph at a time."""
    settings = read_settings(options, merge="all", on_error="raise")
    if settings.backward == "early":
        raise OptionError(
            'backward="early" needs the backward graph, and a pass is given one graph at a time',
            hint=_WHO_CAN,
        )
    if options.get("recompute") == "regions":
        raise OptionError(
            'recompute="regions" is for who divides a graph into forward and backward, and a pass is given one of them',
            hint=_WHO_CAN,
        )
    if settings.cudagraphs == "graph":
        raise OptionError(
            'cudagraphs="graph" records what is called, and a pass only changes a graph',
            hint=f'{_WHO_CAN}; options={{"triton.cudagraphs": True}} of a mark records its region',
        )
    return settings


def regional_inductor(
    gm: torch.fx.GraphModule, *example_inputs: Any, **options: Any
) -> torch.fx.GraphModule:
    """Compile the marked regions of a graph; everything else runs as it is, in its order.

    A drop-in for `torch.fx.passes.regional_inductor.regional_inductor`: as `fw_compiler` and
    `bw_compiler` of AOTAutograd, on joint, `make_fx` and exported graphs, with or without an active
    tracing context.

    Args:
        gm: The graph. It is changed in place, and only if the whole pass succeeds.
        *example_inputs: What the graph will be called with; needed only for placeholders that
            carry no fake value.
        **options: `merge`, `on_error`, `numerics`, `collectives`, and Inductor's own options as
            defaults for all regions. Unlike the backend's, the defaults are `merge="all"` (as few
            regions as there can be) and `on_error="raise"`.

    Returns:
        `gm`, callable with its arguments or with one list of them (boxed). Under
        `torch._functorch.config.force_autograd_cache` what AOTAutograd's cache can serialise.

    Raises:
        OptionError: An unknown option.
        ConflictError: One id with different options.
        MissingValueError: A region's input carries no fake value.
        RegionCompileError: A region failed to compile.

    Example:
        >>> import torch, regional_inductor as ri
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> from torch.fx.traceback import annotate, preserve_node_meta
        >>> def f(x):
        ...     with annotate({"compile_with_inductor": "tail"}):
        ...         return x.sin().cos()
        >>> with preserve_node_meta():
        ...     gm = make_fx(f, tracing_mode="fake")(torch.ones(4))
        >>> gm = ri.regional_inductor(gm, region_backend="eager")
        >>> torch.equal(gm(torch.ones(4)), f(torch.ones(4)))
        True
    """
    settings = _pass_settings(options)
    report = Report()
    result: torch.fx.GraphModule = run_pass(gm, example_inputs, settings, report)
    publish(report)
    return result


def _is_compiled_early(settings: Settings, training: bool) -> bool:
    """Whether backward regions are compiled with those of the forward graph.

    What is bisected isn't: its backward graph is cut otherwise. What is made for a file or recorded as a
    whole has its backward graph at once, or compiles it when it is recorded.
    """
    wanted = settings.backward == "early" or (settings.backward == "auto" and training)
    bisected = (settings.selection or of_environment()) is not None
    return wanted and not bisected and not settings.for_file and settings.cudagraphs == "off"


def _with_early(graphs: Sequence[GraphReport], early: EarlyBackward | None) -> list[GraphReport]:
    """The reports of one pass; that of the outermost forward graph says what waits for the backward graph."""
    return [
        replace(graph, compiled_early=early.number)
        if early is not None and graph.direction == "forward" and not graph.path
        else graph
        for graph in graphs
    ]


def run_pass(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    settings: Settings,
    report: Report,
    *,
    capture: int = 0,
    direction: str = "",
    stages: Stages = pipeline.STAGES,
) -> Any:
    """The pass itself; adds what it did to a report."""
    trace = pipeline.Trace()
    before = len(report.graphs)
    if settings.for_file:
        gm = copy_graph_module(gm)  # AOTAutograd describes the backward graph afterwards
    selection = settings.selection or of_environment()
    if selection is not None:
        stages = _bisected(stages, selection)

    def observe(stage: str, product: Any, seconds: float) -> None:
        trace(stage, product, seconds)
        log_stage(stage, product, seconds)
        if stage == "compile":
            partitioned = trace.products.get("narrow", trace.products["partition"])
            graphs = graph_reports(
                product, trace, partitioned, capture=capture, direction=direction
            )
            log_regions(graphs)
            report.graphs += in_environment(
                graphs
                or [unmarked_graph_report(gm.graph, trace, capture=capture, direction=direction)],
                report.environment,
            )
            report.code.update(code_of(product))
            found = (*product.findings, *findings_of(partitioned, graphs, settings))
            # What another capture of the same code found already is said once.
            report.findings += [finding for finding in found if finding not in report.findings]

    pipeline.run(gm, example_inputs, settings, stages=stages, observer=observe)
    report.graphs[before:] = with_times(report.graphs[before:], trace)
    with paused_collection():
        set_calling_convention(gm, settings)
    if settings.for_file:
        return inductor.portable_code(gm)
    if settings.region_backend == "inductor" and inductor.autograd_cache_forced():
        return inductor.regional_output_code(gm)
    return gm


def _bisected(stages: Stages, selection: Selection) -> Stages:
    """The stages with those of a bisection between them."""
    result: list[Callable[..., Any]] = []
    for stage in stages:
        result.append(stage)
        if stage is partition:
            result.append(selection.narrow)
        if stage is outline and selection.script is not None:
            result.append(recorder_of(selection.script).record)
    return result


def outline_regions(gm: torch.fx.GraphModule, **options: Any) -> torch.fx.GraphModule:
    """The first half of the pass: each region becomes a submodule that the graph calls.

    A user's own passes fit between this and `compile_regions`. Region calls are known by their
    node's meta, so submodules may be renamed and graphs copied.

    Args:
        gm: The graph; changed in place if all goes well.
        **options: As for `regional_inductor`.

    Returns:
        `gm`, which computes what it did.

    Raises:
        OptionError: An unknown option.
        ConflictError: One id with different options.

    Example:
        >>> import torch, regional_inductor as ri
        >>> gm = torch.fx.symbolic_trace(lambda x: x.sin())
        >>> ri.outline_regions(gm) is gm  # nothing is marked: nothing changes
        True
    """
    settings = _pass_settings(options)
    selection = of_environment()
    stages: Stages = (collect, partition, outline)
    if selection is not None:
        stages = _bisected(stages, selection)
    with paused_collection():  # the code of the graph too: it is text by the megabyte
        outlined: Outlined = pipeline.run(gm, (), settings, stages=stages)
        for graph in outlined.graphs:
            commit(CompiledGraph(graph, {}))
    return gm


def compile_regions(gm: torch.fx.GraphModule, **options: Any) -> torch.fx.GraphModule:
    """The second half of the pass: compile what `outline_regions` outlined.

    Args:
        gm: A graph with region calls, nested graphs included; changed in place.
        **options: As for `regional_inductor`.

    Returns:
        `gm` with its regions compiled.

    Raises:
        RegionCompileError: A region failed to compile.

    Example:
        >>> import torch, regional_inductor as ri
        >>> gm = torch.fx.symbolic_trace(lambda x: x.sin())
        >>> ri.compile_regions(ri.outline_regions(gm)) is gm
        True
    """
    settings = _pass_settings(options)
    outlined = Outlined(tuple(_outlined_graphs(gm, set())))
    report = Report()
    trace = pipeline.Trace()
    compiled = pipeline.run(
        gm, (), settings, start=outlined, stages=(compile_stage,), observer=trace
    )
    report.graphs += graph_reports(compiled, trace)
    report.code.update(code_of(compiled))
    log_regions(report.graphs)
    stitch(compiled, settings)
    set_calling_convention(gm, settings)
    publish(report)
    if settings.region_backend == "inductor" and inductor.autograd_cache_forced():
        return inductor.regional_output_code(gm)  # type: ignore[no-any-return]
    return gm


def _outlined_graphs(module: torch.fx.GraphModule, seen: set[int]) -> list[OutlinedGraph]:
    """Region calls of a graph and of the graphs it holds, on copies of the graphs."""
    if id(module) in seen:
        return []
    seen.add(id(module))
    found = []
    calls = {
        str(n.target)
        for n in module.graph.nodes
        if n.op == "call_module"
        and isinstance(n.meta.get(REGION_META), RegionCall)
        and not n.meta[REGION_META].stitched
    }
    for node in module.graph.nodes:
        if node.op == "get_attr":
            body = ops.attribute(module, str(node.target))
            if isinstance(body, torch.fx.GraphModule):
                found += _outlined_graphs(body, seen)
    if calls:
        submodules: dict[str, torch.nn.Module] = {n: module.get_submodule(n) for n in calls}
        found.append(OutlinedGraph(module, copy_graph(module.graph), submodules))
    return found


def dynamo_backend(
    gm: torch.fx.GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend behind `torch.compile(model, backend="regional_inductor")`.

    Args:
        gm: The graph that Dynamo captured.
        example_inputs: Its fake inputs.
        mode: One of Inductor's modes, whose options become defaults for all regions.
        options: Options of ours (`on_error`, `merge`, `numerics`, `collectives`, `backward`) and
            Inductor's own, which are defaults for all regions.

    Returns:
        A callable for the graph.

    Raises:
        OptionError: An unknown option or a wrong value.
    """
    warn_of_lost_regions()
    settings = backend_settings(options, mode)
    if settings.region_backend == "inductor":
        workers.start_early()
    return compile_captured(gm, example_inputs, settings, Report())


def backend_settings(options: Mapping[str, Any] | None, mode: str | None = None) -> Settings:
    """Settings of the backend and of `compile`, which have Dynamo's guards and need no checks."""
    return replace(read_settings(options, mode=mode), guarded=False)


def compile_captured(
    gm: torch.fx.GraphModule,
    example_inputs: list[Any],
    settings: Settings,
    report: Report,
    stages: Stages = pipeline.STAGES,
    *,
    training: bool = False,
) -> Callable[..., Any]:
    """Take a graph that Dynamo captured through AOTAutograd and the pass.

    `stages` are the pass's own; `verify` and `bisect` put theirs between. `training` says that the
    backward graph will be asked for, as far as anybody knows.
    """
    take_over_surrounding_mark(gm)
    if settings.mark_graph is not None:
        settings.mark_graph(gm, report.findings)
    wanted = remember_marks(gm)
    capture = report.captures
    publish(report)
    place = None
    if stages is pipeline.STAGES:
        place = graph_store.place_of(gm, example_inputs, settings, wanted, report.findings)
    if place is not None:
        taken = place.taken(report, capture)
        if taken is not None:
            return taken
    outside = contextlib.nullcontext if not inductor.autograd_cache_forced() else inductor.tagged
    settings = replace(settings, trials=Trials(report.findings))
    recorder = Recorder(settings, report, len(example_inputs))
    chooser = RecomputationChooser(settings)
    partition = chooser.partition
    if stages is pipeline.STAGES and _is_compiled_early(settings, training):
        settings = replace(settings, early=EarlyBackward(settings))
        partition = settings.early.noting(partition)

    def compile_as(direction: Direction) -> Callable[..., Any]:
        def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
            if direction != "backward":
                report.findings += restore_marks(wanted, graph)

            def compile_with(settings: Settings) -> Any:
                with outside(None):
                    return run_pass(
                        graph,
                        inputs,
                        replace(settings, inference=direction == "inference"),
                        report,
                        capture=capture,
                        direction=direction,
                        stages=stages,
                    )

            with contextlib.ExitStack() as stack:
                stack.enter_context(dynamo.compiling_alone())
                if settings.early is not None:
                    stack.callback(settings.early.close)
                before = len(report.graphs)
                if settings.cudagraphs == "off":
                    compiled = compile_with(settings)
                else:
                    compiled = recorder.compile(graph, direction, compile_with)
                report.graphs[before:] = _with_early(
                    chooser.added_to(report.graphs[before:]), settings.early
                )
                if place is not None and direction == "inference":
                    return place.offered(compiled)
                return compiled

        return compile_graph

    forward = compile_as("forward")
    backend = dynamo.aot_backend(
        forward if place is None else aot_results.offering(forward),
        compile_as("backward"),
        compile_as("inference"),
        partition,
    )
    if place is not None:
        with dynamo.compiling_alone(), aot_results.results_offered(gm):
            compiled = backend(gm, example_inputs)
        place.keep(compiled, [g for g in report.graphs if g.capture == capture], report.findings)
        return compiled  # type: ignore[no-any-return]
    # The key of AOTAutograd's cache sees neither marks nor our settings; the tag makes it.
    selection = settings.selection or of_environment()
    # What is made for a file is never taken from that cache, which has no graphs of ours.
    only = uuid.uuid4() if settings.for_file else ""
    with outside(f"{wanted.digest()} {settings} {selection} {only}"):
        return backend(gm, example_inputs)  # type: ignore[no-any-return]
