"""Calling compiled regions: the functions that stitching graphs hold, and their pickling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch.autograd import profiler
from torch.fx.node import Node

from . import layouts
from ._torch import inductor
from ._torch.direct import innermost_callable
from .errors import RegionError, compose, warn
from .regions import REGION_META, RegionCall

RegionFunction = Callable[..., Any]


def named_function(
    compiled: Callable[..., Any], call: RegionCall, promised: Sequence[layouts.Strides] = ()
) -> RegionFunction:
    """A plain function over a compiled region: FX generates calls of functions, not of objects.

    `__wrapped__` is the compiled region itself; GraphPickler recognises Inductor's artifact there.

    Args:
        compiled: The compiled region.
        call: What it is called for.
        promised: The strides of its arguments by the capture, if a copy of an argument does as well.
    """
    first = bool(promised)
    misplaced: dict[int, tuple[int, ...]] = {}

    def laid_out(args: Sequence[Any]) -> list[Any]:
        nonlocal first, misplaced
        if first:
            misplaced = layouts.misplaced(args, promised)
            if misplaced:
                _say_misplaced(call, misplaced)
            first = False
        copied = list(args)
        layouts.lay_out(copied, misplaced)
        return copied

    def region(*args: Any) -> Any:
        try:
            if first or misplaced:
                args = (*laid_out(args),)
            if profiler._is_profiler_enabled:
                return run_under_name(call.name, compiled, *args)
            return compiled(*args)
        except Exception as error:
            name_region(error, call)
            raise

    region.__name__ = region.__qualname__ = call.name
    region.__module__ = "regional_inductor"
    region.__wrapped__ = compiled  # type: ignore[attr-defined]
    region.region_call = call  # type: ignore[attr-defined]
    region.promised_strides = promised  # type: ignore[attr-defined]
    return region


def boxed_function(
    compiled: Callable[[list[Any]], Any], call: RegionCall, promised: Sequence[layouts.Strides] = ()
) -> RegionFunction:
    """A region that takes one list of arguments and empties it, so that inputs are freed early.

    It costs a Python call over Inductor's own. Its name is in tracebacks and in the profiler.

    Args:
        compiled: The compiled region.
        call: What it is called for.
        promised: The strides of its arguments by the capture, if a copy of an argument does as well.
    """
    innermost = innermost_callable(compiled)
    first = out_of_the_ordinary = True
    misplaced: dict[int, tuple[int, ...]] = {}
    name = call.name

    def careful(args: list[Any]) -> Any:
        nonlocal first, out_of_the_ordinary, misplaced
        run = innermost
        if first:
            run = compiled
            misplaced = layouts.misplaced(args, promised)
            if misplaced:
                _say_misplaced(call, misplaced)
            first, out_of_the_ordinary = False, bool(misplaced)
        layouts.lay_out(args, misplaced)
        return run_under_name(name, run, args)

    def region(args: list[Any]) -> Any:
        try:  # costs nothing until something is raised
            if out_of_the_ordinary or profiler._is_profiler_enabled:
                return careful(args)
            return innermost(args)
        except Exception as error:
            name_region(error, call)
            raise

    region.__code__ = region.__code__.replace(co_name=name)
    region.__name__ = region.__qualname__ = name
    region.__module__ = "regional_inductor"
    region.__wrapped__ = compiled  # type: ignore[attr-defined]
    region.region_call = call  # type: ignore[attr-defined]
    region.promised_strides = promised  # type: ignore[attr-defined]
    return region


def _say_misplaced(call: RegionCall, misplaced: Mapping[int, tuple[int, ...]]) -> None:
    places = ", ".join(map(str, misplaced))
    warn(
        f"an operator before this region gives other strides than its fake implementation: input {places} "
        "of the region is copied at each call",
        region=call.name,
        source=call.source,
        hint="mark that operator as well, or make its result contiguous before the region",
    )


def region_call_of(function: Any) -> RegionCall | None:
    """What a function over a compiled region is called for; None for any other object."""
    call = getattr(function, "region_call", None) if callable(function) else None
    return call if isinstance(call, RegionCall) else None


def run_under_name(name: str, run: Callable[..., Any], *args: Any) -> Any:
    """Call something, as a range of that name if a profiler is on."""
    if not profiler._is_profiler_enabled:
        return run(*args)
    with torch.profiler.record_function(name):
        return run(*args)


def name_region(error: Exception, call: RegionCall) -> None:
    """Say in an error of a compiled region's run which region it was; type and arguments stay.

    It is a note (`BaseException.add_note`), printed under the message; on Python 3.10, which has no
    notes, the text goes at the end of the message.
    """
    if isinstance(error, RegionError):
        return  # which says it already
    text = compose(
        "raised by a compiled region at run time",
        region=call.name,
        source=call.source,
        hint="regional-inductor bisect SCRIPT_OR_MODULE:FACTORY reduces it to a script of its own; "
        "regional_inductor.eager() keeps code out of regions",
    )
    add_note = getattr(error, "add_note", None)
    if add_note is not None:
        add_note(text)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{text}", *error.args[1:])


class EffectfulRegion(torch.nn.Module):
    """A compiled region whose call must survive dead-code elimination although nobody uses it.

    FX keeps a `call_module` whose module says `_is_impure`; for functions it has a process-wide set
    only, from which nothing is ever dropped.
    """

    _is_impure = True

    def __init__(self, function: RegionFunction, call: RegionCall) -> None:
        super().__init__()
        self.function = function
        self.call = call

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> EffectfulRegion:
        return EffectfulRegion(self.function, self.call)

    def __reduce__(self) -> tuple[Any, ...]:
        data = inductor.artifact_bytes(getattr(self.function, "__wrapped__", None))
        if data is None:
            raise RegionError(
                "this region can't be pickled: it was not compiled by Inductor",
                region=self.call.name,
                source=self.call.source,
            )
        return _load_effectful, (data, self.call)


def _load_effectful(data: bytes, call: RegionCall) -> EffectfulRegion:
    return EffectfulRegion(named_function(inductor.artifact_from_bytes(data), call), call)


def region_calls(module: torch.fx.GraphModule) -> Iterator[tuple[Node, RegionCall]]:
    """The region calls of a stitching graph (nested graphs not included)."""
    for node in module.graph.nodes:
        call = node.meta.get(REGION_META)
        if isinstance(call, RegionCall):
            yield node, call
