"""Inputs of a compiled region that lie in memory in another way than the capture said.

Inductor's kernels read tensors by the strides that their fake tensors had, and raise where a real
tensor has others. Fake and real strides differ for some operators of torch (`aten.pow.Scalar` of a
transposed tensor) and for custom operators with a careless fake implementation. Around a region
those run eagerly, where that is no mistake, so a copy with the strides that were promised serves the
region; it costs what a copy costs, which is why a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

Strides: TypeAlias = "tuple[int, ...] | None"
"""Of one argument; None for what is no plain tensor or has symbolic sizes."""


def promised_strides(values: Iterable[Any]) -> tuple[Strides, ...]:
    """Of the values that a capture recorded for a region's arguments."""
    return tuple(_strides(value) for value in values)


def _strides(value: Any) -> Strides:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    numbers = (*value.shape, *value.stride())
    return value.stride() if all(type(number) is int for number in numbers) else None


def misplaced(args: Sequence[Any], promised: Sequence[Strides]) -> dict[int, tuple[int, ...]]:
    """Places of arguments whose strides aren't as promised, with the strides that were promised."""
    return {
        place: strides
        for place, (value, strides) in enumerate(zip(args, promised, strict=False))
        if strides is not None and type(value) is torch.Tensor and _differ(value, strides)
    }


def _differ(value: torch.Tensor, strides: tuple[int, ...]) -> bool:
    if value.numel() == 0 or value.dim() != len(strides):
        return False
    found = zip(value.shape, value.stride(), strides, strict=True)
    return any(size > 1 and stride != wanted for size, stride, wanted in found)


def lay_out(args: list[Any], promised: Mapping[int, tuple[int, ...]]) -> None:
    """Put copies with the promised strides into a list of arguments, in place."""
    for place, strides in promised.items():
        value = args[place]
        copy = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
        args[place] = copy.copy_(value)
