"""A model compiled for one run, whole or by its blocks, of which nothing stays in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ._torch import capture
from .block_capture import BlockCapture, CompileGraph, blocks_of, capture_in_place
from .errors import OptionError
from .originals import call_of
from .regions import Finding


@contextmanager
def compiled_form(
    function: Any,
    compile_graph: CompileGraph,
    findings: list[Finding],
    *,
    blocks: bool,
    dynamic: bool | None,
    marks_more: bool = False,
) -> Iterator[Callable[..., Any]]:
    """A compiled form of a model or function; what is in place may be taken off between its calls.

    Args:
        function: The uncompiled original.
        compile_graph: What compiles a captured graph.
        findings: Where to put what is worth knowing of marks outside the blocks.
        blocks: Whether to capture its blocks instead of the whole.
        dynamic: As for `torch.compile`.
        marks_more: Whether `compile_graph` marks what isn't marked yet.
    """
    if not blocks:
        yield capture.compile_with(call_of(function), compile_graph, dynamic)
        return
    layout = blocks_of(function)
    trial = BlockCapture(
        function, layout, compile_graph, findings, dynamic=dynamic, marks_more=marks_more
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        trial.install()
        return function(*args, **kwargs)

    try:
        yield call
    finally:
        trial.remove()


def captures_blocks(model_or_fn: Any, asked: str | None) -> bool:
    """Whether a dry run or a trial goes by blocks: as asked, else as a model was compiled.

    Raises:
        OptionError: Something else was asked for, or blocks of what has none.
    """
    if asked not in (None, "blocks", "model"):
        raise OptionError(f"capture={asked!r} is not a choice", hint="one of 'blocks', 'model'")
    if asked is not None:
        return asked == "blocks" and bool(blocks_of(capture.uncompiled(model_or_fn)).kinds)
    return isinstance(model_or_fn, torch.nn.Module) and capture_in_place(model_or_fn) is not None
