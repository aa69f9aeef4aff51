"""Regions of graphs that anybody may call with anything: each call checks its arguments first.

Where Dynamo's guards hold, kinds of arguments can't change. In the drop-in pass they can: a compiled region
would read a float64 tensor as float32, or cut autograd's graph silently. So a wrong dtype, device or size
raises, and what a compiled region can't compute with (fake tensors, gradients, transforms) runs eagerly.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.fx
from torch.autograd import profiler

from ._torch import direct, direct_artifact
from ._torch.direct import innermost_callable
from ._torch.tensor_kinds import (
    Sizes,
    forward_ad,
    in_forward_mode,
    is_transformed,
    never,
    same_kinds,
)
from ._torch.values import is_fake
from .errors import RegionError
from .regions import RegionCall
from .runtime import RegionFunction, name_region, run_under_name


def guarded_function(
    compiled: Callable[..., Any],
    eager: torch.fx.GraphModule,
    expected: Sequence[Any],
    call: RegionCall,
    *,
    functional: bool = False,
) -> RegionFunction:
    """A region that checks its arguments at each call.

    The first call looks at one argument after another. What passed is learnt as a whole: later calls ask
    once, in C, whether the tensors are of the same kinds again under the same modes. Whatever is out of
    the ordinary is looked at again, and learnt if it passes.

    `functional` says that the region has neither mutation, effects nor symbolic sizes. After a first
    call whose outputs shared no storage with anything, Inductor's own call is then called directly.
    """
    kinds = tuple(_kind(value) for value in expected)
    sizes = [kind.sizes for kind in kinds if kind is not None]
    trained = any(isinstance(v, torch.Tensor) and v.requires_grad for v in expected)
    bare: Callable[[list[Any]], Any] | None = None
    if functional:
        lowered = direct_artifact.lowered_of(compiled)
        bare = direct.bare_call(compiled) if lowered is None else innermost_callable(lowered)
    autocast_is_on = direct.autocast_is_on()
    is_first = True
    is_shared = False  # its outputs share storage, which only AOTAutograd's wrappers can give back

    def careful(*args: Any) -> Any:
        """Every check, one after another: for calls that are the first or out of the ordinary."""
        nonlocal is_first, is_shared
        if not _fit(args, kinds, expected, trained, call):
            return eager(*args)
        # AOTAutograd's wrapper, which the bare call leaves out, switches autocast off.
        try:
            if bare is None or is_first or is_shared or autocast_is_on():
                result = run_under_name(call.name, compiled, *args)
            else:
                result = run_under_name(call.name, bare, list(args))
        except Exception as error:
            name_region(error, call)
            raise
        if is_first and bare is not None:
            is_shared = not direct.share_no_storage(args, result)
        is_first = False
        if bare is None or not (is_shared or autocast_is_on()):
            tensors = [a for a, kind in zip(args, kinds, strict=True) if kind is not None]
            if not names["check"](*tensors):
                # For good, and first: another thread may be between the two as well.
                if not trained and any(tensor.requires_grad for tensor in tensors):
                    names["needs_no_grad"] = True
                names["check"] = same_kinds(tensors, sizes)
        return result

    names: dict[str, Any] = {
        "check": never,
        "needs_no_grad": False,
        "is_grad_enabled": torch.is_grad_enabled,
        "careful": careful,
        "run": compiled if bare is None else bare,
        "profiler": profiler,
        "forward_ad": forward_ad,
        "autocast_is_on": autocast_is_on,
        "name_region": lambda error: name_region(error, call),
    }
    region = _checking_code(
        [kind is not None for kind in kinds],
        boxed=bare is not None,
        asks_for_autocast=bare is not None
        and not _devices(eager) <= {k.device.type for k in kinds if k},
        names=names,
    )
    region.__code__ = region.__code__.replace(co_name=call.name)
    region.__name__ = region.__qualname__ = call.name
    region.__module__ = "regional_inductor"
    region.__wrapped__ = compiled  # type: ignore[attr-defined]
    return region


class _Kind(NamedTuple):
    """What a tensor must be for a compiled region to read it right; a size of None may vary."""

    dtype: torch.dtype
    device: torch.device
    sizes: Sizes


def _kind(value: Any) -> _Kind | None:
    if not isinstance(value, torch.Tensor):
        return None
    return _Kind(
        value.dtype, value.device, tuple(d if type(d) is int else None for d in value.shape)
    )


def _fit(
    args: Sequence[Any],
    kinds: Sequence[_Kind | None],
    expected: Sequence[Any],
    trained: bool,
    call: RegionCall,
) -> bool:
    """Whether the compiled region can take these; False where only eager code can, an error for a wrong kind."""
    if not trained and in_forward_mode():
        return False
    grad = not trained and torch.is_grad_enabled()
    for index, (value, kind) in enumerate(zip(args, kinds, strict=True)):
        if kind is None:
            continue
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            if is_fake(value) or type(value) is not type(expected[index]):
                return False
        elif is_transformed(value):
            return False
        elif value.dtype is not kind.dtype or value.device != kind.device:
            raise _wrong_kind(call, index, value, kind)
        elif len(kind.sizes) != value.dim() or any(
            d is not None and d != size for d, size in zip(kind.sizes, value.shape, strict=True)
        ):
            raise _wrong_kind(call, index, value, kind)
        if grad and value.requires_grad:
            return False
    return True


def _devices(module: torch.fx.GraphModule) -> set[str]:
    """Where a region's values lie; what isn't known lies anywhere."""
    found: set[str] = set()
    for node in module.graph.nodes:
        value = node.meta.get("val")
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, torch.Tensor):
                found.add(item.device.type)
            elif node.op == "call_function" and not isinstance(item, (int, float, bool)):
                found.add("unknown")
    return found


def _checking_code(
    are_tensors: Sequence[bool], *, boxed: bool, asks_for_autocast: bool, names: dict[str, Any]
) -> RegionFunction:
    """The function that is called: what can be said at once, and the rest left to `careful`.

    It is generated: a loop over arguments costs more than the kernel of a small region.
    """
    arguments = [f"a{index}" for index in range(len(are_tensors))]
    listed = ", ".join(arguments)
    tensors = ", ".join(a for a, is_tensor in zip(arguments, are_tensors, strict=True) if is_tensor)
    # The check says nothing of the grad mode and of forward-mode gradients.
    usual = (
        f"check({tensors}) and not (needs_no_grad and is_grad_enabled()) "
        "and forward_ad._current_level < 0 and not profiler._is_profiler_enabled"
    )
    if asks_for_autocast:
        usual += " and not autocast_is_on()"
    lines = [f"def region({listed}):", f"    if {usual}:"]
    if boxed:
        lines.append(f"        args = [{listed}]")
        if listed:
            lines.append(f"        del {listed}")
    run = "run(args)" if boxed else f"run({listed})"
    lines += [
        "        try:",  # which costs nothing until something is raised
        f"            return {run}",
        "        except Exception as error:",
        "            name_region(error)",
        "            raise",
        f"    return careful({listed})",
    ]
    exec(_compiled("\n".join(lines)), names)
    region: RegionFunction = names["region"]
    return region


@lru_cache(maxsize=256)
def _compiled(code: str) -> types.CodeType:
    """Regions of one kind, of which a model has one a layer, have one text."""
    return compile(code, "<regional_inductor call>", "exec")


def _wrong_kind(call: RegionCall, index: int, value: torch.Tensor, kind: _Kind) -> RegionError:
    sizes = ", ".join("?" if d is None else str(d) for d in kind.sizes)
    return RegionError(
        f"argument {index} is a {value.dtype} tensor of shape ({', '.join(map(str, value.shape))}) on "
        f"{value.device}, but the region was compiled for {kind.dtype}, ({sizes}), {kind.device}",
        region=call.name,
        source=call.source,
        hint="capture and compile the graph again for these inputs, or compile through "
        'torch.compile(..., backend="regional_inductor"), which recompiles by itself',
    )
