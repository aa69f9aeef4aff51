"""Comparing tensors: how far apart, in which sense, and whether that is within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

Tolerance: TypeAlias = tuple[float, float]
"""Relative and absolute, as `torch.testing.assert_close` has them."""

_DEFAULTS: Mapping[torch.dtype, Tolerance] = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements compared at a time: what a comparison holds besides the tensors stays below 100 MB.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Comparison:
    """One tensor of a compiled run next to eager's.

    Attributes:
        what: Which tensor: ``"output 0"``, ``"gradient of layers.0.weight"``.
        dtype: Its dtype, ``"float32"``.
        elements: How many elements it has.
        max_abs: Largest absolute difference from eager; NaN and infinities left out.
        max_rel: Largest difference relative to eager's element.
        max_ulp: Largest difference in units in the last place of the dtype; 0 for integers.
        bitwise: Whether all bits are equal (of a NaN only that it is one).
        nonfinite: Elements that are NaN or infinite in one and not the same in the other.
        beyond: Elements beyond the tolerance.
        compiled_error: Largest distance of the compiled result from the float64 reference, or None
            where there is none.
        eager_error: Likewise eager's.
        problem: Why the two can't be compared (another shape or dtype), or ``""``.
    """

    what: str
    dtype: str
    elements: int
    max_abs: float = 0.0
    max_rel: float = 0.0
    max_ulp: int = 0
    bitwise: bool = True
    nonfinite: int = 0
    beyond: int = 0
    compiled_error: float | None = None
    eager_error: float | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.beyond and not self.nonfinite and not self.problem

    @property
    def further(self) -> bool | None:
        """Whether the compiled result is further from float64 than eager's; None if unknown."""
        if self.compiled_error is None or self.eager_error is None:
            return None
        return self.compiled_error > self.eager_error

    def worse(self, other: Comparison) -> Comparison:
        """Both in one: the larger of each difference."""
        ours, theirs = self.compiled_error, other.compiled_error
        return replace(
            self,
            elements=max(self.elements, other.elements),
            max_abs=max(self.max_abs, other.max_abs),
            max_rel=max(self.max_rel, other.max_rel),
            max_ulp=max(self.max_ulp, other.max_ulp),
            bitwise=self.bitwise and other.bitwise,
            nonfinite=max(self.nonfinite, other.nonfinite),
            beyond=max(self.beyond, other.beyond),
            compiled_error=theirs
            if ours is None
            else ours
            if theirs is None
            else max(ours, theirs),
            eager_error=_larger(self.eager_error, other.eager_error),
            problem=self.problem or other.problem,
        )


def _larger(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)


@dataclass(frozen=True)
class Tolerances:
    """How far a result may be from eager's.

    Attributes:
        given: By dtype, what the user gave; other dtypes have `torch.testing.assert_close`'s.
    """

    given: Mapping[torch.dtype, Tolerance]

    def of(self, dtype: torch.dtype) -> Tolerance:
        return self.given.get(dtype) or _DEFAULTS.get(dtype, (0.0, 0.0))

    def of_the_whole(self, dtype: torch.dtype) -> float:
        """For results of a whole model: relative to the largest magnitude in the tensor.

        Differences that are within tolerance in each region add up and are spread by what is in
        between; a single element near zero says nothing then.
        """
        if dtype in self.given:
            return 0.0
        return min(100 * self.of(dtype)[0], 0.05)


