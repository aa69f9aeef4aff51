"""torch's structured trace (TORCH_TRACE), which tlparse turns into pages.

Checked on torch 2.11 and 2.13: `torch._logging._internal.trace_structured` and `.trace_log`, and the `metadata` and `payload` of its records. From 2.13 on
`torch.fx.traceback._set_regional_inductor_subgraph_name` puts a name into every record that is
emitted in its scope; tlparse 0.4.3, the newest release, passes over that field, so each region's
graph and code are emitted as artifacts of the region's name besides.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator

import torch.fx
import torch.fx.traceback
from torch._logging._internal import trace_log, trace_structured


def is_on() -> bool:
    """Whether anybody may be listening: torch finds out for certain at its first record."""
    return bool(trace_log.handlers)


def emit_text(name: str, text: Callable[[], str]) -> None:
    """Add a text to the trace; it is made only if somebody listens."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=text,
        expect_trace_id=False,  # the drop-in pass runs outside Dynamo's frames too
    )


@contextlib.contextmanager
def region(name: str, module: torch.fx.GraphModule) -> Iterator[None]:
    """What is compiled inside shows in the trace as a region's.

    Args:
        name: What to call it there.
        module: Its graph, which is put into the trace.
    """
    if not is_on():
        yield
        return
    file_name = f"region_{re.sub(r'[^0-9A-Za-z_]', '_', name)}"
    emit_text(
        f"{file_name}_graph",
        lambda: module.print_readable(print_output=False, include_stride=True, include_device=True),
    )
    listener = _CodeListener()
    trace_log.addHandler(listener)
    try:
        with _named(name):
            yield
    finally:
        trace_log.removeHandler(listener)
    for code in listener.codes:
        emit_text(f"{file_name}_code", lambda code=code: code)  # type: ignore[misc]


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    set_name = getattr(torch.fx.traceback, "_set_regional_inductor_subgraph_name", None)
    if set_name is None:  # before torch 2.13
        yield
    else:
        with set_name(name):
            yield


class _CodeListener(logging.Handler):
    """Keeps the code that Inductor puts into the trace from this thread, compiled or from its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        metadata = getattr(record, "metadata", {})
        payload = getattr(record, "payload", None)
        if record.thread == self._thread and "inductor_output_code" in metadata and payload:
            self.codes.append(payload)
