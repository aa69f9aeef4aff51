"""Calling compiled regions: the functions that stitching graphs hold, and their pickling."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.fx
from torch.autograd import profiler
from torch.fx.node import Node

from . import layouts
from ._torch import direct, direct_artifact, inductor
from ._torch.direct import innermost_callable
from ._torch.values import is_fake
from .errors import RegionError, compose, warn
from .regions import REGION_META, RegionCall

RegionFunction = Callable[..., Any]


def named_function(compiled: Callable[..., Any], call: RegionCall) -> RegionFunction:
    """A plain function over a compiled region: FX generates calls of functions, not of objects.

    `__wrapped__` is the compiled region itself; GraphPickler recognises Inductor's artifact there.
    """

    def region(*args: Any) -> Any:
        try:
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


def guarded_function(
    compiled: Callable[..., Any],
    eager: torch.fx.GraphModule,
    expected: Sequence[Any],
    call: RegionCall,
    *,
    functional: bool = False,
) -> RegionFunction:
    """A region for graphs that anybody may call, with any arguments.

    Where Dynamo's guards hold, kinds of arguments can't change. Elsewhere they can: a compiled
    region would read a float64 tensor as float32, or cut autograd's graph silently. So the kinds are
    checked, fake tensors and tensors that need gradients take the eager path (right, if slower), and
    a wrong dtype or device raises.

    `functional` says that the region has neither mutation, effects nor symbolic sizes. After a first
    call whose outputs shared no storage with anything, Inductor's own call is then called directly.
    """
    kinds = tuple(
        (value.dtype, value.device, tuple(d if type(d) is int else None for d in value.shape))
        if isinstance(value, torch.Tensor)
        else None
        for value in expected
    )
    trained = any(isinstance(v, torch.Tensor) and v.requires_grad for v in expected)
    lowered = direct_artifact.lowered_of(compiled)
    bare: Callable[[list[Any]], Any] | None = None
    if functional:
        bare = direct.bare_call(compiled) if lowered is None else innermost_callable(lowered)
    names: dict[str, Any] = {"compiled": compiled, "ready": bare is None, "bare": bare}

    def careful(*args: Any) -> Any:
        """Every check, one after another: for calls that are the first or out of the ordinary."""
        grad = not trained and torch.is_grad_enabled()
        for index, (value, kind) in enumerate(zip(args, kinds, strict=True)):
            if kind is None:
                continue
            if type(value) not in (torch.Tensor, torch.nn.Parameter):
                if is_fake(value) or type(value) is not type(expected[index]):
                    return eager(*args)
            elif value.dtype is not kind[0] or value.device != kind[1]:
                raise _wrong_kind(call, index, value, kind)
            elif len(kind[2]) != value.dim() or any(
                d is not None and d != size for d, size in zip(kind[2], value.shape, strict=True)
            ):
                raise _wrong_kind(call, index, value, kind)
            if grad and value.requires_grad:
                return eager(*args)
        try:
            result = run_under_name(call.name, compiled, *args)
        except Exception as error:
            name_region(error, call)
            raise
        if names["bare"] is not None and not names["ready"]:
            names["ready"] = True
            if not direct.share_no_storage(args, result):
                names["bare"] = (
                    None  # AOTAutograd's wrappers make such outputs views of their inputs
                )
                names["ready"] = False
        return result

    names["careful"] = careful
    names["name_region"] = lambda error: name_region(error, call)
    region: RegionFunction = _checking_code(kinds, trained, bare is not None, names)
    region.__code__ = region.__code__.replace(co_name=call.name)
    region.__name__ = region.__qualname__ = call.name
    region.__module__ = "regional_inductor"
    region.__wrapped__ = compiled  # type: ignore[attr-defined]
    return region


def _checking_code(
    kinds: Sequence[Any], trained: bool, is_bare: bool, names: dict[str, Any]
) -> RegionFunction:
    """A function that makes all checks in one expression and leaves what fails it to `careful`.

    The expression is generated: a loop over arguments cost more than the kernel of a small region.
    """
    arguments = [f"a{index}" for index in range(len(kinds))]
    checks = ["ready", "not profiler._is_profiler_enabled"]
    names["profiler"] = profiler
    if is_bare:
        # AOTAutograd's wrapper, which the bare call leaves out, switches autocast off.
        checks.append("not autocast_is_on()")
        names["autocast_is_on"] = direct.autocast_is_on()
    tensors = []
    for argument, kind in zip(arguments, kinds, strict=True):
        if kind is None:
            continue
        dtype, device, shape = kind
        tensors.append(argument)
        names[f"{argument}_dtype"], names[f"{argument}_device"] = dtype, device
        checks += [
            f"(type({argument}) is Tensor or type({argument}) is Parameter)",
            f"{argument}.dtype is {argument}_dtype",
            # Comparing devices makes an object first, asking for the CPU doesn't.
            f"{argument}.is_cpu"
            if device.type == "cpu"
            else f"{argument}.device == {argument}_device",
        ]
        if None not in shape:
            checks.append(f"{argument}.shape == {shape!r}")
        else:
            checks.append(f"{argument}.dim() == {len(shape)}")
            checks += [
                f"{argument}.shape[{d}] == {n}" for d, n in enumerate(shape) if n is not None
            ]
    if tensors and not trained:
        wanted = " or ".join(f"{argument}.requires_grad" for argument in tensors)
        checks.append(f"not (({wanted}) and is_grad_enabled())")
    listed = ", ".join(arguments)
    run = f"compiled({listed})"
    if is_bare:
        forget = f"        del {listed}\n" if listed else ""
        run = "bare(args)"
    body = f"    if {' and '.join(checks)}:\n"
    if is_bare:
        body += f"        args = [{listed}]\n{forget}"
    # A `try` costs nothing until something is raised.
    body += f"        try:\n            return {run}\n"
    body += (
        "        except Exception as error:\n            name_region(error)\n            raise\n"
    )
    code = f"def region({listed}):\n{body}    return careful({listed})\n"
    names.update(Tensor=torch.Tensor, Parameter=torch.nn.Parameter)
    names["is_grad_enabled"] = torch.is_grad_enabled
    exec(_compiled(code), names)
    region: RegionFunction = names["region"]
    return region


@lru_cache(maxsize=256)
def _compiled(code: str) -> types.CodeType:
    """Regions of one kind, of which a model has one a layer, have one text."""
    return compile(code, "<regional_inductor call>", "exec")


def _wrong_kind(call: RegionCall, index: int, value: torch.Tensor, kind: Any) -> RegionError:
    dtype, device, shape = kind
    sizes = ", ".join("?" if d is None else str(d) for d in shape)
    return RegionError(
        f"argument {index} is a {value.dtype} tensor of shape ({', '.join(map(str, value.shape))}) on "
        f"{value.device}, but the region was compiled for {dtype}, ({sizes}), {device}",
        region=call.name,
        source=call.source,
        hint="capture and compile the graph again for these inputs, or compile through "
        'torch.compile(..., backend="regional_inductor"), which recompiles by itself',
    )


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
