"""Dynamo and AOTAutograd: building the backend, and what Dynamo says of frames it gave up on.

Checked on torch 2.11 and 2.13: `torch._dynamo.backends.common.aot_autograd`,
`torch._dynamo.utils.counters`, `torch._dynamo.exc.RestartAnalysis` (that one on 2.13 only).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


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
_escaped_annotations: list[tuple[Any, str]] = []


def lost_regions() -> tuple[int, list[str], list[tuple[Any, str]]]:
    """Frames Dynamo gave up since the last call because of a graph break inside a marked region.

    Returns:
        How many; the graph breaks that Dynamo counted so far (their first lines); and the
        annotations that were open at the breaks, each with the line that broke, where this version
        of torch lets us see them.
    """
    global _escapes_seen
    from torch._dynamo.utils import counters

    now = sum(n for reason, n in counters["unimplemented"].items() if _ESCAPED in reason)
    new, _escapes_seen = max(0, now - _escapes_seen), now
    annotations = list(_escaped_annotations)
    _escaped_annotations.clear()
    return new, [reason.strip().splitlines()[0] for reason in counters["graph_break"]], annotations


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
    from torch._dynamo.callback import callback_handler

    watch_escapes()
    end = _end_callbacks.setdefault(callback, lambda *_: callback())
    if end not in callback_handler.end_callbacks:
        callback_handler.register_end_callback(end)


_end_callbacks: dict[Callable[[], None], Callable[..., None]] = {}
