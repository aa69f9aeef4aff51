"""Ways of computing an operator that may give the bits of eager's CUDA kernel, written in other operators.

A trial decides (`exact_trials.py`), so that nothing here is believed, and a wrong guess costs a
compile only. What the kernels do is read from ATen's CUDA sources: which type they compute in, where
nvcc contracts a product and a sum, which zero they return.

Checked on torch 2.11 and 2.13: that `aten.addcmul` with a value of 1 is lowered to one fused
multiply-add while `emulate_precision_casts` is on, and that only `aten.div` is rounded as eager's
division is (Triton approximates the one of `aten.reciprocal`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class NotExactError(Exception):
    """Says why an operator has to stay eager."""


CANDIDATES: dict[str, list[Callable[..., Any]]] = {}
"""By operator, the likeliest first."""


def _may_be(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            CANDIDATES.setdefault(f"aten.{name}", []).append(function)
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


def _inverse(x: Tensor) -> Tensor:
    return torch.div(_one(x), x)


def _logistic(x: Tensor) -> Tensor:
    return _inverse(1 + torch.exp(-x))


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
        -1.0: lambda: _inverse(x),
        -2.0: lambda: _inverse(x * x),
    }
    if exponent not in cases:
        raise NotExactError("has no special case for its exponent")
    result: Tensor = cases[exponent]()
    return result


@_in_float32("reciprocal.default")
def _reciprocal(x: Tensor) -> Tensor:
    return _inverse(x)


@_in_float32("neg.default")
def _neg(x: Tensor) -> Tensor:
    """Triton takes it for ``0 - x``, which makes -0 of no zero."""
    return x * -1.0


@_may_be("relu.default")
def _relu(x: Tensor) -> Tensor:
    """Of two zeros CUDA's maximum is the positive one; Triton's is the first."""
    return torch.where(x <= 0, torch.zeros_like(x), x)


def _both_zero(a: Tensor, b: Tensor) -> Tensor:
    return (a == 0) & (b == 0)


def _greater(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(_both_zero(a, b), a + b, torch.maximum(a, b))


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(_both_zero(a, b), (a * -1.0 + b * -1.0) * -1.0, torch.minimum(a, b))


@_in_float32("maximum.default")
def _maximum(a: Tensor, b: Tensor) -> Tensor:
    return _greater(a, b)


@_in_float32("minimum.default")
def _minimum(a: Tensor, b: Tensor) -> Tensor:
    return _smaller(a, b)


@_in_float32("fmax.default")
def _fmax(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(torch.isnan(a), b, torch.where(torch.isnan(b), a, _greater(a, b)))


@_in_float32("fmin.default")
def _fmin(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(torch.isnan(a), b, torch.where(torch.isnan(b), a, _smaller(a, b)))


@_in_float32("clamp.Tensor")
def _clamp(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = _greater(x, low)
    return x if high is None else _smaller(x, high)


def _rounded(number: float, like: Tensor) -> float:
    """A number as the kernel has it, which takes it in the type of its operand."""
    if not like.is_floating_point():
        raise NotExactError("works on integers")
    return float(torch.tensor(number, dtype=like.dtype, device="cpu"))


def _compares(name: str, compare: Callable[[Tensor, float], Tensor]) -> None:
    def compared(x: Tensor, number: float) -> Tensor:
        return compare(x, _rounded(number, x))

    _may_be(f"{name}.Scalar")(compared)


for _name in ("ge", "gt", "le", "lt", "eq", "ne"):
    _compares(_name, getattr(torch, _name))


@_may_be("threshold.default")
def _threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    return torch.where(x <= _rounded(threshold, x), _constant(x, _rounded(value, x)), x)


@_may_be("threshold_backward.default")
def _threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    return torch.where(x <= _rounded(threshold, x), torch.zeros_like(grad), grad)


def _remains(a: Tensor, b: Tensor) -> Tensor:
    rest = torch.fmod(a, b)
    return torch.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest)


@_in_float32("remainder.Tensor")
def _remainder(a: Tensor, b: Tensor) -> Tensor:
    return _remains(a, b)


def _with_number(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: float) -> Tensor:
    """In float32 at least, with a number that was rounded to the operand's type."""
    wide = _to(a, torch.promote_types(a.dtype, torch.float32))
    return _to(function(wide, _constant(wide, _rounded(b, a))), a.dtype)


@_may_be("remainder.Scalar")
def _remainder_by_number(a: Tensor, b: float) -> Tensor:
    return _with_number(_remains, a, b)


@_may_be("fmod.Scalar")
def _fmod_by_number(a: Tensor, b: float) -> Tensor:
    return _with_number(torch.fmod, a, b)


def _floored(a: Tensor, b: Tensor, quotient: Callable[[Tensor], Tensor]) -> Tensor:
    rest = torch.fmod(a, b)
    whole = quotient(a - rest)
    whole = torch.where((rest != 0) & ((b < 0) != (rest < 0)), whole - 1, whole)
    down = torch.floor(whole)
    down = torch.where(whole - down > 0.5, down + 1, down)
    zero = torch.copysign(torch.zeros_like(a), quotient(a))
    return torch.where(b == 0, quotient(a), torch.where(whole != 0, down, zero))


def _floor_divided(a: Tensor, b: Tensor | float) -> Tensor:
    if isinstance(b, Tensor):
        return _floored(a, b, lambda x: torch.div(x, b))
    if b == 0:
        raise NotExactError("divides by the number 0")
    inverse = _to_float32(1 / _to_float32(float(b)))
    return _floored(a, _constant(a, b), lambda x: x * inverse)


@_in_float32("div.Tensor_mode")
def _div_in_mode(a: Tensor, b: Tensor | float, *, rounding_mode: str | None) -> Tensor:
    if rounding_mode == "floor":
        return _floor_divided(a, b)
    if rounding_mode != "trunc" or not isinstance(b, Tensor):
        raise NotExactError("has no such mode")
    return torch.trunc(torch.div(a, b))


@_in_float32("floor_divide.default")
def _floor_divide(a: Tensor, b: Tensor | float) -> Tensor:
    return _floor_divided(a, b)


def _whole_loss(reduction: int) -> None:
    if reduction != 0:
        raise NotExactError("isn't computed element by element")


@_may_be("mse_loss.default")
def _mse_loss(x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    _whole_loss(reduction)
    step = x - y
    return step * step


@_may_be("mse_loss_backward.default")
def _mse_loss_backward(grad: Tensor, x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    _whole_loss(reduction)
    return 2.0 * (x - y) * grad


@_in_float32("mse_loss_backward.default")
def _mse_loss_backward_wide(grad: Tensor, x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    _whole_loss(reduction)
    return 2.0 * (x - y) * grad
