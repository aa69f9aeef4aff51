"""Calling eager operators of a stitching graph with less of Python in between.

FX writes `torch.ops.aten.mm.default(x, w)`. That is four look-ups, a Python function, and a call that looks
at the operator's schema: two to three times as long as the C function behind `torch.mm`, which parses the
same arguments and goes to the same dispatcher. Where launches are what a model waits for, these calls are
most of it. Of operators without such a function the overload's own C function is called.

Checked on torch 2.11 and 2.13: names in `torch._C._VariableFunctions` and `torch._C._nn`; `OpOverload._op`,
which is all that `OpOverload.__call__` calls; how FX writes a call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch._ops import OpOverload


class _Functions:
    """Functions by name."""


EAGER: Any = _Functions()
"""What generated code calls, by names such as `mm_default`; filled as code is generated."""

NAME = "_eager_operators"
"""How generated code names it."""

# Overloads that the C function of the operator's name runs for the same arguments, and no other overload.
_FUNCTIONS = (
    "add.Tensor addmm.default baddbmm.default bmm.default cat.default clone.default cos.default "
    "detach.default div.Tensor embedding.default exp.default mean.dim mm.default mul.Tensor neg.default "
    "permute.default pow.Tensor_Scalar relu.default rsqrt.default select.int sigmoid.default sin.default "
    "sqrt.default squeeze.dim sub.Tensor sum.dim_IntList t.default tanh.default transpose.int "
    "unsqueeze.default"
)
_METHODS = ("expand.default", "view.default")

_CALL = re.compile(r" = torch\.ops\.aten\.(\w+)\.(\w+)\(")


def c_functions() -> dict[str, Any]:
    """C functions of torch's public names, by the overload that they run: ``"mm.default"``."""
    found = {}
    for name in _FUNCTIONS.split():
        function = getattr(torch._C._VariableFunctions, name.partition(".")[0], None)
        if function is not None:
            found[name] = function
    return found | {name: getattr(torch.Tensor, name.partition(".")[0]) for name in _METHODS}


_C_FUNCTIONS = c_functions()


def with_direct_calls(body: list[str]) -> list[str]:
    """Lines of generated code that call ATen's operators, rewritten to call what is behind them."""
    return [
        _CALL.sub(_direct, line, count=1) if "torch.ops.aten" in line else line for line in body
    ]


def _direct(call: re.Match[str]) -> str:
    operator, overload = call.groups()
    return f" = {NAME}.{operator}_{overload}(" if _fill(operator, overload) else call[0]


def _fill(operator: str, overload: str) -> bool:
    """Have `EAGER` know an overload; says whether it does."""
    name = f"{operator}_{overload}"
    if not hasattr(EAGER, name):
        function = _C_FUNCTIONS.get(f"{operator}.{overload}")
        if function is None:
            target = getattr(getattr(torch.ops.aten, operator), overload)
            if type(target) is not OpOverload:
                return False
            function = target._op
        setattr(EAGER, name, function)
        _filled.append((operator, overload))
    return True


_filled: list[tuple[str, str]] = []


def filled_so_far() -> tuple[tuple[str, str], ...]:
    """The overloads that generated code calls by now."""
    return tuple(_filled)


def filled(overloads: Iterable[tuple[str, str]]) -> Any:
    """`EAGER`, in a process that takes over code which calls these overloads."""
    for operator, overload in overloads:
        _fill(operator, overload)
    return EAGER
