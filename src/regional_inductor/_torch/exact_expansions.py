"""Operators whose CPU kernels read parts of a tensor, or are several kernels: in simpler operators.

What each function here calls has a formula or moves data, so that it gives eager's bits if the
function does the kernels' steps in their order.

Checked on torch 2.11 and 2.13: `glu_out_cpu`, `glu_backward_cpu_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.node import Node

from . import exact_formulas as f
from .exact_formulas import Formula

Computed: TypeAlias = "Callable[[Formula, list[Tensor]], Tensor]"
"""Computes a formula over tensors, in one rounding to their type."""


def _halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    size = x.shape[dim] // 2
    return x.narrow(dim, 0, size), x.narrow(dim, size, size)


def _glu(computed: Computed, x: Tensor, dim: int = -1) -> Tensor:
    return computed(f.GLU, [*_halves(x, dim)])


def _glu_backward(computed: Computed, grad: Tensor, x: Tensor, dim: int) -> Tensor:
    first, second = _halves(x, dim)
    gate = torch.sigmoid(second)
    return torch.cat([gate * grad, computed(f.GLU_BACKWARD, [gate, first, grad])], dim)


_EXPANSIONS: dict[str, Callable[..., Tensor]] = {
    "aten.glu.default": _glu,
    "aten.glu_backward.default": _glu_backward,
}


def has_expansion(node: Node) -> bool:
    """Whether an operator is taken apart."""
    return str(node.target) in _EXPANSIONS


def expansion(node: Node, computed: Computed) -> Callable[..., Any] | None:
    """An operator as a function with the same arguments; None for others."""
    function = _EXPANSIONS.get(str(node.target))
    return None if function is None else lambda *args, **kwargs: function(computed, *args, **kwargs)
