"""What an operator may be compiled to on CUDA so that it gives eager's bits: candidates, none believed.

The first candidate is Inductor's own lowering, under the options that make Triton round as eager's
kernels do. For operators that Inductor takes apart in another way than eager's kernel computes them,
others are written down in terms of operators that it doesn't (`cuda_candidates.py`): with `exp` and a
division where Triton's `sigmoid` is an approximation, and with a fused multiply-add where nvcc
contracts, which it does wherever it can. Which of them equals eager, if any does, a trial finds out (`exact_trials.py`).

Checked on torch 2.11 and 2.13: the options by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.node import Node

from .cuda_candidates import CANDIDATES, NotExactError

Candidate: TypeAlias = "Callable[..., Any] | None"
"""A function with the arguments of the operator; None for Inductor's own lowering."""

DEVICES = frozenset({"cuda"})
"""Kinds of devices on which operators are lowered to candidates, not to the formulas of the list."""

OPTIONS: dict[str, Any] = {
    "emulate_precision_casts": True,  # rounds bfloat16 between operators, and contracts nothing
    "eager_numerics.division_rounding": True,
    "eager_numerics.disable_ftz": True,
    "eager_numerics.use_pytorch_libdevice": True,  # torch 2.13
    "use_fast_math": False,
    "pattern_matcher": False,  # or a cast to bfloat16 and back is taken for nothing (torch 2.11)
    "joint_graph_constant_folding": False,
}
"""For regions on CUDA; those that the torch at hand has."""


_RARELY_DIFFER = frozenset({"aten.atan2.default"})
"""What a trial may take for equal: bfloat16 passed one and failed another (H100, torch 2.11)."""


def check(node: Node, *, known: bool) -> None:
    """Refuse what no trial of an operator by itself could decide.

    Args:
        node: On CUDA, strided, without gradients.
        known: Whether the operator is in the list for the CPU.

    Raises:
        NotExactError: It isn't element by element, or takes what is known when it runs only.
    """
    target = node.target
    assert isinstance(target, OpOverload)
    if str(target) in _RARELY_DIFFER:
        raise NotExactError("differs from eager for a few of very many inputs")
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise NotExactError("draws random numbers")
    if target._schema.is_mutable:
        raise NotExactError("writes into its operands")
    if not known and torch.Tag.pointwise not in target.tags:
        raise NotExactError("isn't computed element by element")
    if not all(isinstance(n.meta.get("val"), Tensor) for n in node.all_input_nodes):
        raise NotExactError("takes a number that isn't known when it is compiled")
    if not node.all_input_nodes:
        raise NotExactError("has no operand")


def is_tried(node: Node) -> bool:
    """Whether a node is an operator over tensors on a device where candidates are tried."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    value = node.meta.get("val")
    results = value if isinstance(value, (tuple, list)) else (value,)
    values = [*results, *(n.meta.get("val") for n in node.all_input_nodes)]
    return bool(node.all_input_nodes) and all(
        isinstance(v, Tensor) and v.device.type in DEVICES for v in values
    )


def candidates(node: Node) -> tuple[Candidate, ...]:
    """What an operator may be compiled to, the likeliest first."""
    return (*CANDIDATES.get(str(node.target), ()), None)
