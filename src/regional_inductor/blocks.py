"""Which modules of a model are its repeated blocks, and what lies around them.

A repeated block is an entry of a `ModuleList`, `ModuleDict` or `Sequential` that has another of its kind
there: of the same class, built of the same classes with parameters and buffers of the same shapes. Of
nested ones the outermost count. Single modules of `torch.nn` (a list of `Linear`) are no blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .patterns import is_wrapper_segment

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class BlockKind:
    """Blocks of one container that are built alike.

    Attributes:
        path: What stands for all of them: ``"layers.*"``.
        modules: The blocks, in order; wrappers around them (checkpointing, FSDP) are left out.
    """

    path: str
    modules: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Layout:
    """The parts of a model.

    Attributes:
        kinds: Its repeated blocks.
        outside: By name the outermost modules that neither are blocks nor hold or lie in any.
        around: By name the modules that hold blocks, the model itself included.
    """

    kinds: tuple[BlockKind, ...]
    outside: tuple[tuple[str, nn.Module], ...]
    around: tuple[tuple[str, nn.Module], ...]

    @property
    def most(self) -> int:
        """How many blocks the largest kind has."""
        return max((len(kind.modules) for kind in self.kinds), default=0)


def layout_of(model: nn.Module) -> Layout:
    """Find the repeated blocks of a model; without any, everything in it is outside."""
    search = _Search()
    search.visit("", model)
    kinds = [
        BlockKind(path, tuple(dict.fromkeys(modules)))
        for (path, _), modules in search.blocks.items()
    ]
    return Layout(tuple(kinds), tuple(search.outside), tuple(search.around))


class _Search:
    def __init__(self) -> None:
        self.blocks: dict[tuple[str, Any], list[nn.Module]] = {}
        self.outside: list[tuple[str, nn.Module]] = []
        self.around: list[tuple[str, nn.Module]] = []
        self._holds: dict[int, bool] = {}
        self._seen: set[int] = set()

    def visit(self, path: str, module: nn.Module) -> None:
        if id(module) in self._seen:  # in two places of the model
            return
        self._seen.add(id(module))
        if path and not self._holds_blocks(module):
            if is_called(module):
                self.outside.append((path, module))
            else:  # a container that is never called itself
                for name, child in _children(module):
                    self.visit(_join(path, name), child)
            return
        self.around.append((path, module))
        repeated = _repeated(module)
        for name, child in _children(module):
            kind = repeated.get(name)
            if kind is None:
                self.visit(_join(path, name), child)
            elif id(child) not in self._seen:
                self._seen.add(id(child))
                self.blocks.setdefault((_join(path, "*"), kind), []).append(child)

    def _holds_blocks(self, module: nn.Module) -> bool:
        if id(module) not in self._holds:
            self._holds[id(module)] = bool(_repeated(module)) or any(
                self._holds_blocks(child) for _, child in _children(module)
            )
        return self._holds[id(module)]


def is_called(module: nn.Module) -> bool:
    """Whether a module has a forward, which `ModuleList` and `ModuleDict` have not."""
    return "forward" in module.__dict__ or type(module).forward is not nn.Module.forward


def is_torchs_own(module: nn.Module) -> bool:
    """Whether all code of a module is torch's, so that no mark can be in it but by `mark`."""
    return all(type(part).__module__.startswith("torch.nn.") for part in module.modules())


def _repeated(module: nn.Module) -> dict[str, Any]:
    """For each block among a container's entries what it has in common with those of its kind."""
    if not isinstance(module, _CONTAINERS):
        return {}
    entries = {name: _structure(child) for name, child in _children(module) if _can_be(child)}
    shared = list(entries.values())
    return {name: kind for name, kind in entries.items() if shared.count(kind) > 1}


def _can_be(module: nn.Module) -> bool:
    return is_called(module) and (bool(module._modules) or not is_torchs_own(module))


def _structure(module: nn.Module) -> Any:
    return hash(
        (
            tuple((name, type(part)) for name, part in module.named_modules()),
            tuple((name, _described(value)) for name, value in module.named_parameters()),
            tuple((name, _described(value)) for name, value in module.named_buffers()),
        )
    )


def _described(value: torch.Tensor) -> Any:
    if nn.parameter.is_lazy(value):  # has no shape yet
        return type(value)
    return (*value.shape, value.dtype, value.requires_grad, value.device.type, type(value))


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every entry, one that is there twice included; instead of a wrapper what is in it."""
    for name, child in module._modules.items():
        if child is not None:
            yield name, _unwrapped(child)


def _unwrapped(module: nn.Module) -> nn.Module:
    for name, child in module._modules.items():
        if is_wrapper_segment(name) and child is not None:
            return _unwrapped(child)
    return module


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