def compare(
    what: str,
    compiled: torch.Tensor,
    eager: torch.Tensor,
    tolerances: Tolerances,
    *,
    reference: torch.Tensor | None = None,
    whole: bool = False,
) -> Comparison:
    """Compare a tensor of a compiled run with eager's.

    Args:
        what: Name of the tensor, for the result.
        compiled: The tensor.
        eager: What it should be.
        tolerances: How far it may be from that.
        reference: The same in float64, if there is one. An element beyond the tolerance isn't held
            against the compiled one if it is within twice the largest error that eager itself has
            in this tensor: sums in another order, roundings that fusion leaves out.
        whole: Whether this is a result of a whole model (see `Tolerances.of_the_whole`).
    """
    dtype = str(eager.dtype).removeprefix("torch.")
    if compiled.shape != eager.shape or compiled.dtype != eager.dtype:
        problem = f"{_kind(compiled)} instead of {_kind(eager)}"
        return Comparison(what, dtype, eager.numel(), bitwise=False, problem=problem)
    if compiled.device != eager.device:
        problem = f"on {compiled.device} instead of {eager.device}"
        return Comparison(what, dtype, eager.numel(), bitwise=False, problem=problem)
    tensors = [_flat(t) for t in (compiled, eager)]
    reference = None if reference is None else _flat(reference)
    rtol, atol = tolerances.of(eager.dtype)
    result = Comparison(what, dtype, eager.numel())
    scale = _largest(tensors[1]) * tolerances.of_the_whole(eager.dtype) if whole else 0.0
    if reference is not None:
        ours, theirs = (_furthest(t, reference) for t in tensors)
        result = replace(result, compiled_error=ours, eager_error=theirs)
        allowed = 2 * theirs
    else:
        allowed = 0.0
    for start in range(0, tensors[1].numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        found = _compare_chunk(
            tensors[0][part],
            tensors[1][part],
            None if reference is None else reference[part],
            rtol,
            max(atol, scale),
            allowed,
        )
        result = replace(
            result.worse(replace(found, what=what, dtype=dtype)),
            beyond=result.beyond + found.beyond,
            nonfinite=result.nonfinite + found.nonfinite,
            elements=eager.numel(),
        )
    return result


def _compare_chunk(
    compiled: torch.Tensor,
    eager: torch.Tensor,
    reference: torch.Tensor | None,
    rtol: float,
    atol: float,
    allowed: float,
) -> Comparison:
    bitwise = _bitwise_equal(compiled, eager)
    if bitwise:
        return Comparison("", "", eager.numel())
    c, e = compiled.to(torch.float64), eager.to(torch.float64)
    finite = c.isfinite() & e.isfinite()
    same = (c == e) | (c.isnan() & e.isnan())
    nonfinite = int((~finite & ~same).sum())
    difference = torch.where(finite, (c - e).abs(), 0.0)
    beyond = difference > atol + rtol * torch.where(finite, e, 0.0).abs()
    if not eager.is_floating_point():
        beyond = compiled != eager
    if reference is not None:
        beyond &= ~((c - reference).abs() <= allowed)
    relative = torch.where(difference > 0, difference / e.abs(), 0.0)
    return Comparison(
        "",
        "",
        eager.numel(),
        max_abs=_max(difference),
        max_rel=_max(relative),
        max_ulp=_ulp(compiled, eager, finite) if eager.is_floating_point() else 0,
        bitwise=False,
        nonfinite=nonfinite,
        beyond=int(beyond.sum()),
    )


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """One dimension of plain numbers; complex ones as pairs."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.reshape(-1)


def _bitwise_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    bits = _BITS[one.element_size()]
    return bool(((one.view(bits) == other.view(bits)) | (one.isnan() & other.isnan())).all())


def _ulp(one: torch.Tensor, other: torch.Tensor, where: torch.Tensor) -> int:
    """How many representable numbers lie between, at most."""
    a, b = _ordered(one), _ordered(other)
    # Of float64 the distance may not fit: numbers of opposite sign are told apart by halves.
    halves = a // 2 - b // 2
    largest = torch.iinfo(torch.int64).max
    distance = torch.where(halves.abs() > largest // 2 - 1, largest, (a - b).abs())
    return int(torch.where(where, distance, 0).max())


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats, neighbours one apart."""
    bits = tensor.view(_BITS[tensor.element_size()]).to(torch.int64)
    lowest = -(1 << (8 * tensor.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)


def _furthest(tensor: torch.Tensor, reference: torch.Tensor) -> float:
    largest = 0.0
    for t, r in _chunks(tensor, reference):
        distance = (t.to(torch.float64) - r).abs()
        largest = max(largest, _max(torch.where(distance.isfinite(), distance, 0.0)))
    return largest


def _largest(tensor: torch.Tensor) -> float:
    if not tensor.is_floating_point():
        return 0.0
    return max(
        (_max(torch.nan_to_num(t.abs(), 0.0, 0.0, 0.0)) for (t,) in _chunks(tensor)), default=0
    )


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    for start in range(0, tensors[0].numel(), _CHUNK):
        yield tuple(tensor[start : start + _CHUNK] for tensor in tensors)


def _max(tensor: torch.Tensor) -> float:
    value = float(tensor.max()) if tensor.numel() else 0.0
    return math.inf if math.isnan(value) else value


def _kind(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype}[{', '.join(map(str, tensor.shape))}]"
