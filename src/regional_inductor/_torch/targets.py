"""What a graph node calls: overloads, packets and higher-order operators.

Checked on torch 2.11.0 and 2.13.0: the three classes of `torch._ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket


def is_operator(candidate: Any) -> bool:
    return isinstance(candidate, (OpOverload, OpOverloadPacket, HigherOrderOperator))


def is_same_operator(target: Any, wanted: Any) -> bool:
    """Whether `target` is `wanted`, or one of its overloads."""
    if isinstance(wanted, OpOverloadPacket) and isinstance(target, OpOverload):
        return target.overloadpacket is wanted
    return target is wanted


def operator_path(operator: Any) -> str:
    """Where `operator_named` finds an operator again, also in another process."""
    if isinstance(operator, HigherOrderOperator):
        return f"higher_order.{operator.name()}"  # type: ignore[no-untyped-call]
    return str(operator)


def operator_named(path: str) -> Any:
    found: Any = torch.ops
    for name in path.split("."):
        found = getattr(found, name)
    return found


def target_name(target: Any) -> str:
    """What a user would write for a target: ``aten.add.Tensor``, ``cond``, ``torch.nn.functional.silu``."""
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return str(target)
    if isinstance(target, HigherOrderOperator):
        return str(target.name())  # type: ignore[no-untyped-call]
    if isinstance(target, str):
        return target
    module = getattr(target, "__module__", None)
    name = getattr(target, "__qualname__", None) or getattr(target, "__name__", repr(target))
    return f"{module}.{name}" if module else str(name)
