"""Dynamo and AOTAutograd: building the backend, and what Dynamo says of frames it gave up on.

Checked on torch 2.11 and 2.13: `torch._dynamo.backends.common.aot_autograd`,
`torch._dynamo.utils.counters`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def aot_backend(
    forward: Callable[..., Any], backward: Callable[..., Any], inference: Callable[..., Any]
) -> Callable[..., Any]:
    """A Dynamo backend that hands functional forward and backward graphs to the compilers given."""
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(  # type: ignore[no-any-return]
        fw_compiler=forward,
        bw_compiler=backward,
        inference_compiler=inference,
        keep_inference_input_mutations=True,
    )


def graph_breaks() -> dict[str, int]:
    """Why Dynamo broke graphs so far, with counts."""
    from torch._dynamo.utils import counters

    return dict(counters["graph_break"])


def reset() -> None:
    torch._dynamo.reset()


_ESCAPED = "torch.fx.traceback.annotate escaped"
_watching = False
_escapes_seen = 0


def lost_regions() -> tuple[int, list[str]]:
    """Frames Dynamo gave up since the last call because of a graph break inside a marked region.

    Returns:
        How many, and the graph breaks that Dynamo counted so far (their first lines).
    """
    global _escapes_seen
    from torch._dynamo.utils import counters

    now = sum(n for reason, n in counters["unimplemented"].items() if _ESCAPED in reason)
    new, _escapes_seen = max(0, now - _escapes_seen), now
    return new, [reason.strip().splitlines()[0] for reason in counters["graph_break"]]


def watch_compiles(callback: Callable[[], None]) -> None:
    """Call back after each of Dynamo's compiles, those that it gave up included. Once a process."""
    global _watching
    if _watching:
        return
    _watching = True
    from torch._dynamo.callback import callback_handler

    callback_handler.register_end_callback(lambda *_: callback())
