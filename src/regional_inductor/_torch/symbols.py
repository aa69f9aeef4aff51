"""Symbolic sizes: which free symbols a region needs, and where they can be read.

Checked on torch 2.11 and 2.13: `free_symbols`, `is_symbolic`, `SymInt.node.expr`, `ShapeEnv`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_symbols

SYMBOLIC_TYPES = (torch.SymInt, torch.SymFloat, torch.SymBool)
SCALAR_TYPES = (*SYMBOLIC_TYPES, int, float, bool)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value


def symbols_of(value: Any) -> frozenset[sympy.Symbol]:
    """The free symbols in a node's value: sizes, strides and offset of tensors, and symbols."""
    found: set[sympy.Symbol] = set()
    for leaf in leaves(value):
        if isinstance(leaf, torch.Tensor):
            if not leaf._has_symbolic_sizes_strides:
                continue
            found |= set(free_symbols(leaf))
        elif isinstance(leaf, SYMBOLIC_TYPES):
            found |= set(free_symbols(leaf))
    return frozenset(found)


def symbol_of(value: Any) -> sympy.Symbol | None:
    """The symbol that an integer value is exactly, or None."""
    if isinstance(value, torch.SymInt):
        expression = value.node.expr
        return expression if isinstance(expression, sympy.Symbol) else None
    return None


def symbols_bound_by(value: Any) -> Iterator[tuple[sympy.Symbol, int | None]]:
    """The symbols that can be read off a value directly, each with the dimension to read."""
    symbol = symbol_of(value)
    if symbol is not None:
        yield symbol, None
    elif isinstance(value, torch.Tensor) and value._has_symbolic_sizes_strides:
        for dimension, size in enumerate(value.shape):
            symbol = symbol_of(size)
            if symbol is not None:
                yield symbol, dimension


def expression_of(value: Any) -> str:
    """A symbolic or plain number as text that is equal only for equal expressions."""
    if isinstance(value, SYMBOLIC_TYPES):
        return f"sym({sympy.srepr(value.node.expr)})"
    return repr(value)


def shape_env_of(values: Iterable[Any]) -> ShapeEnv | None:
    for value in values:
        for leaf in leaves(value):
            if isinstance(leaf, SYMBOLIC_TYPES):
                environment = leaf.node.shape_env
                if isinstance(environment, ShapeEnv):
                    return environment
            if isinstance(leaf, torch.Tensor) and leaf._has_symbolic_sizes_strides:
                for size in (*leaf.shape, *leaf.stride(), leaf.storage_offset()):
                    if isinstance(size, torch.SymInt):
                        return size.node.shape_env  # type: ignore[no-any-return]
    return None


def symint_like(value: torch.Tensor, dimension: int) -> Any:
    return value.shape[dimension]


def hint_of(value: Any) -> int | None:
    """A size as a plain number: itself, or what a symbol stood for at capture; never a guard."""
    if isinstance(value, torch.SymInt):
        node = value.node
        hint = node.hint if node.has_hint() else None
        return int(hint) if isinstance(hint, int) else None
    return int(value) if isinstance(value, int) else None
