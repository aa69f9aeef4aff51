"""What an operator may be compiled to on CUDA so that it gives eager's bits: candidates, none believed.

The first candidate is Inductor's own lowering, under the options that make Triton round as eager's
kernels do. For operators that Inductor takes apart in another way than eager's kernel computes them,
others are written down here in terms of operators that it doesn't: with `exp` and a division where
Triton's `sigmoid` is an approximation, and with a fused multiply-add where nvcc contracts, which it
does wherever it can. Which of them equals eager, if any does, a trial finds out (`exact_trials.py`).

Checked on torch 2.11 and 2.13: that `aten.addcmul` with a value of 1 is lowered to one fused
multiply-add while `emulate_precision_casts` is on.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.node import Node

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


class NotExactError(Exception):
    """Says why an operator has to stay eager."""


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
    return (*_CANDIDATES.get(str(node.target), ()), None)


_CANDIDATES: dict[str, list[Callable[..., Any]]] = {}


def _may_be(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            _CANDIDATES.setdefault(f"aten.{name}", []).append(function)
        return function

    return register


def _in_float32(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A candidate that computes in float32 at least, and rounds once."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wide(*args: Any, **kwargs: Any) -> Tensor:
            tensors = [a for a in args if isinstance(a, Tensor)]
            result = tensors[0].dtype
            for tensor in tensors[1:]:
                result = torch.promote_types(result, tensor.dtype)
            if not result.is_floating_point:
                raise NotExactError("works on integers")
            widened = [
                _to(a, torch.promote_types(result, torch.float32)) if isinstance(a, Tensor) else a
                for a in args
            ]
            return _to(function(*widened, **kwargs), result)

        return _may_be(name)(wide)

    return register


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c``, rounded once."""
    return torch.addcmul(c, a, b)


