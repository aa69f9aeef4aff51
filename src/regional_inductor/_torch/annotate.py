"""How a mark gets into a graph: `torch.fx.traceback.annotate`, and numbers that Dynamo draws afresh.

Checked on torch 2.11.0 and 2.13.0.

Private uses: the attribute behind `torch.compiler.assume_constant_result` (setting it directly keeps
Dynamo from being imported); the current translator's output graph, to clean up after that feature;
`torch._C._len_torch_dispatch_stack`, to ask cheaply whether anything is being captured;
`torch._C._get_dispatch_mode` and its keys, to ask whether this thread is what is captured.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import traceback
from torch.fx.traceback import annotate as annotate
from torch.fx.traceback import has_preserved_node_meta

from .frames import is_within

_ENTRIES = itertools.count(1)
_CLEANED = threading.local()
_OWN = threading.local()


def next_entry() -> int:
    """A number that no other entry of a marked scope in this process has."""
    return next(_ENTRIES)


def regional_inductor_entry() -> int:
    """The same while Dynamo traces: it runs this function and takes the result for a constant.

    No guard comes of that, so the number is drawn once for each entry in a trace and never again
    until the next one.  Dynamo stores such a constant as `<this function's name>_<n>` in the globals
    of the module whose code it traces, which is the user's: hence the telling name and the clean-up.
    """
    _forget_constants_after_tracing()
    return next(_ENTRIES)


regional_inductor_entry._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_captured() -> bool:
    """Whether this thread's code is being captured, outside Dynamo, with annotations or by an export.

    Torch notes both for the whole process: another thread's capture is none of this one's.
    """
    return (has_preserved_node_meta() or torch.compiler.is_exporting()) and _is_traced()


def records_annotations() -> bool:
    """Whether this thread's code is being captured with annotations."""
    return has_preserved_node_meta() and _is_traced()


def _is_traced() -> bool:
    keys = torch._C._TorchDispatchModeKey
    if torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(key) is not None
        for key in (keys.PROXY, keys.FUNCTIONAL, keys.FAKE)
    ):
        return True
    from torch.fx._symbolic_trace import Tracer

    return is_within(Tracer.trace)


def capture_that_drops_marks() -> str:
    """The kind of capture that is running and loses annotations, or an empty string."""
    if records_annotations():
        return ""
    if torch.compiler.is_exporting() and _is_traced():
        return "torch.export"
    if torch._C._len_torch_dispatch_stack() > 0:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        if get_proxy_mode() is not None:
            return "make_fx"
    return ""


def surrounding_annotation() -> dict[str, Any]:
    """What the code that runs now was annotated with, outside of any trace."""
    custom = dict(_torchs_annotation())
    for key in getattr(_OWN, "values", {}):
        custom[key] = annotated_value(key, None)
    return custom


def annotated_value(key: str, default: Any) -> Any:
    """What the code that runs now was annotated with under a key; asked at each call of a block."""
    value = _torchs_annotation().get(key, default)
    own: tuple[Any, Any] | None = getattr(_OWN, "values", {}).get(key)
    if own is None:
        return value
    mine, around = own
    # What torch has under the key was there before, or was entered inside.
    return mine if value is default or value is around else value


def _torchs_annotation() -> dict[str, Any]:
    if has_preserved_node_meta() and not _is_traced():
        return {}  # that of the node which another thread traces
    custom = traceback.current_meta.get("custom")  # torch binds it anew
    return custom if isinstance(custom, dict) else {}


@contextmanager
def annotate_this_thread(annotation: dict[str, Any]) -> Iterator[None]:
    """The same as `annotate` for code that runs and isn't captured.

    `annotate` writes to what all threads read: one that captures meanwhile would mark its graph with it,
    and threads that enter and leave out of order would leave marks behind.
    """
    before: dict[str, tuple[Any, Any]] = getattr(_OWN, "values", {})
    around = _torchs_annotation()
    _OWN.values = {
        **before,
        **{key: (value, around.get(key)) for key, value in annotation.items()},
    }
    try:
        yield
    finally:
        _OWN.values = before


@contextmanager
def annotated_as(surrounding: dict[str, Any]) -> Iterator[None]:
    """Run code of this thread under what :func:`surrounding_annotation` gave elsewhere, and nothing else."""
    before: dict[str, tuple[Any, Any]] = getattr(_OWN, "values", {})
    around = _torchs_annotation()
    _OWN.values = {key: (value, around.get(key)) for key, value in surrounding.items()}
    try:
        yield
    finally:
        _OWN.values = before


def _forget_constants_after_tracing() -> None:
    translator_module = sys.modules.get("torch._dynamo.symbolic_convert")
    if translator_module is None:
        return
    try:
        output = translator_module.InstructionTranslator.current_tx().output
        scope, add_cleanup_hook = output.global_scope, output.add_cleanup_hook
    except AttributeError:  # not called by Dynamo, or by one that is organised differently
        return
    last: weakref.ref[Any] | None = getattr(_CLEANED, "output", None)
    if last is not None and last() is output:
        return
    _CLEANED.output = weakref.ref(output)
    add_cleanup_hook(lambda: _forget_constants(scope))


def _forget_constants(scope: dict[str, Any]) -> None:
    name = regional_inductor_entry.__name__
    for key in [key for key in scope if key.startswith(name) and type(scope[key]) is int]:
        del scope[key]


def run_as_python(*functions: Any) -> None:
    """Keep Dynamo from compiling functions of this package as frames of their own.

    When Dynamo gives up the user's frame (a graph break inside a region), it looks at each function
    that frame calls as if it were the start of a new one. Ours would then believe that they are being
    traced. Tracing them as part of the user's code isn't affected.
    """
    from torch._C._dynamo.eval_frame import (
        _FrameAction,
        _FrameExecStrategy,
        set_code_exec_strategy,
    )

    for function in functions:
        set_code_exec_strategy(
            function.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
        )


def own_code(wrapper: Any, function: Any) -> None:
    """Give a wrapper a code object that it shares with wrappers of the same function only.

    Dynamo remembers by code object which frames it gave up. Wrappers made by one `def` share
    theirs, and a graph break inside one marked function would switch off all others. Those of one
    function go on sharing: what Dynamo compiled for one block serves the next.
    """
    inner = inspect.unwrap(function)
    key = (wrapper.__code__, getattr(inner, "__code__", None) or id(inner))
    wrapper.__code__ = _CODES.setdefault(key, wrapper.__code__.replace())


_CODES: dict[Any, types.CodeType] = {}
