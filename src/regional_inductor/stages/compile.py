"""compile: a callable for each distinct region, one compile for each key of the process."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch.fx.node import Node

from .. import progress
from .._torch import cudagraphs, direct, generated, inductor, trace
from .._torch.values import fake_mode_of, in_one_mode
from ..call_recording import record_call, recording_findings
from ..errors import RegionCompileError, RegionError, RegionWarning
from ..region_key import combined_key, environment_key, key_parts
from ..regions import (
    REGION_META,
    Compiled,
    CompiledGraph,
    CompiledRegion,
    Outlined,
    OutlinedGraph,
    RegionCall,
    Settings,
)
from ..timelimit import time_limit

_MEMORY_LIMIT = 4096
_memory: OrderedDict[str, Callable[..., Any]] = OrderedDict()
# Inductor's compile pipeline keeps its state in globals; one compile runs at a time.
_lock = threading.RLock()


def compile(outlined: Outlined, settings: Settings) -> Compiled:  # noqa: A001 - the stage's name
    """Compile each distinct region once.

    Args:
        outlined: Stitching graphs and region modules.
        settings: `region_backend`, options for all regions, and what to do when one fails.

    Returns:
        For each region call a `CompiledRegion`; one that stays eager says why.

    Raises:
        RegionCompileError: A region failed to compile, with `on_error="raise"`.
    """
    environment = environment_key()
    done: dict[str, CompiledRegion] = {}
    with progress.compiling():
        graphs = tuple(
            CompiledGraph(
                graph,
                {
                    node: _compile_call(node, graph, settings, environment, done)
                    for node in graph.graph.nodes
                    if _awaits_compilation(node)
                },
            )
            for graph in outlined.graphs
        )
    return Compiled(graphs, (*outlined.findings, *recording_findings(graphs, settings)))


def forget_compiled_regions() -> None:
    """Drop every compiled region of the process; graphs that hold some keep them."""
    with _lock:
        _memory.clear()


def _compile_call(
    node: Node,
    graph: OutlinedGraph,
    settings: Settings,
    environment: str,
    done: dict[str, CompiledRegion],
) -> CompiledRegion:
    """What one call becomes: a shared compiled region, recorded for this call site if asked."""
    call: RegionCall = node.meta[REGION_META]
    options = settings.options_of(call.mark)
    if settings.guarded or settings.region_backend != "inductor":
        return _compile_or_share(node, graph, options, settings, environment, done)
    if settings.cudagraphs == "graph" or not cudagraphs.is_asked_for(options):
        return _compile_or_share(node, graph, options, settings, environment, done)
    plain = {key: value for key, value in options.items() if key != "triton.cudagraphs"}
    with cudagraphs.no_recording_within():
        region = _compile_or_share(node, graph, plain, settings, environment, done)
    return record_call(region, node, _module_of(node, graph), options, settings)


def _compile_or_share(
    node: Node,
    graph: OutlinedGraph,
    options: dict[str, Any],
    settings: Settings,
    environment: str,
    done: dict[str, CompiledRegion],
) -> CompiledRegion:
    call: RegionCall = node.meta[REGION_META]
    module = _module_of(node, graph)
    reason = call.eager_reason or _unsupported(call, settings)
    if reason:
        return CompiledRegion("", None, "eager", reason, options=options)
    backend: str = settings.region_backend
    if backend == "inductor":
        backend = f"{inductor.backend_identity()} {_may_lower_directly(settings)}"
    parts = key_parts(module, options, backend=backend, environment=environment)
    key = combined_key(parts)
    if options.get("triton.cudagraphs"):
        key = f"{key}:{len(done)}"  # Inductor's own recording belongs to one call site
    with _lock:
        earlier = done.get(key)
        if earlier is not None:
            return replace(
                earlier,
                status="eager" if earlier.call is None else "shared",
                seconds=0.0,
                started=None,
                steps={},
            )
        done[key] = replace(_compile_key(key, module, options, call, settings), key_parts=parts)
        return done[key]


def _compile_key(
    key: str,
    module: torch.fx.GraphModule,
    options: dict[str, Any],
    call: RegionCall,
    settings: Settings,
) -> CompiledRegion:
    known = _memory.get(key)
    if known is not None:
        _memory.move_to_end(key)
        return CompiledRegion(key, known, "memory", options=options, boxed=_is_boxed(known))
    started = time.perf_counter()
    in_trace = trace.region(f"{call.submodule}_{call.direction}", module)
    try:
        with (
            progress.in_hand(call.name),
            in_trace,
            time_limit(call.mark.compile_timeout),
            generated.timed_steps() as steps,
        ):
            compiled = _BACKENDS[settings.region_backend](module, options, call, settings)
    except RegionError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a compiler may raise is this region's failure
        failed = _failed(error, key, call, settings, time.perf_counter() - started)
        return replace(failed, options=options, started=started)
    _memory[key] = compiled
    while len(_memory) > _MEMORY_LIMIT:
        _memory.popitem(last=False)
    seconds = time.perf_counter() - started
    return CompiledRegion(
        key,
        compiled,
        "compiled",
        seconds=seconds,
        options=options,
        boxed=_is_boxed(compiled),
        started=started,
        steps=steps.seconds,
    )


def _awaits_compilation(node: Node) -> bool:
    call = node.meta.get(REGION_META)
    return node.op == "call_module" and isinstance(call, RegionCall) and not call.stitched


def _module_of(node: Node, graph: OutlinedGraph) -> torch.fx.GraphModule:
    module = graph.submodules.get(str(node.target))
    if module is None:
        module = graph.module.get_submodule(str(node.target))
    assert isinstance(module, torch.fx.GraphModule)
    return module


def _unsupported(call: RegionCall, settings: Settings) -> str:
    if (call.mark.numerics or settings.numerics) == "eager":
        return 'numerics="eager": its operators run as they are, which is bit-equal to eager'
    return ""


def _may_lower_directly(settings: Settings) -> bool:
    """Whether regions of this run may take the direct way, where they are fit for it.

    What the drop-in pass returns can be pickled and serialised, which standalone artifacts can.
    Whoever patches `standalone_compile` wants to see every region.
    """
    if settings.lowering != "auto":
        return settings.lowering == "direct"
    return (
        not settings.guarded
        and inductor.backend_identity() == "inductor"
        and not inductor.autograd_cache_forced()
    )


def _is_boxed(compiled: Callable[..., Any]) -> bool:
    return bool(getattr(compiled, "_boxed_call", False)) and not isinstance(
        compiled, torch.fx.GraphModule
    )


def _inductor(
    module: torch.fx.GraphModule, options: dict[str, Any], call: RegionCall, settings: Settings
) -> Callable[..., Any]:
    values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    mode = fake_mode_of(values) or inductor.new_fake_mode()
    inputs = in_one_mode(values, mode)
    if _may_lower_directly(settings) and not direct.refusal(module, options):
        with contextlib.suppress(direct.DirectLoweringRefusedError):
            return direct.compile_direct(module, inputs, options, mode)
    trains = any(isinstance(v, torch.Tensor) and v.requires_grad for v in inputs)
    with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
        compiled: Callable[..., Any] = inductor.compile_standalone(module, inputs, options, mode)
    return compiled


def _eager(
    module: torch.fx.GraphModule, options: dict[str, Any], call: RegionCall, settings: Settings
) -> Callable[..., Any]:
    """Runs a region's own graph: partitioning, keys and stitching without a compiler."""
    return module


_BACKENDS = {"inductor": _inductor, "eager": _eager}


def _failed(
    error: Exception, key: str, call: RegionCall, settings: Settings, seconds: float
) -> CompiledRegion:
    first_line = next(iter(str(error).strip().splitlines()), "")
    what = f"Inductor could not compile the region: {type(error).__name__}: {first_line}"
    if settings.on_error == "raise":
        raise RegionCompileError(
            what,
            region=call.name,
            source=call.source,
            hint='on_error="eager" leaves such a region eager and compiles the rest; '
            "regional_inductor.eager() keeps code out of regions",
        ) from error
    failure = RegionCompileError(
        f"{what}; it stays eager",
        region=call.name,
        source=call.source,
        hint='on_error="raise" shows the whole error',
    )
    warnings.warn(RegionWarning(str(failure)), stacklevel=2)
    return CompiledRegion(key, None, "eager", what, seconds)