def _one(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def _constant(x: Tensor, number: float) -> Tensor:
    return torch.full_like(x, number)


def _logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


@_in_float32("sigmoid.default")
def _sigmoid(x: Tensor) -> Tensor:
    return _logistic(x)


@_in_float32("silu.default")
def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


@_in_float32("silu_backward.default")
def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    s = _logistic(x)
    return grad * s * _fma(x, 1 - s, _one(x))


@_in_float32("silu_backward.default")
def _silu_backward_plainly(grad: Tensor, x: Tensor) -> Tensor:
    s = _logistic(x)
    return grad * s * (1 + x * (1 - s))


@_in_float32("sigmoid_backward.default")
def _sigmoid_backward(grad: Tensor, s: Tensor) -> Tensor:
    return grad * (1 - s) * s


@_may_be("sigmoid_backward.default")
def _sigmoid_backward_rounded(grad: Tensor, s: Tensor) -> Tensor:
    return grad * (1 - s) * s


@_in_float32("tanh_backward.default")
def _tanh_backward(grad: Tensor, t: Tensor) -> Tensor:
    return grad * _fma(-t, t, _one(t))


@_may_be("tanh_backward.default")
def _tanh_backward_rounded(grad: Tensor, t: Tensor) -> Tensor:
    return grad * (1 - t * t)


_BETA = math.sqrt(2) * (2 / math.sqrt(math.pi)) * 0.5
_KAPPA = 0.044715


@_may_be("gelu.default")
def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    wide = _to(x, torch.promote_types(x.dtype, torch.float32))
    if approximate == "none":
        result = wide * 0.5 * (1 + torch.erf(wide * math.sqrt(0.5)))
    else:
        result = 0.5 * wide * (1 + torch.tanh(_gelu_inner(wide, wide * wide * wide)))
    return _to(result, x.dtype)


def _gelu_inner(x: Tensor, cube: Tensor) -> Tensor:
    return _BETA * _fma(_constant(x, _KAPPA), cube, x)


def _gelu_backward(grad: Tensor, x: Tensor, approximate: str, *, halved_last: bool) -> Tensor:
    if approximate == "none":
        beta = (2 / math.sqrt(math.pi)) * math.sqrt(0.5) * 0.5
        total = 1 + torch.erf(x * math.sqrt(0.5))
        density = torch.exp(-0.5 * x * x) * beta
        if halved_last:
            return grad * _fma(_constant(x, 0.5), total, x * density)
        return grad * _fma(x, density, 0.5 * total)
    square = x * x
    t = torch.tanh(_gelu_inner(x, square * x))
    slope = 0.5 * x * _fma(-t, t, _one(x))
    inner = _BETA * _fma(_constant(x, 3 * _KAPPA), square, _one(x))
    if halved_last:
        return grad * _fma(_constant(x, 0.5), 1 + t, slope * inner)
    return grad * _fma(slope, inner, 0.5 * (1 + t))


@_in_float32("gelu_backward.default")
def _gelu_backward_1(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    return _gelu_backward(grad, x, approximate, halved_last=False)


@_in_float32("gelu_backward.default")
def _gelu_backward_2(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    return _gelu_backward(grad, x, approximate, halved_last=True)


@_in_float32("mish.default")
def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(torch.exp(x)))


@_in_float32("mish_backward.default")
def _mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    t = torch.tanh(torch.log1p(torch.exp(x)))
    return grad * _fma(x * _logistic(x), _fma(-t, t, _one(t)), t)


@_in_float32("softplus.default")
def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(x * beta > threshold, x, torch.log1p(torch.exp(x * beta)) / beta)


@_in_float32("softplus_backward.default")
def _softplus_backward(grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    z = torch.exp(x * beta)
    return torch.where(x * beta > threshold, grad, grad * z / (z + 1))


@_in_float32("elu.default")
def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return torch.where(x > 0, x * scale, torch.expm1(x * input_scale) * (alpha * scale))


@_in_float32("elu_backward.default")
def _elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    factor = alpha * scale
    if is_result:
        return torch.where(x <= 0, grad * input_scale * (x + factor), grad * scale)
    return torch.where(
        x <= 0, grad * input_scale * factor * torch.exp(x * input_scale), grad * scale
    )


@_in_float32("hardswish.default")
def _hardswish(x: Tensor) -> Tensor:
    return x * torch.clamp(x + 3, 0, 6) * (1 / 6)


@_in_float32("hardsigmoid.default")
def _hardsigmoid(x: Tensor) -> Tensor:
    return torch.clamp(x + 3, 0, 6) * (1 / 6)


@_in_float32("hardswish_backward.default")
def _hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    inside = torch.where(x < 3, grad * (x / 3 + 0.5), grad)
    return torch.where(x <= -3, torch.zeros_like(x), inside)


@_in_float32("hardsigmoid_backward.default")
def _hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.where((x > -3) & (x < 3), grad * (1 / 6), torch.zeros_like(x))


@_in_float32("add.Tensor")
def _add(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor:
    if alpha == 1 or not isinstance(y, Tensor):
        raise NotExactError("has nothing to contract")
    return _fma(_constant(y, alpha), y, x)


@_in_float32("sub.Tensor")
def _sub(x: Tensor, y: Tensor | float, *, alpha: float = 1) -> Tensor:
    if alpha == 1 or not isinstance(y, Tensor):
        raise NotExactError("has nothing to contract")
    return _fma(_constant(y, -alpha), y, x)


@_in_float32("addcdiv.default")
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return _fma(_constant(a, value), a / b, x)


@_in_float32("lerp.Tensor")
def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    step = end - start
    far = _fma(-step, 1 - weight, end)
    return torch.where(weight.abs() < 0.5, _fma(weight, step, start), far)


@_in_float32("lerp.Scalar")
def _lerp_by_number(start: Tensor, end: Tensor, weight: float) -> Tensor:
    step = end - start
    if abs(weight) < 0.5:
        return _fma(_constant(step, weight), step, start)
    # The weight is a float32 by the time that it is taken from 1.
    return _fma(-step, 1 - _constant(step, weight), end)


@_in_float32("logaddexp.default")
def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    sums = torch.maximum(a, b) + torch.log1p(torch.exp(-(a - b).abs()))
    return torch.where(torch.isinf(a) & (a == b), a, sums)


@_in_float32("log_sigmoid_backward.default")
def _log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    below = x < 0
    z = torch.exp(-x.abs())
    side = torch.where(below, _one(x), -_one(x))
    return grad * (below.to(x.dtype) - side * (z / (1 + z)))


@_in_float32("div.Tensor")
def _div_by_number(x: Tensor, number: Tensor | float) -> Tensor:
    """Eager multiplies by the reciprocal of a number."""
    if isinstance(number, Tensor) or number == 0 or x.dtype is torch.float64:
        raise NotExactError("has no number below")
    return x * _to_float32(1 / _to_float32(float(number)))


def _to_float32(number: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:
        raise NotExactError("takes a number that float32 doesn't have") from None


@_in_float32("pow.Tensor_Scalar")
def _pow_in_float32(x: Tensor, exponent: float) -> Tensor:
    result: Tensor = _pow_by_products(x, exponent)
    return result


@_may_be("pow.Tensor_Scalar")
def _pow_by_products(x: Tensor, exponent: float) -> Tensor:
    """ATen's special cases."""
    cases: dict[float, Callable[[], Tensor]] = {
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        0.5: lambda: torch.sqrt(x),
        -0.5: lambda: torch.rsqrt(x),
        -1.0: lambda: 1 / x,
        -2.0: lambda: 1 / (x * x),
    }
    if exponent not in cases:
        raise NotExactError("has no special case for its exponent")
    result: Tensor = cases[exponent]()
    return result
