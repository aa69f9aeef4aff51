"""Dynamo and AOTAutograd: building the backend, and what Dynamo says of frames it gave up on.

Checked on torch 2.11 and 2.13: `torch._dynamo.backends.common.aot_autograd`,
`torch._dynamo.utils.counters`, `torch._C._DisableAutocast`, `torch._dynamo.exc.RestartAnalysis` (that one on 2.13 only). On 2.12 too:
`convert_frame.compile_lock`, and that `torch.compile` binds `fx._symbolic_trace.is_fx_symbolic_tracing`
to what it makes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .frames import is_within
from .versions import is_one_of

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))

_registering = threading.Lock()
_patching = threading.Lock()


def aot_backend(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inference: Callable[..., Any],
    partition: Callable[..., Any],
) -> Callable[..., Any]:
    """A Dynamo backend that hands functional forward and backward graphs to the compilers given.

    `partition` cuts AOTAutograd's joint graph into these two.
    """
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        inference_compiler=inference,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )


@contextlib.contextmanager
def as_in_backward() -> Iterator[None]:
    """Torch's switches as they are where autograd has a backward graph compiled."""
    import torch

    with torch.no_grad(), torch._C._DisableAutocast():
        yield


@contextlib.contextmanager
def own_traces_only() -> Iterator[None]:
    """Let what `torch.compile` makes inside refuse to be traced by FX in its own thread only.

    AOTAutograd traces with FX, which torch notes for the whole process: a compiled model that another
    thread calls meanwhile would raise.
    """
    from torch.fx import _symbolic_trace as tracing

    if not is_one_of(CHECKED_VERSIONS):
        yield
        return
    usual = tracing.is_fx_symbolic_tracing

    def is_fx_symbolic_tracing() -> bool:
        return usual() and is_within(tracing.Tracer.trace)

    with _patching:
        tracing.is_fx_symbolic_tracing = is_fx_symbolic_tracing
        try:
            yield
        finally:
            tracing.is_fx_symbolic_tracing = usual


@contextlib.contextmanager
def compiling_alone() -> Iterator[None]:
    """Keep other threads from capturing and compiling; Dynamo itself does so for forward graphs only.

    FX's tracer patches `nn.Module` for the whole process, so that two traces at once break each other.
    """
    # A thread of autograd's own must not wait: who holds the lock may wait for gradients from it.
    is_python = not isinstance(threading.current_thread(), threading._DummyThread)
    if not is_python or not is_one_of(CHECKED_VERSIONS):
        yield
        return
    from torch._dynamo.convert_frame import compile_lock

    with compile_lock:
        yield


def is_backend_failure(error: BaseException) -> bool:
    """Whether an error is what Dynamo puts around whatever a backend raised."""
    exceptions = sys.modules.get("torch._dynamo.exc")
    kind = getattr(exceptions, "BackendCompilerFailed", None)
    return kind is not None and isinstance(error, kind)


def is_restart(error: BaseException) -> bool:
    """Whether an error is Dynamo's own: it asks for another capture, having learnt something."""
    exceptions = sys.modules.get("torch._dynamo.exc")
    restart = getattr(exceptions, "RestartAnalysis", None)
    return restart is not None and isinstance(error, restart)


def graph_breaks() -> dict[str, int]:
    """Why Dynamo broke graphs so far, with counts."""
    from torch._dynamo.utils import counters

    return dict(counters["graph_break"])


_ESCAPED = "torch.fx.traceback.annotate escaped"
_watching = False
_escapes_seen = 0
_breaks_seen: dict[str, int] = {}
_escaped_annotations: list[tuple[Any, str]] = []


def lost_regions() -> tuple[int, list[str], list[tuple[Any, str]]]:
    """Frames Dynamo gave up since the last call because of a graph break inside a marked region.

    Returns:
        How many; the graph breaks that Dynamo counted since then (their first lines); and the
        annotations that were open at the breaks, each with the line that broke, where this version
        of torch lets us see them.
    """
    global _escapes_seen, _breaks_seen
    from torch._dynamo.utils import counters

    now = sum(n for reason, n in counters["unimplemented"].items() if _ESCAPED in reason)
    new, _escapes_seen = max(0, now - _escapes_seen), now
    before, _breaks_seen = _breaks_seen, graph_breaks()
    breaks = [reason for reason, n in _breaks_seen.items() if n > before.get(reason, 0)]
    annotations = list(_escaped_annotations)
    _escaped_annotations.clear()
    return new, [reason.strip().splitlines()[0] for reason in breaks], annotations


def watch_escapes() -> None:
    """Take down the annotations that Dynamo can't carry over a graph break, as it finds out."""
    global _watching
    from torch._dynamo.variables.ctx_manager import FxTracebackAnnotateVariable

    if _watching:
        return
    _watching = True
    reconstruct: Any = getattr(FxTracebackAnnotateVariable, "reconstruct_type", None)
    if reconstruct is None:
        return

    def reconstruct_type(self: Any, codegen: Any) -> None:
        _escaped_annotations.append((getattr(self, "target_values", None), _line(codegen)))
        reconstruct(self, codegen)

    FxTracebackAnnotateVariable.reconstruct_type = reconstruct_type  # type: ignore[method-assign]


def _line(codegen: Any) -> str:
    try:
        frame = codegen.tx.frame_summary()
    except AttributeError:
        return ""
    return f"{frame.filename}:{frame.lineno}"


def watch_compiles(callback: Callable[[], None]) -> None:
    """Call back after each of Dynamo's compiles, those that it gave up included.

    `torch._dynamo.reset` forgets callbacks, so this is asked for again at each compile of ours.
    """
    # Waits for a thread that is importing it; the import of a module in it would not. Two that start at
    # different ones of its modules, which import each other, find each other's half done.
    import torch._dynamo  # noqa: F401

    with _registering:
        from torch._dynamo.callback import callback_handler

        watch_escapes()
        end = _end_callbacks.setdefault(callback, lambda *_: callback())
        if end not in callback_handler.end_callbacks:
            callback_handler.register_end_callback(end)


_end_callbacks: dict[Callable[[], None], Callable[..., None]] = {}
