"""Running a model and taking back what it wrote: tensors, gradients, random number generators.

Checked on torch 2.11 and 2.13: `TorchDispatchMode` with `ignore_compile_internals` (Dynamo goes on
compiling under such a mode) and `supports_higher_order_operators`, `untyped_storage()._cdata`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class UndoWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies each storage before it is first written to, and puts the copies back at the end.

    Storages that were made inside are left alone. What is written costs memory once more; what is
    only read (parameters, as a rule) costs nothing.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made_here: set[int] = set()
        self._gradients: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._paused = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if isinstance(func, OpOverload):
            for tensor in _written_by(func, args, kwargs):
                self._copy(tensor)
        result = func(*args, **kwargs)
        if isinstance(func, (OpOverload, HigherOrderOperator)):
            given = {storage for storage, _ in storages(tree_leaves((args, kwargs)))}
            for storage, _ in storages(tree_leaves(result)):
                if storage not in given and storage not in self._copies:
                    self._made_here.add(storage)
        return result

    def set_gradients_aside(self, tensors: Iterable[Any]) -> None:
        """Take `.grad` off leaves until the end, so that a backward pass accumulates into nothing."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad and tensor.is_leaf:
                if id(tensor) not in self._gradients:
                    self._gradients[id(tensor)] = (tensor, tensor.grad)
                    tensor.grad = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """See nothing for a while: a compiler at work writes to tensors of its own."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def will_write(self, tensors: Iterable[Any]) -> None:
        """Copy what a compiled kernel is about to write to: it does so unseen by dispatch."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self._copy(tensor)

    def made(self, tensors: Iterable[Any]) -> None:
        """Take down memory that a compiled kernel allocated, which nobody knew before."""
        for storage, _ in storages(tensors):
            if storage not in self._copies:
                self._made_here.add(storage)

    def written(self) -> dict[int, torch.Tensor]:
        """The memory that holds something else now, by storage, as flat tensors of that."""
        return {
            storage: _whole(plain, plain.dtype)
            for storage, (plain, copy) in self._copies.items()
            if not torch.equal(_whole(plain, torch.uint8), _whole(copy, torch.uint8))
        }

    def undo(self) -> None:
        """Put everything back as it was; called after the mode was left."""
        for tensor, copy in self._copies.values():
            tensor.untyped_storage().copy_(copy.untyped_storage())
        for tensor, gradient in self._gradients.values():
            tensor.grad = gradient
        self._copies.clear()
        self._gradients.clear()

    def _copy(self, tensor: torch.Tensor) -> None:
        for storage, plain in storages([tensor]):
            if storage in self._copies or storage in self._made_here:
                continue
            if plain.device.type == "meta":
                continue
            view = plain.detach()
            self._copies[storage] = (view, _copied(view))


def _whole(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All memory under a tensor."""
    return torch.empty(0, dtype=dtype, device=tensor.device).set_(tensor.untyped_storage())


def copied_storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    """All memory under a tensor, once more."""
    return tensor.untyped_storage().clone()  # type: ignore[no-any-return,no-untyped-call]


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    storage = copied_storage(tensor)
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)


# What some batch norms update although their schema doesn't say so.
_UNANNOUNCED = ("running_mean", "running_var")


def _written_by(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    unannounced = _UNANNOUNCED if "batch_norm" in func._schema.name else ()
    if not func._schema.is_mutable and not unannounced:
        return
    for index, argument in enumerate(func._schema.arguments):
        announced = argument.alias_info is not None and argument.alias_info.is_write
        if not announced and argument.name not in unannounced:
            continue
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def storages(values: Iterable[Any]) -> Iterator[tuple[int, torch.Tensor]]:
    """The storages under some values, each with a plain tensor on it; subclasses are opened."""
    for value in values:
        if not isinstance(value, torch.Tensor):
            continue
        flatten = getattr(value, "__tensor_flatten__", None)
        if flatten is not None:
            names, _ = flatten()
            yield from storages(getattr(value, name) for name in names)
        elif value.layout is torch.strided:
            try:
                yield value.untyped_storage()._cdata, value
            except (RuntimeError, NotImplementedError):  # a subclass without storage of its own
                continue


@contextlib.contextmanager
def undone(values: Any) -> Iterator[UndoWrites]:
    """Run what is inside and put back tensors, gradients and random number generators.

    Args:
        values: Tensors whose `.grad` may be written to, as far as known, nested in anything.
    """
    mode = UndoWrites()
    mode.set_gradients_aside(tree_leaves(values))
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpys: Any = numpy.random.get_state() if numpy is not None else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices), mode:
            yield mode
    finally:
        mode.undo()
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numpys)


__all__ = ["UndoWrites", "copied_storage", "storages", "tree_leaves", "tree_map", "undone"]
