"""compile: a callable for each distinct region, one compile for each key of the process.

What every call of every graph asks for is known first. Memory is asked next, then the store on disk; what
neither has is compiled in one batch, and each call gets its share.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch.fx.node import Node

from .. import progress
from .._torch import cudagraphs, dynamo, generated, trace, whole_libraries, workers
from .._torch.affine_strides import quick_strides
from .._torch.fx import is_boxed
from .._torch.kernel_batches import KernelBatch, RegionKernels, kernel_batch
from ..cache import memory
from ..call_recording import record_call, recording_findings
from ..errors import RegionCompileError, RegionError, RegionWarning
from ..exactness import NotEqualToEagerError, check_equal_to_eager
from ..region_backends import BACKENDS as _BACKENDS
from ..region_backends import is_exact, lock, may_share_a_compiler_run
from ..region_requests import RegionRequest, requests_of
from ..region_store import loaded_or_compiled
from ..regions import Compiled, CompiledGraph, CompiledRegion, Finding, Outlined, Settings
from ..timelimit import MORE_TIME, TimeLimitError, time_limit


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
    requests = list(requests_of(outlined, settings))
    with lock:
        regions = _regions_by_key(requests, settings)
    served = _served(requests, regions, settings)
    graphs = tuple(
        CompiledGraph(graph, {r.node: served[r.node] for r in requests if r.graph is graph})
        for graph in outlined.graphs
    )
    return Compiled(graphs, (*outlined.findings, *recording_findings(graphs, settings)))


def forget_compiled_regions() -> None:
    """Drop every compiled region of the process; graphs that hold some keep them."""
    memory.clear()


def _regions_by_key(
    requests: Sequence[RegionRequest], settings: Settings
) -> dict[str, CompiledRegion]:
    """For each key, from memory, from disk or compiled; the first call that asks for it speaks for all."""
    first: dict[str, RegionRequest] = {}
    for request in requests:
        if request.key:
            first.setdefault(request.key, request)
    found: dict[str, CompiledRegion] = {}
    for key, request in first.items():
        made = None if settings.early is None else settings.early.taken(key)
        if made is not None:
            found[key] = made
            continue
        known = None if request.unshared else memory.get(key)
        if known is not None:
            found[key] = CompiledRegion(
                key, known, "memory", options=request.options, boxed=is_boxed(known)
            )
    missing = [request for key, request in first.items() if key not in found]
    if missing:
        early = _early_requests(settings, first)
        missing += early
        found |= loaded_or_compiled(missing, settings, partial(_compile_batch, settings=settings))
        if early:
            settings.early.keep(found.pop(request.key) for request in early)
    return {
        key: replace(region, key_parts=first[key].key_parts or {}) for key, region in found.items()
    }


def _early_requests(settings: Settings, first: Mapping[str, RegionRequest]) -> list[RegionRequest]:
    """What the backward graph will ask for that nobody has yet.

    Asked only when something is to be compiled anyway: else there is nothing to share.
    """
    if settings.early is None:
        return []
    return [
        request
        for request in settings.early.requests()
        if request.key not in first and memory.get(request.key) is None
    ]


def _served(
    requests: Sequence[RegionRequest], regions: Mapping[str, CompiledRegion], settings: Settings
) -> dict[Node, CompiledRegion]:
    """What each call becomes: a compiled region, shared by later calls, recorded if asked."""
    served: dict[Node, CompiledRegion] = {}
    met: set[str] = set()
    for request in requests:
        if request.reason:
            region = CompiledRegion("", None, "eager", request.reason, options=request.options)
        else:
            region = regions[request.key]
            if request.key in met:
                region = _shared(region)
            met.add(request.key)
        if request.recorded:
            region = record_call(region, request.node, request.module, request.asked, settings)
        served[request.node] = region
    return served


def _shared(region: CompiledRegion) -> CompiledRegion:
    """A region as the later calls of one compile see it."""
    return replace(
        region,
        status="eager" if region.call is None else "shared",
        seconds=0.0,
        started=None,
        steps={},
    )


def _compile_batch(
    requests: Sequence[RegionRequest], settings: Settings
) -> dict[str, CompiledRegion]:
    """Compile distinct regions; the failure of one is its own.

    All are lowered before the first waits for its kernels: by then these compile together.
    """
    workers.renew_broken_pools()  # one that died meanwhile would fail each region that needs it
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress.compiling(len(requests)))
        if settings.region_backend == "inductor":
            stack.enter_context(whole_libraries.mending())
            stack.enter_context(workers.dead_pools_given_up())
            stack.enter_context(quick_strides())
        batch = stack.enter_context(kernel_batch())
        lowered = [_lower(request, settings, batch) for request in requests]
        started = time.perf_counter()
        waiting = [one for one in lowered if one.kernels is not None and one.kernels.waits]
        if waiting:
            what = f"compilers, {len(waiting)} region" + ("s" if len(waiting) > 1 else "")
            with progress.in_hand(what, len(waiting)) as step:
                step.waiting = -len(waiting)
                batch.build()
        share = (time.perf_counter() - started) / max(len(waiting), 1)
        return {one.request.key: _finish(one, settings, share) for one in lowered}


@dataclass
class _Lowered:
    """A region on its way through a batch: what it is so far, or why it failed."""

    request: RegionRequest
    started: float
    compiled: Callable[..., Any] | None = None
    failure: BaseException | None = None
    kernels: RegionKernels | None = None
    seconds: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)


def _lower(request: RegionRequest, settings: Settings, batch: KernelBatch | None) -> _Lowered:
    """Compile a region, but for the kernels that its batch compiles; all of it where there is none."""
    call = request.call
    unrecorded = cudagraphs.no_recording_within if request.recorded else contextlib.nullcontext
    lowered = _Lowered(request, time.perf_counter())
    if batch is None or not may_share_a_compiler_run(call, settings):
        own_kernels: contextlib.AbstractContextManager[RegionKernels | None] = (
            contextlib.nullcontext()
        )
    else:
        own_kernels = batch.region(request.options)
    with contextlib.ExitStack() as stack:
        step = stack.enter_context(progress.in_hand(call.name))
        stack.enter_context(trace.region(f"{call.submodule}_{call.direction}", request.module))
        try:
            with (
                _switches_of(request),
                unrecorded(),
                time_limit(call.mark.compile_timeout),
                generated.timed_steps() as steps,
                own_kernels as kernels,
            ):
                lowered.compiled = _BACKENDS[settings.region_backend](
                    request.module, request.options, call, settings
                )
            lowered.kernels, lowered.steps = kernels, steps.seconds
            if kernels is not None and kernels.waits:
                step.done, step.waiting = 0, 1
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # whatever else a compiler raises is this region's failure
            if isinstance(error, RegionError) and not request.early:
                raise
            if _restarts_capture(error, request, settings):
                raise
            lowered.failure = error
            workers.renew_broken_pools()  # for the next region
    lowered.seconds = time.perf_counter() - lowered.started
    return lowered


def _finish(lowered: _Lowered, settings: Settings, share: float) -> CompiledRegion:
    """The region with its kernels; `share` is its part of the seconds that they took together."""
    request, kernels = lowered.request, lowered.kernels
    if kernels is not None and kernels.waits:
        started = time.perf_counter()
        try:
            kernels.finish()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever else a compiler raises is this region's failure
            if kernels.has_workers:
                # A worker process that dies takes the work of other regions with it.
                workers.renew_broken_pools()
                return _finish(_lower(request, settings, None), settings, 0.0)
            lowered.failure = error
        spent = share + time.perf_counter() - started
        lowered.seconds += spent
        lowered.steps["compile"] = lowered.steps.get("compile", 0.0) + spent
    if (
        lowered.compiled is not None
        and lowered.failure is None
        and is_exact(request.call, settings)
    ):
        try:
            with _switches_of(request):
                check_equal_to_eager(
                    request.module, lowered.compiled, boxed=is_boxed(lowered.compiled)
                )
        except NotEqualToEagerError as unequal:
            return _left_eager(str(unequal), request, lowered)
        except Exception as error:  # noqa: BLE001 - a region that fails on trial is one that fails
            lowered.failure = error
    if lowered.failure is not None:
        return _failed(lowered.failure, request, settings, lowered.started, lowered.seconds)
    assert lowered.compiled is not None
    if not request.unshared:
        memory.put(request.key, lowered.compiled)
    return CompiledRegion(
        request.key,
        lowered.compiled,
        "compiled",
        seconds=lowered.seconds,
        options=request.options,
        boxed=is_boxed(lowered.compiled),
        started=lowered.started,
        steps=lowered.steps,
    )


def _switches_of(request: RegionRequest) -> contextlib.AbstractContextManager[None]:
    """Torch's switches as they are where a region's graph is compiled, which its key says."""
    return dynamo.as_in_backward() if request.early else contextlib.nullcontext()


def _left_eager(reason: str, request: RegionRequest, lowered: _Lowered) -> CompiledRegion:
    """A region with numerics="eager" that compiled and gave other bits on the machine at hand."""
    reason = f'numerics="eager": {reason}'
    finding = Finding(
        "fallback", f"{reason}; it stays eager", request.call.source, _UNEQUAL, request.call.name
    )
    if not request.early:
        warnings.warn(RegionWarning(finding.text), stacklevel=2)
    return CompiledRegion(
        request.key,
        None,
        "eager",
        reason,
        lowered.seconds,
        options=request.options,
        started=lowered.started,
    )


_UNEQUAL = "nothing is wrong with your code: please report the operators, your processor and torch"


def _restarts_capture(error: BaseException, request: RegionRequest, settings: Settings) -> bool:
    """Whether Dynamo wants to hear of an error: it captures again, with a float made constant, say.

    It is there to hear while the registered backend compiles a forward graph; a backward graph may be
    compiled long after the capture.
    """
    waits = not settings.guarded and request.call.direction != "backward"
    return waits and dynamo.is_restart(error)


def _failed(
    error: BaseException, request: RegionRequest, settings: Settings, started: float, seconds: float
) -> CompiledRegion:
    first_line = next(iter(str(error).strip().splitlines()), "")
    what = f"Inductor could not compile the region: {type(error).__name__}: {first_line}"
    call = request.call
    eager = CompiledRegion(
        request.key, None, "eager", what, seconds, options=request.options, started=started
    )
    if request.early:  # its graph tries again, and says it then
        return eager
    if settings.on_error == "raise":
        raise RegionCompileError(
            what,
            region=call.name,
            source=call.source,
            hint='on_error="eager" leaves such a region eager and compiles the rest; '
            "`regional-inductor bisect SCRIPT_OR_MODULE:FACTORY` reduces it to a script of its own; "
            "regional_inductor.eager() keeps code out of regions",
        ) from error
    failure = RegionCompileError(
        f"{what}; it stays eager",
        region=call.name,
        source=call.source,
        hint=MORE_TIME
        if isinstance(error, TimeLimitError)
        else 'on_error="raise" shows the whole error',
    )
    warnings.warn(RegionWarning(str(failure)), stacklevel=2)
    return eager
