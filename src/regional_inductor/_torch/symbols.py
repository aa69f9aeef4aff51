"""Symbolic sizes: which free symbols a region needs, and where they can be read.

Also what a compile assumed of them, as text that another process can hold its own sizes against.

Checked on torch 2.11 and 2.13: `free_symbols`, `is_symbolic`, `SymInt.node.expr`, `ShapeEnv`: `settings`,
`var_to_range`, `get_pruned_guards`, `produce_guards_expression`, `evaluate_guards_expression`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
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
    if isinstance(value, torch.Tensor) and not value._has_symbolic_sizes_strides:
        return frozenset()  # nearly all
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


# --- for other processes --------------------------------------------------------------------------

Sizes = Mapping[sympy.Symbol, torch.SymInt]
"""The symbols of a region, in order, each with the number of the capture that it is."""


class UnstatedError(Exception):
    """What a compile assumed of sizes can't be told to another process."""


def sizes_of(inputs: Iterable[Any], values: Iterable[Any]) -> Sizes:
    """The symbols in some values, as numbers that can be read off the inputs.

    Raises:
        UnstatedError: One can't be read off, or has no value while a graph is captured.
    """
    found: dict[sympy.Symbol, torch.SymInt] = {}
    for value in inputs:
        for symbol, dimension in symbols_bound_by(value):
            found.setdefault(symbol, value if dimension is None else value.shape[dimension])
    needed = sorted(set().union(*map(symbols_of, values)), key=str)
    for symbol in needed:
        if symbol not in found:
            raise UnstatedError(f"{symbol} is no size of an input")
        if hint_of(found[symbol]) is None:
            raise UnstatedError(f"{symbol} is known only when the region runs")
    return {symbol: found[symbol] for symbol in needed}


def facts_of(sizes: Sizes) -> str:
    """What compiling may rely on without saying so: the sizes at capture and their ranges."""
    environment = _environment_of(sizes)
    lines = [repr(_settings_of(environment))]
    for symbol, size in sizes.items():
        known = environment.var_to_range.get(symbol)
        lines.append(f"{sympy.srepr(symbol)} {hint_of(size)} {known}")
    return "\n".join(lines)


def _settings_of(environment: ShapeEnv) -> Any:
    """An environment's settings but for whether a tracer may go on past sizes known only at run time.

    That depends on `fullgraph`, and is on where what was compiled is captured once more for a file. Regions with such
    sizes are not stored.
    """
    settings: Any = getattr(environment, "settings", None)
    names = (
        {field.name for field in dataclasses.fields(settings)} if settings is not None else set()
    )
    ignored = names & {"allow_scalar_outputs", "allow_dynamic_output_shape_ops"}
    return dataclasses.replace(settings, **dict.fromkeys(ignored, True)) if ignored else settings


def guards_on(sizes: Sizes) -> str:
    """What was assumed of sizes so far, compiling included, as a text for `guards_hold`.

    Raises:
        UnstatedError: A symbol was replaced meanwhile: compiling settled what it is.
    """
    for symbol, size in sizes.items():
        if size.node.expr != symbol:
            raise UnstatedError(f"compiling it settled that {symbol} is {size.node.expr}")
    environment = _environment_of(sizes)
    numbers = list(sizes.values())
    return (
        environment.produce_guards_expression(
            numbers, guards=environment.get_pruned_guards(numbers)
        )
        or "True"
    )


def guards_hold(guards: str, sizes: Sizes) -> bool:
    """Whether assumptions hold for sizes of this process; then they guard its capture from now on."""
    environment = _environment_of(sizes)
    hints = [hint_of(size) for size in sizes.values()]
    if not environment.evaluate_guards_expression(guards, hints):
        return False
    return bool(environment.evaluate_guards_expression(guards, list(sizes.values())))


def _environment_of(sizes: Sizes) -> ShapeEnv:
    environment = shape_env_of(sizes.values())
    assert environment is not None
    return environment
