"""The uncompiled original of a model: calling it several times from one state.

What is run here is the user's: parameters, buffers, attributes of modules, gradients and random number
generators are afterwards as they were before.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ._torch import capture, undo
from ._torch.undo import tree_leaves, tree_map


def call_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own for Dynamo to start from, whose cache nobody else has entries in."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace()
    return call


def tensors_of(function: Any) -> list[torch.Tensor]:
    """Parameters that a run may leave gradients on, as far as they can be found from outside."""
    found: list[torch.Tensor] = []
    for holder in _holders(function):
        if isinstance(holder, torch.nn.Module):
            found += holder.parameters()
        elif isinstance(holder, torch.Tensor):
            found.append(holder)
    return found


def _holders(function: Any) -> Iterator[Any]:
    yield function
    if isinstance(function, functools.partial):
        yield from (*_holders(function.func), *function.args, *function.keywords.values())
        return
    yield getattr(function, "__self__", None)
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        yield from (*variables.nonlocals.values(), *variables.globals.values())


def holders(function: Any) -> list[torch.nn.Module]:
    """The modules that a function can reach, as far as they can be found from outside."""
    return [found for found in _holders(function) if isinstance(found, torch.nn.Module)]


@contextlib.contextmanager
def attributes_restored(function: Any) -> Iterator[None]:
    """Put back what a run assigns to attributes of modules; writes into tensors are another matter."""
    modules = {id(m): m for root in holders(function) for m in root.modules()}.values()
    saved = [(module, dict(module.__dict__), _tables(module)) for module in modules]
    try:
        yield
    finally:
        for module, attributes, tables in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, table in tables.items():
                module.__dict__[name].clear()
                module.__dict__[name].update(table)


def _tables(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    return {name: dict(module.__dict__[name]) for name in ("_parameters", "_buffers", "_modules")}


def fresh_objects(values: Any) -> Any:
    """Arguments for one run: tensors as they are, objects with a state of their own (caches) copied."""

    def fresh(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, torch.nn.Module, type, *_STATELESS)) or value is None:
            return value
        if callable(value):
            return value
        try:
            return copy.deepcopy(value)
        except Exception:  # noqa: BLE001 - what can't be copied is shared by the runs
            return value

    return tree_map(fresh, values)


_STATELESS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def gradient_leaves(function: Any, args: Any, kwargs: Any) -> dict[str, torch.Tensor]:
    """The tensors that a run may leave gradients on, by name: parameters, arguments, variables."""
    named: list[tuple[str, Any]] = []
    for number, module in enumerate(holders(function)):
        prefix = f"{type(module).__name__}." if number else ""
        named += [(f"{prefix}{name}", value) for name, value in module.named_parameters()]
    named += [
        (f"argument {index}", value) for index, value in enumerate(tree_leaves((args, kwargs)))
    ]
    named += [(f"variable {index}", value) for index, value in enumerate(tensors_of(function))]
    leaves: dict[int, tuple[str, torch.Tensor]] = {}
    for name, value in named:
        if isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf:
            leaves.setdefault(id(value), (name, value))
    return dict(leaves.values())


def storage_names(function: Any, args: Any, kwargs: Any) -> dict[int, str]:
    """Names for the memory of buffers, parameters and arguments, which a run may write to."""
    named: list[tuple[str, Any]] = []
    for module in holders(function):
        named += [*module.named_buffers(), *module.named_parameters()]
    named += [
        (f"argument {index}", value) for index, value in enumerate(tree_leaves((args, kwargs)))
    ]
    names: dict[int, str] = {}
    for name, value in named:
        for storage, _ in undo.storages([value]):
            names.setdefault(storage, name)
    return names


@dataclass(frozen=True)
class Results:
    """What one run gave: tensors by name, each a copy or nobody else's."""

    outputs: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    written: dict[str, torch.Tensor]


class Original:
    """A model and what to call it with; each call starts from the same state and leaves it so.

    Args:
        function: The uncompiled model or function.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self._leaves = gradient_leaves(function, args, kwargs)
        self._names = storage_names(function, args, kwargs)

    @contextlib.contextmanager
    def state_restored(self) -> Iterator[undo.UndoWrites]:
        """Run what is inside, then put back tensors, gradients, generators and attributes."""
        touched = (self.args, self.kwargs, list(self._leaves.values()))
        with (
            attributes_restored(self.function),
            undo.undone(touched) as undoing,
            capture.own_compiles_off(self.function),
        ):
            yield undoing

    def run(self, call: Callable[..., Any], undoing: undo.UndoWrites) -> Results:
        """Forward and, where something requires gradients, backward; inside `state_restored`.

        Args:
            call: What to call in place of the function: itself, or a compiled form.
            undoing: What `state_restored` gave.
        """
        args, kwargs = fresh_objects((self.args, self.kwargs))
        outputs = call(*args, **kwargs)
        tensors = {
            f"output {index}": value
            for index, value in enumerate(tree_leaves(outputs))
            if isinstance(value, torch.Tensor)
        }
        if all(leaf.grad is None for leaf in self._leaves.values()):  # else it ran its own backward
            _backward(list(tensors.values()))
        return Results(
            {name: value.detach().clone() for name, value in tensors.items()},
            {n: leaf.grad.detach() for n, leaf in self._leaves.items() if leaf.grad is not None},
            {
                self._names[storage]: value.clone()
                for storage, value in undoing.written().items()
                if storage in self._names
            },
        )


def _backward(outputs: list[torch.Tensor]) -> None:
    """Backward from all outputs at once, each with random weights: a plain sum hides differences."""
    outputs = [value for value in outputs if value.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [_weights(value, i) for i, value in enumerate(outputs)])


def _weights(output: torch.Tensor, seed: int) -> torch.Tensor:
    if output.dim() == 0:
        return torch.ones_like(output)
    generator = torch.Generator(output.device).manual_seed(seed)
    return torch.randn(output.shape, dtype=output.dtype, device=output.device, generator=generator)
