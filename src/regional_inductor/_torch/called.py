"""What a model is called with, described kind by kind, where no capture of the whole would say so.

Sizes and numbers that differ between calls of one kind become symbolic, as Dynamo's automatic dynamic
shapes would have them.

Checked on torch 2.11 and 2.13: `torch.utils._pytree`. On 2.13: `torch._C._is_any_autocast_enabled`.
"""

from __future__ import annotations

import inspect
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree

from .calls import CapturedCall, Held, Modes, TensorLike, described_call

_MOST = 64  # kinds and sizes; a model that is called in more ways than these is saved for these
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_TENSORS = (torch.Tensor, torch.nn.Parameter)


class Called:
    """The calls of one model so far.

    Args:
        dynamic: As for `torch.compile`.

    Attributes:
        calls: One for each kind of call and set of sizes that vary.
    """

    def __init__(self, dynamic: bool | None) -> None:
        self.calls: list[CapturedCall] = []
        self._dynamic = dynamic
        self._seen: set[Any] = set()
        self._glances: set[Any] = set()
        self._kinds: dict[Any, list[CapturedCall]] = {}
        self._lock = threading.Lock()

    def note(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Remember a call of a model, if it is like none before."""
        if model._forward_pre_hooks:
            return  # which may change the arguments before `forward` gets them
        if len(self._seen) >= _MOST:
            return
        glance = _glance_at(model, args, kwargs)
        if glance in self._glances:
            return
        leaves, form = pytree.tree_flatten((args, dict(kwargs)))
        modes = (model.training, Modes.now(), str(form), _sameness(leaves))
        key = (*modes, tuple(map(_look, leaves)))
        if key in self._seen:
            self._remember(glance)
            return
        function = getattr(model.forward, "__func__", model.forward)
        if not isinstance(function, types.FunctionType):
            return
        with self._lock:
            self._seen.add(key)
            self._add((*modes, tuple(map(_kind, leaves))), function, model, args, kwargs)
        self._remember(glance)

    def _remember(self, glance: Any) -> None:
        if glance is not None and len(self._glances) < _MOST:
            self._glances.add(glance)

    def _add(
        self,
        kind: Any,
        function: Callable[..., Any],
        model: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        given = inspect.signature(function, follow_wrapped=False).bind(model, *args, **kwargs)
        given.apply_defaults()
        variables = given.arguments
        like = self._kinds.setdefault(kind, [])
        sizes: dict[int, set[int]] = {}
        numbers: set[str] = set()
        if self._dynamic:
            for value in filter(_is_tensor, pytree.tree_leaves(dict(variables))):
                sizes[id(value)] = {d for d, size in enumerate(value.shape) if size > 1}
        elif self._dynamic is None:
            for earlier in like:
                _vary(variables, earlier, sizes, numbers)
        call = described_call(function.__code__, variables, sizes, sorted(numbers))
        if _form(call) not in map(_form, like):
            like.append(call)
            self.calls.append(call)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _glance_at(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...] | None:
    """What tells calls of the usual kinds apart, no less than all that is looked at; None for others.

    It is asked at every call, and takes a sixth of the time or less.
    """
    if torch._C._is_any_autocast_enabled():
        return None
    parts: list[Any] = [
        model.training,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *kwargs,
    ]
    tensors: list[int] = []
    if not _glance(args, parts, tensors) or not _glance(kwargs.values(), parts, tensors):
        return None
    if len(set(tensors)) < len(tensors):
        parts += map(tensors.index, tensors)
    return tuple(parts)


def _glance(values: Iterable[Any], parts: list[Any], tensors: list[int]) -> bool:
    """Add what there is to see of some arguments; False where there is more to it."""
    for value in values:
        kind = type(value)
        parts.append(kind)
        if kind in _TENSORS and value.layout is torch.strided:
            tensors.append(id(value))
            parts += value.dtype, value.device, value.requires_grad, value.shape, value.stride()
        elif kind in _PLAIN:
            parts.append(value)
        elif kind is tuple or kind is list:
            parts.append(len(value))
            if not _glance(value, parts, tensors):
                return False
        else:
            return False
    return True


def _look(value: Any) -> Any:
    """What tells calls apart."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return (*_kind(value), tuple(value.shape), value.stride())
    return (type(value), value) if isinstance(value, _PLAIN) else type(value)


def _kind(value: Any) -> Any:
    """The same without sizes and numbers."""
    if isinstance(value, torch.Tensor):
        return type(value), value.dtype, value.device, value.dim(), value.requires_grad
    if isinstance(value, _PLAIN) and type(value) is not int:
        return type(value), value
    return type(value)


def _sameness(leaves: list[Any]) -> tuple[int, ...]:
    """Which tensors are one object."""
    first: dict[int, int] = {}
    return tuple(
        first.setdefault(id(value), place)
        for place, value in enumerate(leaves)
        if isinstance(value, torch.Tensor)
    )


def _vary(
    variables: Mapping[str, Any],
    earlier: CapturedCall,
    sizes: dict[int, set[int]],
    numbers: set[str],
) -> None:
    """Add where a call differs from an earlier one of its kind."""
    now = pytree.tree_leaves(dict(variables))
    before = pytree.tree_leaves(dict(earlier.arguments), is_leaf=_is_described)
    for value, like in zip(now, before, strict=True):
        if isinstance(value, torch.Tensor) and isinstance(like, TensorLike):
            differ = {d for d, size in enumerate(value.shape) if size != like.size[d]}
            sizes.setdefault(id(value), set()).update(differ | like.dynamic)
    for name, value in variables.items():
        if type(value) is int and value != earlier.arguments[name]:
            numbers.add(f"L['{name}']")
    numbers.update(earlier.dynamic)


def _form(call: CapturedCall) -> tuple[Any, ...]:
    """Equal for calls that differ in nothing but what is symbolic in both."""
    parts: list[Any] = [call.dynamic]
    for name, argument in call.arguments.items():
        if f"L['{name}']" in call.dynamic:
            continue
        leaves, form = pytree.tree_flatten(argument, is_leaf=_is_described)
        parts += [name, str(form), *map(_form_of, leaves)]
    return tuple(parts)


def _form_of(value: Any) -> Any:
    if isinstance(value, TensorLike):
        sizes = tuple(None if d in value.dynamic else n for d, n in enumerate(value.size))
        order = sorted(range(len(value.stride)), key=lambda d: -value.stride[d])
        return sizes, tuple(order) if value.dynamic else value.stride
    return value.kind if isinstance(value, Held) else value


def _is_described(value: Any) -> bool:
    return isinstance(value, (TensorLike, Held))
