"""Some 150 common operators and usual fused patterns, with inputs that show where bits could differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

SPECIAL = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 0.3, -0.3, 2.0, -2.0, 3.0, -3.0, 6.0, 20.0, 88.7, -104.0),
    *(float("inf"), float("-inf"), float("nan"), 1e-40, -1e-40, 1.4e-45, 3.4e38, -3.4e38),
)
FLAT = 65_541
"""Every value of bfloat16 and then some; more than one thread's share, and no multiple of a vector."""


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: Its name in the table.
        kind: ``"pointwise"``, ``"other"`` or ``"pattern"``.
        run: Takes the inputs and returns a tensor or several; called once for each layout.
        inputs: Makes the inputs of each layout, given a type and a device.
        gradients: Whether it is also run backward.
    """

    name: str
    kind: str
    run: Callable[..., Any]
    inputs: Callable[[torch.dtype, str], list[tuple[Any, ...]]]
    gradients: bool = True


def values(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    """Values of all magnitudes, with special ones in between."""
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(shape, generator=generator)
    wide = plain * 10 ** (torch.rand(shape, generator=generator) * 12 - 6)
    chosen = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=generator)]
    kind = torch.rand(shape, generator=generator)
    mixed = torch.where(kind < 0.5, plain, torch.where(kind < 0.85, wide, chosen))
    return mixed.to(dtype).to(device)


def mild(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def every_value(dtype: torch.dtype, device: str) -> torch.Tensor:
    """All values of bfloat16; of float32 many."""
    if dtype is torch.bfloat16:
        bits = torch.arange(FLAT) % 65_536 - 32_768
        return bits.to(torch.int16).view(torch.bfloat16).to(device)
    many = values((FLAT,), dtype, device, 1)
    if dtype is torch.float32:
        many.view(torch.int32)[100:FLAT:1000] = 0x7F800001  # a signalling NaN
    return many


def layouts(count: int) -> Callable[[torch.dtype, str], list[tuple[Any, ...]]]:
    """Contiguous with leftovers, transposed with gaps, one row broadcast, a single number."""

    def make(dtype: torch.dtype, device: str) -> list[tuple[Any, ...]]:
        flat = [values((FLAT,), dtype, device, seed) for seed in range(count)]
        flat[0] = every_value(dtype, device)
        turned = [values((37, 65), dtype, device, 10 + s).t()[:, ::2] for s in range(count)]
        single = [values((), dtype, device, 20 + seed) for seed in range(count)]
        made = [tuple(flat), tuple(turned), tuple(single)]
        if count > 1:
            rows = [values((65,), dtype, device, 30 + seed) for seed in range(count - 1)]
            made.append((values((37, 65), dtype, device, 40), *rows))
        return made

    return make


def _pointwise(name: str, run: Callable[..., Any], count: int = 1, gradients: bool = True) -> Case:
    return Case(name, "pointwise", run, layouts(count), gradients)


_UNARY = (
    *(
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
    ),
    *(
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "abs",
    ),
    *("neg", "square", "frac", "erf", "erfc", "erfinv", "lgamma", "digamma", "i0", "sigmoid"),
    *("relu", "nan_to_num", "deg2rad", "rad2deg", "sinc", "logit"),
)
_WITHOUT_GRADIENT = (
    *("sign", "sgn", "floor", "ceil", "round", "trunc", "isnan", "isinf", "isfinite", "signbit"),
    *("logical_not",),
)
_ACTIVATIONS = (
    *("silu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "mish", "softplus", "elu", "selu"),
    *("celu", "leaky_relu", "logsigmoid", "softsign", "tanhshrink", "hardshrink", "softshrink"),
    *("gelu",),
)
_BINARY = (
    *(
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "atan2",
        "fmod",
        "remainder",
        "maximum",
        "minimum",
        "fmax",
    ),
    *("fmin", "hypot", "copysign", "logaddexp", "logaddexp2", "xlogy", "ldexp"),
)
_BINARY_WITHOUT_GRADIENT = (
    *("nextafter", "eq", "ne", "lt", "le", "gt", "ge", "floor_divide", "heaviside"),
    *("logical_and", "logical_or", "logical_xor"),
)

POINTWISE: tuple[Case, ...] = (
    *(_pointwise(name, getattr(torch, name)) for name in _UNARY),
    *(_pointwise(name, getattr(torch, name), gradients=False) for name in _WITHOUT_GRADIENT),
    *(_pointwise(f"F.{name}", getattr(F, name)) for name in _ACTIVATIONS),
    _pointwise("F.gelu tanh", lambda x: F.gelu(x, approximate="tanh")),
    _pointwise("F.threshold", lambda x: F.threshold(x, 0.1, 2.0)),
    *(_pointwise(name, getattr(torch, name), 2) for name in _BINARY),
    *(_pointwise(name, getattr(torch, name), 2, False) for name in _BINARY_WITHOUT_GRADIENT),
    _pointwise("add number", lambda x: x + 0.3),
    _pointwise("add alpha", lambda x, y: torch.add(x, y, alpha=0.3), 2),
    _pointwise("sub alpha", lambda x, y: torch.sub(x, y, alpha=0.3), 2),
    _pointwise("rsub", lambda x: 0.3 - x),
    _pointwise("mul number", lambda x: x * 0.3),
    _pointwise("div number", lambda x: x / 0.3),
    _pointwise("number div", lambda x: 0.3 / x),
    _pointwise("remainder number", lambda x: torch.remainder(x, 0.3)),
    _pointwise("fmod number", lambda x: torch.fmod(x, 0.3)),
    _pointwise("pow 2", lambda x: x**2),
    _pointwise("pow 3", lambda x: x**3),
    _pointwise("pow 0.5", lambda x: x**0.5),
    _pointwise("pow -0.5", lambda x: x**-0.5),
    _pointwise("pow -1, -2", lambda x: (x**-1, x**-2)),
    _pointwise("pow 2.3", lambda x: x**2.3),
    _pointwise("number pow", lambda x: 2.3**x),
    _pointwise("div trunc", lambda x, y: torch.div(x, y, rounding_mode="trunc"), 2, False),
    _pointwise("div floor", lambda x, y: torch.div(x, y, rounding_mode="floor"), 2, False),
    _pointwise("clamp", lambda x: torch.clamp(x, -0.3, 0.7)),
    _pointwise("clamp_min, clamp_max", lambda x: (x.clamp(min=-0.3), x.clamp(max=0.3))),
    _pointwise("clamp tensors", torch.clamp, 3),
    _pointwise("compare with number", lambda x: (x < 0.3, x >= -0.3, x == 0.3), 1, False),
    _pointwise("where", lambda x, y: torch.where(x > 0.3, x, y), 2),
    _pointwise("masked_fill", lambda x: x.masked_fill(x < 0.3, 0.7)),
    _pointwise("addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=0.3), 3),
    _pointwise("lerp", torch.lerp, 3),
    _pointwise("lerp number", lambda x, y: (torch.lerp(x, y, 0.3), torch.lerp(x, y, 0.7)), 2),
    _pointwise("to float32", lambda x: x.to(torch.float32)),
    _pointwise("to bfloat16", lambda x: x.to(torch.bfloat16)),
    _pointwise("to bool", lambda x: x.to(torch.bool), 1, False),
    _pointwise("F.mse_loss none", lambda x, y: F.mse_loss(x, y, reduction="none"), 2),
    _pointwise("F.l1_loss none", lambda x, y: F.l1_loss(x, y, reduction="none"), 2),
    _pointwise("F.smooth_l1_loss none", lambda x, y: F.smooth_l1_loss(x, y, reduction="none"), 2),
    _pointwise("F.huber_loss none", lambda x, y: F.huber_loss(x, y, reduction="none"), 2),
    _pointwise(
        "F.bce_with_logits none",
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.expand_as(x), reduction="none"),
        2,
    ),
    _pointwise("F.glu", lambda x: F.glu(torch.stack([x, x.sin()]), 0)),
    _pointwise("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z), 3),
)


# --- operators that sum, move or draw ----------------------------------------------------------------


def _matrix(*shapes: tuple[int, ...]) -> Callable[[torch.dtype, str], list[tuple[Any, ...]]]:
    return lambda dtype, device: [
        tuple(mild(shape, dtype, device, seed) for seed, shape in enumerate(shapes))
    ]


def _other(
    name: str, run: Callable[..., Any], *shapes: tuple[int, ...], gradients: bool = True
) -> Case:
    return Case(name, "other", run, _matrix(*(shapes or ((37, 65),))), gradients)


OTHER: tuple[Case, ...] = (
    _other("sum", lambda x: x.sum(-1)),
    _other("mean", lambda x: x.mean(-1)),
    _other("var", lambda x: x.var(-1)),
    _other("amax", lambda x: x.amax(-1)),
    _other("argmax", lambda x: x.argmax(-1), gradients=False),
    _other("cumsum", lambda x: x.cumsum(-1)),
    _other("prod", lambda x: x.prod(-1)),
    _other("logsumexp", lambda x: x.logsumexp(-1)),
    _other("norm", lambda x: x.norm(dim=-1)),
    _other("softmax", lambda x: x.softmax(-1)),
    _other("log_softmax", lambda x: x.log_softmax(-1)),
    _other("sort", lambda x: x.sort(-1).values),
    _other("mm", torch.mm, (37, 65), (65, 20)),
    _other("F.linear", F.linear, (37, 65), (20, 65), (20,)),
    _other("F.layer_norm", lambda x, w, b: F.layer_norm(x, (65,), w, b), (37, 65), (65,), (65,)),
    _other("cat", lambda x, y: torch.cat([x, y * 2], -1), (37, 65), (37, 7)),
    _other("transpose, slice", lambda x: x.t()[1::2] * 2),
    _other("stack, flip", lambda x: torch.stack([x, x.flip(0)]) + 1),
    _other("rand_like", lambda x: torch.rand_like(x) + x),
)


# --- patterns -------------------------------------------------------------------------------------


def _pattern(name: str, run: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Case:
    return Case(name, "pattern", run, _matrix(*shapes), **options)


def rms_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return wide.to(x.dtype) * gain


def layer_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
    return centred * scale * gain + bias


def rope(q: torch.Tensor, k: torch.Tensor, angles: torch.Tensor) -> tuple[torch.Tensor, ...]:
    def turned(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], -1)

    cos, sin = angles.cos(), angles.sin()
    return q * cos + turned(q) * sin, k * cos + turned(k) * sin


def softmax_by_hand(x: torch.Tensor) -> torch.Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    labels = torch.arange(logits.shape[0], device=logits.device) % logits.shape[1]
    return F.cross_entropy(logits.float(), labels)


def adam_step(
    p: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor, square: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    mean = mean.lerp(grad, 1 - 0.9)
    square = square.abs() * 0.999 + grad * grad * (1 - 0.999)
    return (
        p * (1 - 1e-3 * 0.01)
        - 1e-3 / (1 - 0.9**3) * mean / (square.sqrt() / (1 - 0.999**3) ** 0.5 + 1e-8),
        mean,
        square,
    )


PATTERNS: tuple[Case, ...] = (
    _pattern("RMS norm", rms_norm, (5, 7, 96), (96,)),
    _pattern("F.rms_norm", lambda x, w: F.rms_norm(x, (96,), w), (5, 7, 96), (96,)),
    _pattern("layer norm by hand", layer_norm, (5, 7, 96), (96,), (96,)),
    _pattern("RoPE", rope, (2, 3, 7, 16), (2, 3, 7, 16), (7, 16)),
    _pattern("SwiGLU", lambda x, y: F.silu(x) * y, (5, 7, 99), (5, 7, 99)),
    _pattern("GeGLU tanh", lambda x, y: F.gelu(x, approximate="tanh") * y, (5, 99), (5, 99)),
    _pattern("GELU by hand", lambda x: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)), (5, 99)),
    _pattern("squared ReLU", lambda x: F.relu(x).square(), (5, 99)),
    _pattern("softmax by hand", softmax_by_hand, (5, 99)),
    _pattern("masked scaled softmax", lambda x: (x * 0.125).tril().softmax(-1) * 2, (33, 33)),
    _pattern("cross entropy", cross_entropy, (33, 50)),
    _pattern("dropout, residual", lambda x, y: F.dropout(x * 2, 0.1) + y, (5, 99), (5, 99)),
    _pattern("residual, RMS norm", lambda x, y, w: rms_norm(x + y, w), (5, 96), (5, 96), (96,)),
    _pattern(
        "layer scale, bias", lambda x, b, s, r: r + (x + b) * s, (5, 99), (99,), (99,), (5, 99)
    ),
    _pattern("Adam step", adam_step, (999,), (999,), (999,), (999,), gradients=False),
    _pattern("tanh soft cap", lambda x: torch.tanh(x / 30.0) * 30.0, (5, 99)),
    _pattern(
        "L2 normalise", lambda x: x / (x.square().sum(-1, keepdim=True).sqrt() + 1e-6), (5, 99)
    ),
)

CASES: tuple[Case, ...] = (*POINTWISE, *OTHER, *PATTERNS)
