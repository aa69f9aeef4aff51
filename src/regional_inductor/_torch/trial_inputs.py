"""Inputs on which a compiled region is tried before anybody uses it: its own shapes, awkward values.

Checked on torch 2.11 and 2.13: `torch.utils._python_dispatch._disable_current_modes`, `SymNode.hint`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch

from .symbols import SYMBOLIC_TYPES

_SPECIAL = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 6.0, 20.0, 88.7, -87.4, 103.0, -104.0),
    *(float("inf"), float("-inf"), float("nan"), 1e-40, -1e-40, 1.4e-45, 3.4e38, -3.4e38, 1.2e-38),
)
_BITS = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}
_SIGNALLING = {
    torch.float32: (torch.int32, 0x7F800001),
    torch.bfloat16: (torch.int16, 0x7F81),
}


def trial_inputs(fakes: list[Any], seed: int) -> list[Any]:
    """Real inputs for a region: random values over many magnitudes, and special ones in between.

    Args:
        fakes: The fake values of its placeholders; symbolic sizes are taken at their hints.
        seed: For a generator of its own; nobody else's random numbers are used up.

    Raises:
        UnknownSizeError: A size has no hint.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_real(fake, generator) for fake in fakes]


def dense_inputs(
    fakes: Sequence[torch.Tensor], places: Sequence[int], seed: int
) -> list[torch.Tensor]:
    """Real inputs for operators: half of them random bits, and every value of a type of 16 bits.

    Operands in the same place share a tensor, drawn once. So what an operator is tried with does not depend
    on what is tried beside it.

    Args:
        fakes: Contiguous vectors, or single numbers.
        places: Which operand of its operator each is, fewer than 64; every value is in those of place 0.
        seed: For generators of its own.
    """
    made: dict[Hashable, torch.Tensor] = {}
    inputs = []
    for fake, place in zip(fakes, places, strict=True):
        kind = (place, fake.dtype, fake.shape, fake.device)
        if kind not in made:
            generator = torch.Generator().manual_seed(seed * 64 + place)
            made[kind] = _dense(fake, generator, every=place == 0).to(fake.device)
        inputs.append(made[kind])
    return inputs


def _dense(fake: torch.Tensor, generator: torch.Generator, *, every: bool) -> torch.Tensor:
    values = _values(fake.numel(), fake.dtype, generator)
    bits = _BITS.get(fake.dtype)
    if bits is not None:
        limits = torch.iinfo(bits)
        length = max(fake.numel() // 2, 1)
        patterns = torch.randint(
            limits.min, limits.max, (length,), generator=generator, dtype=torch.int64
        )
        if bits is torch.int16 and every and length >= 1 << 15:
            values.view(bits)[: 1 << 16] = torch.arange(-(1 << 15), 1 << 15).to(bits)
        else:
            values.view(bits)[:length] = patterns.to(bits)
        values = values[torch.randperm(fake.numel(), generator=generator)]
    return values.reshape(fake.shape)


@contextlib.contextmanager
def outside_tracing() -> Iterator[None]:
    """Run real tensors in the middle of a compile, which has modes for fake ones on."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        yield


class UnknownSizeError(Exception):
    """A size that nobody knows before the region runs."""


def _hint(size: Any) -> Any:
    if not isinstance(size, SYMBOLIC_TYPES):
        return size
    if size.node.hint is None:
        raise UnknownSizeError(f"a size, {size}, is known only when the region runs")
    return size.node.hint


def _real(fake: Any, generator: torch.Generator) -> Any:
    if not isinstance(fake, torch.Tensor):
        return _hint(fake)
    shape = [int(_hint(size)) for size in fake.shape]
    strides = [int(_hint(stride)) for stride in fake.stride()]
    offset = int(_hint(fake.storage_offset()))
    length = offset + 1
    if 0 not in shape:
        length += sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    values = _values(length, fake.dtype, generator).to(fake.device)
    return values.as_strided(shape, strides, offset)


def _values(length: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.rand(length, generator=generator) < 0.5
    if not dtype.is_floating_point:
        low = 0 if dtype is torch.uint8 else -100
        return torch.randint(low, 100, (length,), generator=generator, dtype=dtype)
    spread = torch.randn(length, generator=generator)
    values = torch.randn(length, generator=generator) * torch.exp(spread * 3)
    kinds = torch.rand(length, generator=generator)
    plain = torch.randn(length, generator=generator)
    special = torch.tensor(_SPECIAL)[torch.randint(len(_SPECIAL), (length,), generator=generator)]
    values = torch.where(kinds < 0.5, plain, values)
    values = torch.where(kinds > 0.85, special, values).to(dtype)
    if dtype in _SIGNALLING:
        # Arithmetic turns a signalling NaN into a quiet one, so it is written as bits.
        bits, pattern = _SIGNALLING[dtype]
        values.view(bits)[kinds > 0.99] = pattern
    return values
