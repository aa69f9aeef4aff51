"""Strides of affine indices without sympy's simplifier.

To choose what to vectorise, Inductor's C++ code generation asks for the stride of each index in each
variable, and has `sympy.simplify` bring index and answer into their simplest form. Nearly all indices of
nearly all kernels are sums of integers times variables, which is that form already; the answer is a
factor. Finding that out took half of a small region's code generation, sympy's physical units, which
`simplify` imports, among it. Other indices go to Inductor's functions.

Checked on torch 2.13: `sizevars.stride_at` and `sizevars.simplify_index_in_vec_range`, which
`sizevars.stride_at_vec_range` looks up when it is called. Where a version lacks one of them or somebody
has patched it, nothing is changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sympy

from .untouched import is_inductors


@contextlib.contextmanager
def quick_strides() -> Iterator[None]:
    """Have Inductor read strides off affine indices while this is open."""
    from torch._inductor import sizevars

    usual_stride: Any = getattr(sizevars, "stride_at", None)
    usual_form: Any = getattr(sizevars, "simplify_index_in_vec_range", None)
    if not (is_inductors(usual_stride) and is_inductors(usual_form)):
        yield
        return

    def stride_at(index: Any, var: Any) -> Any:
        factors = factors_of(index) if isinstance(var, sympy.Symbol) else None
        return usual_stride(index, var) if factors is None else factors.get(var, sympy.S.Zero)

    def simplify_index_in_vec_range(index: Any, var: Any, vec_length: int) -> Any:
        return usual_form(index, var, vec_length) if factors_of(index) is None else index

    sizevars.stride_at = stride_at  # type: ignore[assignment]
    sizevars.simplify_index_in_vec_range = simplify_index_in_vec_range  # type: ignore[assignment]
    try:
        yield
    finally:
        sizevars.stride_at = usual_stride
        sizevars.simplify_index_in_vec_range = usual_form


def factors_of(index: Any) -> dict[sympy.Symbol, sympy.Integer] | None:
    """The integers that variables are multiplied with in a sum; None for anything but such a sum."""
    factors: dict[sympy.Symbol, sympy.Integer] = {}
    for term in index.args if isinstance(index, sympy.Add) else (index,):
        match term:
            case sympy.Symbol():
                factors[term] = sympy.S.One
            case sympy.Mul(args=(sympy.Integer() as factor, sympy.Symbol() as symbol)):
                factors[symbol] = factor
            case sympy.Integer():
                pass
            case _:
                return None
    return factors
