"""Marked scopes: ``region()`` and ``eager()``, and the wrapper that marks a function's calls.

While Dynamo traces, everything here has to come down to ``torch.fx.traceback.annotate``: Dynamo
traces a plain function that returns it, and no class of our own with an ``__enter__``.  In code that
runs eagerly nothing is entered at all unless a graph is being captured, because ``annotate`` writes
to one process-wide dict, where threads that enter and leave out of order leave marks behind.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, overload

import torch

from . import running
from ._torch.annotate import (
    annotate,
    annotate_this_thread,
    capture_that_drops_marks,
    next_entry,
    own_code,
    records_annotations,
    regional_inductor_entry,
    run_as_python,
)
from .errors import MarkError, warn
from .options import MARK_KEY, Collectives, Numerics, carried, parse_mark

__all__ = ["eager", "region"]

Value = dict[str, Any]
_T = TypeVar("_T")
_C = TypeVar("_C", bound=Callable[..., Any])

_SWITCH = "_regional_inductor_switch"
_PACKAGE_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
_DEMO = _PACKAGE_FOLDER + "demo_worker.py"  # marks a model as any user does
_LOST_CAPTURES: set[str] = set()  # kinds of capture for which the warning was given


@overload
def region(name: _C, /) -> _C: ...
@overload
def region(
    name: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    id: Hashable = None,
    numerics: Numerics | None = None,
    compile_timeout: float | None = None,
    collectives: Collectives | None = None,
) -> Scope: ...
def region(
    name: Any = None,
    *,
    options: Mapping[str, Any] | None = None,
    id: Hashable = None,
    numerics: Numerics | None = None,
    compile_timeout: float | None = None,
    collectives: Collectives | None = None,
) -> Any:
    """Mark code as a region to be compiled: a decorator, bare or called, and a context manager.

    All three forms also work inside code that Dynamo traces, with ``fullgraph=True`` too.  Under a
    backend that doesn't know regions (plain eager, ``aot_eager``, full Inductor) a mark has no
    effect.  The innermost mark wins.

    As a decorator it takes a function, a method (below or above ``@staticmethod`` and
    ``@classmethod``) or a subclass of ``torch.nn.Module``, whose ``forward`` it then marks.  Each
    call is one entry of the scope: what one call produces is one region, connected or not.

    A context manager is written where it is used, ``with ri.region(...):``.  Dynamo can't enter one
    that was made outside the code it traces.

    Args:
        name: A label for reports and messages.  A decorator's default is the function's
            ``__qualname__``.  It never joins regions and may recur.
        options: Inductor's options for this region, such as ``{"max_autotune": True}``; checked
            here if Inductor is imported already, else when the graph is compiled.
        id: Any hashable value, best a string or a number.  Regions with equal ids and equal
            options are compiled as one where the order of the graph allows it.
        numerics: ``"eager"`` asks for results that equal eager's bit for bit, ``"default"`` doesn't;
            ``None`` leaves it to the backend.
        compile_timeout: Seconds after which compiling this region is given up: its compiler processes
            and Inductor's workers end at once (on Linux), lowering ends at its next Python step.
        collectives: ``"include"`` lets collectives into the region, ``"exclude"`` doesn't; ``None``
            leaves it to the backend.

    Returns:
        The marked function or class for ``@region``; else an object that is decorator and context
        manager, and can be used any number of times.

    Raises:
        MarkError: Not a function (a generator or coroutine function, a module instance), a name
            that is no string, an id that can't be hashed.
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.

    Example:
        >>> import torch
        >>> import regional_inductor as ri
        >>> @ri.region
        ... def swiglu(gate, up):
        ...     return torch.nn.functional.silu(gate) * up
        >>> @ri.region("norm", options={"max_autotune": True})
        ... def norm(x):
        ...     return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        >>> def block(x):
        ...     with ri.region("scale"):
        ...         y = x * 2 + 1
        ...     return swiglu(norm(y), y)
        >>> block(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """
    if torch.compiler.is_dynamo_compiling():
        # Dynamo traces from here on: plain dicts and functions only.  Mistakes are found when the
        # marks are collected, since an exception raised here would surface as Dynamo's Unsupported.
        if callable(name):
            return mark_calls(
                name, {"name": name.__qualname__, "scope": f"code:{name.__qualname__}"}
            )
        return annotate(
            {
                MARK_KEY: {
                    **make_value(name, options, id, numerics, compile_timeout, collectives),
                    "entry": regional_inductor_entry(),
                }
            }
        )
    bare = name is not None and not isinstance(name, str) and _is_markable(name)
    value = make_value(None if bare else name, options, id, numerics, compile_timeout, collectives)
    source = caller_line()
    scope = Scope(checked(value, source), source)
    return scope(name) if bare else scope


@overload
def eager(function: _C, /) -> _C: ...
@overload
def eager() -> Scope: ...
def eager(function: Any = None, /) -> Any:
    """Keep code out of regions: the opposite of :func:`region`, with the same forms.

    Inside a region, what is produced under ``eager`` runs eagerly, as if it were unmarked.  The
    innermost mark wins, so a region inside ``eager`` is compiled again.

    Args:
        function: What to mark when it is used as a bare decorator, ``@ri.eager``.

    Returns:
        The marked function or class for ``@eager``; for ``eager()`` an object that is decorator and
        context manager.

    Raises:
        MarkError: Not a function, as for :func:`region`.

    Example:
        >>> import torch
        >>> import regional_inductor as ri
        >>> @ri.region
        ... def mlp(x):
        ...     with ri.eager():
        ...         scale = x.abs().amax()
        ...     return x / scale
        >>> mlp(torch.tensor([1.0, -2.0]))
        tensor([ 0.5000, -1.0000])
    """
    if torch.compiler.is_dynamo_compiling():
        if callable(function):
            return mark_calls(function, {"eager": True})
        return annotate({MARK_KEY: {"eager": True, "entry": regional_inductor_entry()}})
    scope = Scope({"eager": True}, caller_line())
    return scope if function is None else scope(function)


class Scope:
    """What ``region(...)`` and ``eager()`` return in eager code: decorator and context manager."""

    def __init__(self, value: Value, source: str) -> None:
        self._value = value
        self._source = source
        self._entered = threading.local()

    def __call__(self, marked: _T) -> _T:
        decorated: _T = _decorate(marked, self._value, self._source)
        return decorated

    def __enter__(self) -> None:
        entered: AbstractContextManager[None] | None = None
        if marks_are_recorded(self._value):
            entered = annotate({MARK_KEY: {**self._value, "entry": next_entry()}})
        elif running.current(self._value.get("name") or "") is not None:
            # Blocks that are called inside take the mark over; what else is inside can't be compiled.
            entered = annotate_this_thread({MARK_KEY: {**self._value, "entry": next_entry()}})
        if entered is not None:
            entered.__enter__()
        self._stack().append(entered)

    def __exit__(self, *error: Any) -> None:
        entered = self._stack().pop()
        if entered is not None:
            entered.__exit__(*error)

    def _stack(self) -> list[AbstractContextManager[None] | None]:
        if not hasattr(self._entered, "stack"):
            self._entered.stack = []
        stack: list[AbstractContextManager[None] | None] = self._entered.stack
        return stack

    def __repr__(self) -> str:
        if self._value.get("eager"):
            return "regional_inductor.eager()"
        return f"regional_inductor.region({self._value.get('name')!r})"


def make_value(
    name: str | None,
    options: Mapping[str, Any] | None,
    id: Hashable,
    numerics: Numerics | None,
    compile_timeout: float | None,
    collectives: Collectives | None,
) -> Value:
    """The value of a mark from the arguments of the public functions; Dynamo traces this."""
    value: Value = {}
    if name is not None:
        value["name"] = name
    if options is not None:
        value["inductor_configs"] = options
    if id is not None:
        value["inductor_region"] = id
    if numerics is not None:
        value["numerics"] = numerics
    if compile_timeout is not None:
        value["compile_timeout"] = compile_timeout
    if collectives is not None:
        value["collectives"] = collectives
    return value


def checked(value: Value, source: str) -> Value:
    """The value with its mistakes raised, independent of the caller's dicts, fit for Dynamo."""
    parse_mark(value, source=source)
    return {
        key: carried(dict(item) if isinstance(item, Mapping) else item)
        for key, item in value.items()
    }


def mark_calls(function: Callable[..., Any], value: Value | None) -> Callable[..., Any]:
    """Wrap a function so that each of its calls is one entry of a marked scope."""

    # No ParamSpec in the wrapper's annotations: Dynamo would guard on its identity.
    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        if value is not None:
            if torch.compiler.is_dynamo_compiling():
                with annotate({MARK_KEY: {**value, "entry": regional_inductor_entry()}}):
                    return function(*args, **kwargs)
            if marks_are_recorded(value):
                with annotate({MARK_KEY: {**value, "entry": next_entry()}}):
                    return function(*args, **kwargs)
            capture = running.current(value.get("name") or marked.__qualname__)
            if capture is not None:
                if value.get("eager"):
                    with annotate_this_thread({MARK_KEY: {**value, "entry": next_entry()}}):
                        return function(*args, **kwargs)
                return capture.call_marked(marked, args, kwargs)
        return function(*args, **kwargs)

    def change(new: Value | None) -> None:
        nonlocal value
        value = new

    if not torch.compiler.is_dynamo_compiling():
        own_code(marked, function)
        setattr(marked, _SWITCH, change)
    return marked


def switch(marked: Callable[..., Any], value: Value | None) -> None:
    """Change the mark of a wrapper that :func:`mark_calls` made, or turn it off with `None`.

    Dynamo guards on the wrapper's closure, so that compiled code notices.
    """
    getattr(marked, _SWITCH)(value)


def marks_are_recorded(value: Value) -> bool:
    """Whether a graph is being captured, outside Dynamo, by something that keeps annotations."""
    if records_annotations():
        return True
    capture = capture_that_drops_marks()
    if capture and capture not in _LOST_CAPTURES:
        _LOST_CAPTURES.add(capture)
        way_out = {
            "torch.export": "export with regional_inductor.export(...), or with strict=True",
            "make_fx": "capture inside `with torch.fx.traceback.preserve_node_meta():`",
        }
        warn(
            f"this run of {capture} does not record marks, so nothing in it will be a region",
            region=value.get("name", ""),
            source=value.get("source", ""),
            hint=way_out[capture],
            stacklevel=3,
        )
    return False


def caller_line() -> str:
    """``file:line`` of the nearest frame outside this package, or in the demo."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        file = os.path.abspath(frame.f_code.co_filename)
        if not file.startswith(_PACKAGE_FOLDER) or file == _DEMO:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def check_function(function: Any, source: str = "") -> None:
    """Raise a MarkError for what looks like a function and can't be one entry of a scope."""
    kinds = {
        "a generator function": inspect.isgeneratorfunction,
        "a coroutine function": inspect.iscoroutinefunction,
        "an asynchronous generator function": inspect.isasyncgenfunction,
    }
    for kind, is_kind in kinds.items():
        if is_kind(function):
            # Its body runs after the call has returned, so a mark around the call would miss it.
            raise MarkError(
                f"{qualname(function)} is {kind}, whose body runs after its call has returned",
                source=source,
                hint="mark the functions that it calls, or use `with region(...):` inside it",
            )


def qualname(function: Any) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def _is_markable(candidate: Any) -> bool:
    return callable(candidate) or isinstance(candidate, (staticmethod, classmethod, property))


def _decorate(marked: Any, value: Value, source: str) -> Any:
    if isinstance(marked, (staticmethod, classmethod)):
        return type(marked)(_decorate(marked.__func__, value, source))
    if isinstance(marked, torch.nn.Module):
        raise MarkError(
            f"{type(marked).__qualname__} is a module, and a decorator marks functions and classes",
            source=source,
            hint="mark it in place with regional_inductor.mark(module)",
        )
    if isinstance(marked, type):
        return _decorate_class(marked, value, source)
    if not callable(marked):
        raise MarkError(
            f"{type(marked).__qualname__} object can't be marked, it is no function",
            source=source,
            hint="decorate the function itself, below any other decorator",
        )
    check_function(marked, source)
    named = with_defaults(value, qualname(marked), "code", _definition_line(marked) or source)
    return mark_calls(marked, named)


def _decorate_class(cls: type, value: Value, source: str) -> type:
    if not issubclass(cls, torch.nn.Module):
        raise MarkError(
            f"class {cls.__qualname__} can't be marked, it is no torch.nn.Module",
            source=source,
            hint="decorate its methods",
        )
    forward = cls.forward
    check_function(forward, source)
    line = _definition_line(forward) or source
    setattr(  # noqa: B010 - mypy knows that a method isn't assigned to
        cls, "forward", mark_calls(forward, with_defaults(value, cls.__qualname__, "module", line))
    )
    return cls


def with_defaults(value: Value, name: str, scope: str, source: str) -> Value:
    if value.get("eager"):
        return dict(value)
    # A copy of the dicts too: for one dict in two marks Dynamo would guard on its being the same.
    return {"name": name, **carried(value), "scope": f"{scope}:{name}", "source": source}


def _definition_line(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


run_as_python(
    region,
    eager,
    Scope.__call__,
    Scope.__enter__,
    Scope.__exit__,
    make_value,
    marks_are_recorded,
    capture_that_drops_marks,
)
