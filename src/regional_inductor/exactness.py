"""Is a compiled region equal to eager, bit for bit? Asked once, before anybody uses the region."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx

from ._torch.trial_inputs import UnknownSizeError, outside_tracing, trial_inputs

ENOUGH_ELEMENTS = 50_000
MOST_ROUNDS = 256
"""Of regions with few elements: of a single number, what a formula gets wrong is seldom hit."""


class NotEqualToEagerError(Exception):
    """A region with ``numerics="eager"`` that doesn't give eager's bits; it is left eager."""


def check_equal_to_eager(
    module: torch.fx.GraphModule, compiled: Callable[..., Any], *, boxed: bool
) -> None:
    """Run a compiled region next to its own graph, on values made for its shapes and strides.

    What operators are known to compute was found out on some builds of torch and some processors.
    This finds out on the one at hand, at the cost of a few runs of the region.

    Args:
        module: The region.
        compiled: What it was compiled to.
        boxed: Whether that takes one list.

    Raises:
        NotEqualToEagerError: An output differs in a bit, or nothing can be tried. NaNs are equal
            whatever their bits.
    """
    fakes = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    outputs: Any = module.graph.output_node().args[0]
    tried = 0
    with outside_tracing():
        for seed in itertools.count():
            try:
                inputs = trial_inputs(fakes, seed)
            except UnknownSizeError as error:
                raise NotEqualToEagerError(f"can't be tried before it is used: {error}") from None
            expected = module(*inputs)
            result = compiled(list(inputs)) if boxed else compiled(*inputs)
            for name, a, b in zip(outputs, result, expected, strict=True):
                differs = difference(a, b)
                if differs:
                    raise NotEqualToEagerError(
                        f"{name} isn't equal to eager bit for bit on trial inputs: {differs}"
                    )
            tried += _elements(inputs)
            if tried >= ENOUGH_ELEMENTS or seed + 1 >= MOST_ROUNDS:
                return


def _elements(inputs: Sequence[Any]) -> int:
    return max((v.numel() for v in inputs if isinstance(v, torch.Tensor)), default=ENOUGH_ELEMENTS)


def difference(a: Any, b: Any) -> str:
    """How a result differs from eager's, or ``""``."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return "" if a == b else f"{a} instead of {b}"
    # Strides are those that the capture foresaw; for some operators these aren't eager's own.
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{_kind(a)} instead of {_kind(b)}"
    differing = unequal_bits(a, b)
    count = int(differing.sum())
    if not count:
        return ""
    where = tuple(differing.nonzero()[0].tolist())
    return f"{count} of {a.numel()} elements, the first {a[where]!r} instead of {b[where]!r}"


def _kind(value: torch.Tensor) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}"


def unequal_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where two tensors of one shape and type differ: zeros of two signs do, two NaNs don't."""
    if not a.dtype.is_floating_point:
        return a != b
    return ((a != b) | (torch.signbit(a) != torch.signbit(b))) & ~(a.isnan() & b.isnan())
