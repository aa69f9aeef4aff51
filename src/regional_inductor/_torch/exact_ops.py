"""Which operators a region with ``numerics="eager"`` may hold, and what each computes on the CPU.

An allow-list: what isn't here is left eager, by name. Element-wise operators in float32 and bfloat16
have a formula (`exact_formulas.py`); operators that only move data, and those on integers and
booleans, are lowered by Inductor itself, which can't change a bit of them.

The list was proven on torch 2.13 with MKL and AVX512. Elsewhere, and on CUDA, where Inductor's own
lowerings and those of `exact_cuda.py` are candidates, an operator is tried before it is compiled
(`exact_trials.py`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import Node

from . import exact_cuda, exact_expansions, exact_gelu
from . import exact_formulas as f
from .cuda_candidates import NotExactError as _NotExactError
from .exact_formulas import Formula
from .loops import ALL_VECTOR, contiguous_strides, one_dense_block, scalar_positions
from .symbols import symbols_of

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))
"""Versions of torch whose Inductor takes our operator; on others everything is left eager."""
PROVEN = (((2, 13), "AVX512"),)
"""Versions and vector instructions on which the whole list was compared with eager, with MKL."""

Operand: TypeAlias = "Node | float"
Entry: TypeAlias = Callable[[Any], "tuple[Formula, list[Any]]"]

_FLOATS = (torch.float32, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_TYPES = {
    "cpu": (*_FLOATS, *_INTEGERS),
    "cuda": (*_FLOATS, torch.float16, torch.float64, *_INTEGERS),
}
_VECTOR_BYTES = {"AVX512": 64, "AVX2": 32}


@dataclass(frozen=True)
class Exact:
    """An operator as its formula over operands.

    Attributes:
        formula: What is computed.
        operands: Nodes, then numbers, in the formula's order.
        rounds_to: The type that results and intermediate results have in eager.
        result: The dtype of the node's value; bool for comparisons.
        positions: Which elements get the formula's scalar code: see `loops.scalar_positions`.
    """

    formula: Formula
    operands: tuple[Operand, ...]
    rounds_to: torch.dtype
    result: torch.dtype
    positions: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    """Of the result, where they aren't those that TensorIterator gives it."""


def left_eager(node: Node) -> str:
    """Why a node can't be compiled to the very bits of eager, or ``""`` where it can."""
    try:
        _check(node)
    except _NotExactError as reason:
        return str(reason)
    return ""


def moves(node: Node) -> bool:
    """Whether a node only makes views or copies, or selects from a result."""
    return node.target is operator.getitem or str(node.target) in _MOVES


def exact_form(node: Node) -> Exact | None:
    """The formula of a node for which `left_eager` had nothing to say; None if it has none."""
    return _check(node)


def needs_trial(node: Node) -> bool:
    """Whether an operator for which `left_eager` had nothing to say is yet to be compared with eager."""
    if not isinstance(node.target, OpOverload) or str(node.target) in _MOVES | _CONSTANTS:
        return False
    device = _tensors_of(node)[0].device.type
    if device in exact_cuda.DEVICES:
        return True
    capability = torch.backends.cpu.get_cpu_capability()
    if torch._C.has_mkl and (_version(), capability) in PROVEN:
        return False
    if exact_expansions.has_expansion(node):
        return False  # no operand of any other size would do; it is tried with its region
    return str(node.target) in _TUPLES or exact_form(node) is not None


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _tensors_of(node: Node) -> list[torch.Tensor]:
    """The tensors that a node gives and takes."""
    value = node.meta.get("val")
    values = [*(value if isinstance(value, (tuple, list)) else (value,))]
    values += [n.meta.get("val") for n in node.all_input_nodes]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _check(node: Node) -> Exact | None:
    target = node.target
    if target is operator.getitem:
        return _part(node)
    if _version() not in CHECKED_VERSIONS:
        raise _NotExactError(f"not checked on torch {torch.__version__}")
    if not isinstance(target, OpOverload):
        raise _NotExactError("is no operator of ATen; compile through torch.compile")
    value = node.meta.get("val")
    tensors = _tensors_of(node)
    name = str(target)
    if name in _TUPLES:
        value = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(value, torch.Tensor):
        raise _NotExactError("has no single tensor as its result")
    device = value.device.type
    if device not in _TYPES:
        raise _NotExactError(f"is on {device}, for which nothing is proven yet")
    for tensor in tensors:
        if type(tensor) is not FakeTensor or tensor.layout is not torch.strided:
            raise _NotExactError(f"works on a {type(tensor).__name__}, {tensor.layout}")
        if tensor.device != value.device:
            raise _NotExactError(f"works on {tensor.device} and {value.device}")
        if tensor.requires_grad:
            raise _NotExactError(
                "is in a graph that gradients flow through; it has no backward yet"
            )
        if tensor.dtype not in _TYPES[device]:
            raise _NotExactError(f"works on {str(tensor.dtype).removeprefix('torch.')}")
    if name in _MOVES:
        return None
    if name in _CONSTANTS:
        _check_constant(node, value)
        return None
    if device in exact_cuda.DEVICES:
        exact_cuda.check(node, known=name in _ENTRIES or name in _INTEGER_OPS or name in _TUPLES)
        return None
    if name in _TUPLES:
        return None  # its results have the formulas
    if exact_expansions.has_expansion(node):
        if any(symbols_of(tensor) for tensor in tensors):
            raise _NotExactError("is proven for sizes known when it is compiled")
        return None
    if all(tensor.dtype in _INTEGERS for tensor in tensors) and tensors[1:]:
        if name in _INTEGER_OPS and not _has_float_constant(node):
            return None
        raise _NotExactError("isn't proven on integers")
    entry = _ENTRIES.get(name)
    if entry is None:
        raise _NotExactError("isn't in the list of operators known to be exact")
    return _formulated(node, value, entry)


def _part(node: Node) -> Exact | None:
    """One result of an operator that gives several."""
    producer, place = node.args
    formulas = _TUPLES.get(str(producer.target)) if isinstance(producer, Node) else None
    if formulas is None or not isinstance(producer, Node):
        return None
    if node.meta["val"].device.type in exact_cuda.DEVICES:
        return None
    return _formulated(node, node.meta["val"], lambda _: (formulas[place], [producer.args[0]]))  # type: ignore[index]


def _check_constant(node: Node, value: torch.Tensor) -> None:
    """A constant that isn't of its tensor's type would be rounded only where it is stored."""
    if "arange" in str(node.target) and value.dtype not in _INTEGERS:
        raise _NotExactError("counts in floats, which round")
    numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, float)]
    if any(torch.tensor(a, dtype=value.dtype).item() != a and a == a for a in numbers):
        raise _NotExactError("is a constant that its type can't hold exactly")


def _has_float_constant(node: Node) -> bool:
    return any(isinstance(v, float) for v in (*node.args, *node.kwargs.values()))


def _formulated(node: Node, value: torch.Tensor, entry: Entry) -> Exact:
    rounds_to = _compute_dtype(node, value)
    low = rounds_to is not torch.float32
    _vector_bytes()  # of a processor that nobody tried, nothing is known
    formula, operands = entry(_Arguments(node, rounds_to))
    nodes = [o for o in operands if isinstance(o, Node)]
    values = [n.meta["val"] for n in nodes]
    if not all(isinstance(v, torch.Tensor) for v in values) or not all(
        isinstance(o, (Node, int, float)) for o in operands
    ):
        raise _NotExactError("takes a number that isn't known when it is compiled")
    mixed = [v for v in values if v.dtype is not rounds_to and v.dtype is not torch.bool]
    casts = node.target in _CASTS
    if low and mixed and not casts:
        raise _NotExactError("mixes bfloat16 and another type")
    if any(v.dtype in (torch.int64, torch.int32) for v in mixed) and not casts:
        raise _NotExactError("mixes integers and floats")
    positions: tuple[int, ...] = ()
    if formula.depends_on_position:
        if mixed:
            raise _NotExactError(
                "depends on the place of an element in its row, which isn't known for mixed types"
            )
        if node.target is torch.ops.aten.ldexp.Tensor:
            # Two to the power of the second, and then a product that is the same everywhere.
            formula, positions = _placed_as_power(formula, values[1], value.shape, rounds_to)
        else:
            strides = _strides_before(node, values, operands)
            formula, positions = placed(formula, tuple(value.shape), values, rounds_to, strides)
    own = _own_strides(value, values)
    if own and formula.depends_on_position:
        raise _NotExactError("lays its result out in a way of its own")
    return Exact(formula, tuple(operands), rounds_to, value.dtype, positions, own)


def placed(
    formula: Formula,
    shape: tuple[int, ...],
    values: Sequence[torch.Tensor],
    rounds_to: torch.dtype,
    strides: Sequence[tuple[int, ...]] | None = None,
) -> tuple[Formula, tuple[int, ...]]:
    """The formula for operands in some layout, and which elements get its scalar code.

    Args:
        formula: One whose result depends on the place of an element.
        shape: Of the result.
        values: The tensors that eager's kernel reads.
        rounds_to: Their type.
        strides: What TensorIterator sees, where it isn't the strides of `values`.
    """
    if any(symbols_of(v) for v in values):
        raise _NotExactError(
            "depends on the place of an element in its row, which isn't known for symbolic sizes"
        )
    if strides is None:
        strides = [_broadcast_strides(v, torch.Size(shape)) for v in values]
    if formula.in_one_block is not None:
        if one_dense_block(shape, strides):
            return formula.in_one_block, ALL_VECTOR
        formula = replace(formula, in_one_block=None)
    lanes = min(_vector_bytes(), formula.vector_bytes) // rounds_to.itemsize
    return formula, scalar_positions(shape, strides, 2 * lanes)


def _strides_before(
    node: Node, values: Sequence[torch.Tensor], operands: Sequence[Any]
) -> list[tuple[int, ...]]:
    """Strides of what eager's kernel for an operator reads, as TensorIterator sees them."""
    shape = node.meta["val"].shape
    if any(symbols_of(v) for v in values):
        return []
    name = str(node.target)
    strides = [_broadcast_strides(v, shape) for v in values]
    if name in _WITH_NUMBERS_AS_TENSORS:
        numbers = sum(not isinstance(o, Node) for o in operands[:2])
        strides += [(0,) * len(shape)] * numbers
    if name == "aten.pow.Scalar":
        # Its result is there, contiguous, before TensorIterator orders anything.
        strides.insert(0, contiguous_strides(tuple(shape)))
    return strides


def _placed_as_power(
    formula: Formula, exponent: torch.Tensor, shape: torch.Size, rounds_to: torch.dtype
) -> tuple[Formula, tuple[int, ...]]:
    """`placed` for a number to the power of a tensor, which is then broadcast to a shape."""
    own = tuple(exponent.shape)
    strides = [contiguous_strides(own), exponent.stride()]
    formula, positions = placed(formula, own, [exponent], rounds_to, strides)
    if len(positions) > 1:
        weights = (0,) * (len(shape) - len(own)) + tuple(
            0 if size == 1 else weight for size, weight in zip(own, positions[3:], strict=True)
        )
        positions = (*positions[:3], *weights)
    return formula, positions


def _own_strides(value: torch.Tensor, operands: list[torch.Tensor]) -> tuple[int, ...]:
    """Strides of a result that isn't laid out as TensorIterator does it; empty if it is."""
    if not operands or any(symbols_of(v) for v in (value, *operands)):
        return ()
    from torch._prims_common import compute_elementwise_output_strides

    expanded = torch.broadcast_tensors(*operands)  # type: ignore[no-untyped-call]
    if expanded[0].shape != value.shape:
        raise _NotExactError("has a shape of its own")
    strides = compute_elementwise_output_strides(*expanded)
    if any(s != t for s, t, n in zip(strides, value.stride(), value.shape, strict=True) if n > 1):
        return tuple(value.stride())
    return ()


def _vector_bytes() -> int:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in _VECTOR_BYTES or not torch._C.has_mkl:
        raise _NotExactError(f"has no formula for processors with {capability}, or without MKL")
    return _VECTOR_BYTES[capability]


def _broadcast_strides(value: torch.Tensor, shape: torch.Size) -> tuple[int, ...]:
    missing = len(shape) - value.dim()
    strides = [0] * missing
    for size, stride, wanted in zip(value.shape, value.stride(), shape[missing:], strict=True):
        strides.append(0 if size == 1 and wanted != 1 else stride)
    return tuple(strides)


def _compute_dtype(node: Node, value: torch.Tensor) -> torch.dtype:
    """The type in which eager holds operands and results: the common type of the operands."""
    if value.dtype in _FLOATS:
        return value.dtype
    dtypes = {n.meta["val"].dtype for n in node.all_input_nodes if "val" in n.meta}
    floats = dtypes & set(_FLOATS)
    if not floats:
        return torch.float32
    return torch.float32 if torch.float32 in floats else floats.pop()


class _Arguments(SimpleNamespace):
    """A node's arguments by the names of the operator's schema, with defaults filled in."""

    def __init__(self, node: Node, rounds_to: torch.dtype) -> None:
        super().__init__()
        self.low = rounds_to is not torch.float32
        self.rounds_to = rounds_to
        if not isinstance(node.target, OpOverload):
            return
        for place, argument in enumerate(node.target._schema.arguments):
            given: Any = argument.default_value if argument.has_default_value() else None
            if place < len(node.args):
                given = node.args[place]
            setattr(self, argument.name, node.kwargs.get(argument.name, given))

    def rounded(self, operand: Any) -> Any:
        """A number in the type of the tensors, which is how eager sees it in most operators."""
        if isinstance(operand, (int, float)):
            return torch.tensor(float(operand), dtype=self.rounds_to).item()
        return operand


# --- the list -------------------------------------------------------------------------------------

_ENTRIES: dict[str, Entry] = {}


def _exact(*names: str) -> Callable[[Entry], Entry]:
    def register(entry: Entry) -> Entry:
        for name in names:
            _ENTRIES[f"aten.{name}"] = entry
        return entry

    return register


def _unary(name: str) -> None:
    def entry(x: Any) -> tuple[Formula, list[Any]]:
        return (
            f.MKL_UNARY[name] if name in f.MKL_UNARY and not x.low else f.VECTOR_UNARY[name],
            [x.self],
        )

    _exact(f"{name}.default")(entry)


for _name in f.VECTOR_UNARY:
    _unary(_name)


@_exact("i0.default")
def _i0(x: Any) -> Any:
    return f.I0, [x.self]


@_exact("sgn.default")
def _sgn(x: Any) -> Any:
    return f.VECTOR_UNARY["sign"], [x.self]


@_exact("rsqrt.default")
def _rsqrt(x: Any) -> Any:
    return (f.RSQRT_LOW if x.low else f.RSQRT), [x.self]


@_exact("add.Tensor", "add.Scalar")
def _add(x: Any) -> Any:
    return _scaled_sum(x, f.ADD, x.self, x.other, x.alpha)


@_exact("sub.Tensor", "sub.Scalar")
def _sub(x: Any) -> Any:
    return _scaled_sum(x, f.SUB, x.self, x.other, x.alpha)


@_exact("rsub.Tensor", "rsub.Scalar")
def _rsub(x: Any) -> Any:
    return _scaled_sum(x, f.SUB, x.other, x.self, x.alpha)


def _scaled_sum(x: Any, plain: Formula, first: Any, second: Any, alpha: Any) -> Any:
    """``first + alpha * second`` or, with `plain` the difference, ``first - alpha * second``."""
    first, second = x.rounded(first), x.rounded(second)
    if alpha == 1:
        return plain, [first, second]
    if not isinstance(alpha, (int, float)):
        raise _NotExactError("takes a number that isn't known when it is compiled")
    factor = alpha if plain is f.ADD else -alpha
    return (f.ADD_SCALED_LOW if x.low else f.ADD_SCALED), [first, second, float(factor)]


@_exact("mul.Tensor", "mul.Scalar")
def _mul(x: Any) -> Any:
    return f.MUL, [x.self, x.other]


@_exact("div.Tensor", "div.Scalar")
def _div(x: Any) -> Any:
    return f.DIV, [x.self, x.other]


@_exact("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(x: Any) -> Any:
    formulas = {None: f.DIV, "trunc": f.DIV_TRUNC, "floor": f.DIV_FLOOR}
    return formulas[x.rounding_mode], [x.self, x.rounded(x.other)]


@_exact("floor_divide.default")
def _floor_divide(x: Any) -> Any:
    return f.DIV_FLOOR, [x.self, x.rounded(x.other)]


@_exact("addcmul.default")
def _addcmul(x: Any) -> Any:
    return f.ADDCMUL, [x.self, x.tensor1, x.tensor2, x.value]


@_exact("addcdiv.default")
def _addcdiv(x: Any) -> Any:
    return f.ADDCDIV, [x.self, x.tensor1, x.tensor2, x.value]


@_exact("lerp.Tensor", "lerp.Scalar")
def _lerp(x: Any) -> Any:
    return f.LERP, [x.self, x.end, x.weight]


@_exact("pow.Tensor_Scalar")
def _pow(x: Any) -> Any:
    if not isinstance(x.exponent, (int, float)):
        raise _NotExactError("takes a number that isn't known when it is compiled")
    formula = f.power_of_constant(float(x.exponent), x.low)
    uses_exponent = "b" in formula.vector.replace("v::", "").replace("abs", "")
    return formula, [x.self, x.exponent] if uses_exponent else [x.self]


@_exact("pow.Scalar")
def _pow_base(x: Any) -> Any:
    return f.POWER_WITH_CONSTANT_BASE, [x.exponent, x.self]


def _same_operands(name: str, formula: Formula, *rounded: str) -> None:
    @_exact(name)
    def entry(x: Any) -> Any:
        return formula, [x.rounded(getattr(x, argument)) for argument in rounded]


_same_operands("pow.Tensor_Tensor", f.POW, "self", "exponent")
for _name, _formula in {
    "fmod": f.FMOD,
    "remainder": f.REMAINDER,
    **f.COMPARISONS,
}.items():
    _same_operands(f"{_name}.Tensor", _formula, "self", "other")
    _same_operands(f"{_name}.Scalar", _formula, "self", "other")
for _name, _formula in {
    "atan2": f.ATAN2,
    "hypot": f.HYPOT,
    "maximum": f.MAXIMUM,
    "minimum": f.MINIMUM,
    "logaddexp": f.LOGADDEXP,
    "logaddexp2": f.LOGADDEXP2,
    **f.LOGICAL,
}.items():
    _same_operands(f"{_name}.default", _formula, "self", "other")
_same_operands("copysign.Tensor", f.COPYSIGN, "self", "other")
_same_operands("xlogy.Tensor", f.XLOGY, "self", "other")
_same_operands("heaviside.default", f.HEAVISIDE, "self", "values")


@_exact("fmax.default")
def _fmax(x: Any) -> Any:
    return (f.FMAX_LOW if x.low else f.FMAX), [x.self, x.other]


@_exact("fmin.default")
def _fmin(x: Any) -> Any:
    return (f.FMIN_LOW if x.low else f.FMIN), [x.self, x.other]


@_exact("nextafter.default")
def _nextafter(x: Any) -> Any:
    return (f.NEXTAFTER_LOW if x.low else f.NEXTAFTER), [x.self, x.other]


@_exact("clamp.default")
def _clamp(x: Any) -> Any:
    if x.min is None:
        return f.CLAMP_MAX, [x.self, x.max]
    if x.max is None:
        return f.CLAMP_MIN, [x.self, x.min]
    return f.CLAMP, [x.self, x.min, x.max]


@_exact("clamp.Tensor")
def _clamp_by_tensors(x: Any) -> Any:
    if x.min is None:
        return f.MINIMUM, [x.self, x.max]
    if x.max is None:
        return f.MAXIMUM, [x.self, x.min]
    return f.CLAMP_TENSORS, [x.self, x.min, x.max]


@_exact("ldexp.Tensor")
def _ldexp(x: Any) -> Any:
    return f.LDEXP, [x.self, x.other]


@_exact("polygamma.default")
def _polygamma(x: Any) -> Any:
    return f.polygamma(x.n), [x.self]


@_exact("special_i1.default")
def _special_i1(x: Any) -> Any:
    return f.I1, [x.self]


@_exact("clamp_min.default")
def _clamp_min(x: Any) -> Any:
    return f.CLAMP_MIN, [x.self, x.min]


@_exact("clamp_max.default")
def _clamp_max(x: Any) -> Any:
    return f.CLAMP_MAX, [x.self, x.max]


@_exact("hardtanh.default")
def _hardtanh(x: Any) -> Any:
    return f.CLAMP, [x.self, x.min_val, x.max_val]


@_exact("where.self")
def _where(x: Any) -> Any:
    return f.CHOOSE, [x.condition, x.self, x.other]


@_exact("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(x: Any) -> Any:
    return f.FILL_WHERE, [x.self, x.mask, x.rounded(x.value)]


@_exact("fill.Scalar")
def _fill(x: Any) -> Any:
    return f.CONSTANT, [x.self, x.rounded(x.value)]


@_exact("isinf.default")
def _isinf(x: Any) -> Any:
    return f.IS_INFINITE, [x.self]


@_exact("signbit.default")
def _signbit(x: Any) -> Any:
    return f.SIGN_BIT, [x.self]


@_exact("sinc.default")
def _sinc(x: Any) -> Any:
    return f.SINC, [x.self]


@_exact("nan_to_num.default")
def _nan_to_num(x: Any) -> Any:
    limit = torch.finfo(x.rounds_to).max
    high = limit if x.posinf is None else x.rounded(x.posinf)
    low = -limit if x.neginf is None else x.rounded(x.neginf)
    return f.NAN_TO_NUM, [x.self, x.rounded(x.nan or 0.0), high, low]


@_exact("deg2rad.default")
def _deg2rad(x: Any) -> Any:
    return f.MUL, [x.self, math.pi / 180]


@_exact("rad2deg.default")
def _rad2deg(x: Any) -> Any:
    return f.MUL, [x.self, 180 / math.pi]


@_exact("logit.default")
def _logit(x: Any) -> Any:
    if x.eps is None:
        return (f.LOGIT_LOW if x.low else f.LOGIT), [x.self]
    low = x.rounded(x.eps)
    formula = f.LOGIT_CLAMPED_LOW if x.low else f.LOGIT_CLAMPED
    return formula, [x.self, low, x.rounded(1 - low)]


@_exact("logit_backward.default")
def _logit_backward(x: Any) -> Any:
    if x.eps is None:
        return f.LOGIT_BACKWARD, [x.grad_output, x.self]
    low = x.rounded(x.eps)
    return f.LOGIT_CLAMPED_BACKWARD, [x.grad_output, x.self, low, x.rounded(1 - low)]


@_exact("isnan.default")
def _isnan(x: Any) -> Any:
    return f.COMPARISONS["ne"], [x.self, x.self]


@_exact("logical_not.default")
def _logical_not(x: Any) -> Any:
    return f.COMPARISONS["eq"], [x.self, 0.0]


@_exact("_to_copy.default")
def _to_copy(x: Any) -> Any:
    if x.dtype is torch.bool:
        return f.NOT_ZERO, [x.self]
    if x.dtype in _INTEGERS:
        raise _NotExactError("turns floats into integers")
    return f.COPY, [x.self]


@_exact("elu.default")
def _elu(x: Any) -> Any:
    return f.ELU, [x.self, x.alpha * x.scale, x.scale, x.input_scale]


@_exact("celu.default")
def _celu(x: Any) -> Any:
    return f.ELU, [x.self, x.alpha, 1.0, 1.0 / x.alpha]


@_exact("softplus.default")
def _softplus(x: Any) -> Any:
    return f.SOFTPLUS, [x.self, x.beta, x.threshold]


@_exact("leaky_relu.default")
def _leaky_relu(x: Any) -> Any:
    return f.LEAKY_RELU, [x.self, x.negative_slope]


@_exact("softshrink.default")
def _softshrink(x: Any) -> Any:
    return f.SOFTSHRINK, [x.self, x.rounded(x.lambd)]


@_exact("hardshrink.default")
def _hardshrink(x: Any) -> Any:
    return f.HARDSHRINK, [x.self, x.lambd]


@_exact("threshold.default")
def _threshold(x: Any) -> Any:
    return f.THRESHOLD, [x.self, x.rounded(x.value), x.self, x.threshold]


@_exact("gelu.default")
def _gelu(x: Any) -> Any:
    if x.approximate == "tanh":
        return f.GELU_TANH, [x.self]
    if not _is_for_onednn(x.self.meta["val"]):
        return f.GELU, [x.self]
    return (exact_gelu.FORWARD_LOW if x.low else exact_gelu.FORWARD), [x.self]


def _is_for_onednn(value: torch.Tensor) -> bool:
    """Whether eager hands a tensor to oneDNN."""
    if symbols_of(value):
        raise _NotExactError("is computed by one library or another, depending on sizes")
    mkldnn = torch.backends.mkldnn
    known = torch._C._has_mkldnn and bool(mkldnn.enabled)
    return known and value.is_contiguous() and value.numel() > 1


# --- gradients ------------------------------------------------------------------------------------


@_exact("gelu_backward.default")
def _gelu_backward(x: Any) -> Any:
    operands = [x.grad_output, x.self]
    if x.approximate == "tanh":
        return f.GELU_TANH_BACKWARD, operands
    if not _is_for_onednn(x.self.meta["val"]):
        return f.GELU_BACKWARD, operands
    return (exact_gelu.BACKWARD_LOW if x.low else exact_gelu.BACKWARD), operands


for _name, _formula, _of in (
    ("sigmoid_backward", f.SIGMOID_BACKWARD, "output"),
    ("tanh_backward", f.TANH_BACKWARD, "output"),
    ("silu_backward", f.SILU_BACKWARD, "self"),
    ("mish_backward", f.MISH_BACKWARD, "self"),
    ("hardswish_backward", f.HARDSWISH_BACKWARD, "self"),
    ("hardsigmoid_backward", f.HARDSIGMOID_BACKWARD, "self"),
):
    _same_operands(f"{_name}.default", _formula, "grad_output", _of)


@_exact("hardtanh_backward.default")
def _hardtanh_backward(x: Any) -> Any:
    return f.HARDTANH_BACKWARD, [x.grad_output, x.self, x.min_val, x.max_val]


@_exact("leaky_relu_backward.default")
def _leaky_relu_backward(x: Any) -> Any:
    return f.LEAKY_RELU_BACKWARD, [x.grad_output, x.self, x.negative_slope]


@_exact("threshold_backward.default")
def _threshold_backward(x: Any) -> Any:
    return f.THRESHOLD, [x.self, 0.0, x.grad_output, x.threshold]


@_exact("softshrink_backward.default", "hardshrink_backward.default")
def _softshrink_backward(x: Any) -> Any:
    grad, value = getattr(x, "grad_output", None) or x.grad_out, x.self
    return Formula("V::blendv(a, V(0), (b >= R(c).neg()) & (b <= R(c)))"), [grad, value, x.lambd]


@_exact("elu_backward.default")
def _elu_backward(x: Any) -> Any:
    formula = f.ELU_BACKWARD_OF_RESULT if x.is_result else f.ELU_BACKWARD
    constants = [x.alpha * x.scale, x.scale, x.input_scale]
    return formula, [x.grad_output, x.self_or_result, *constants]


@_exact("softplus_backward.default")
def _softplus_backward(x: Any) -> Any:
    return f.SOFTPLUS_BACKWARD, [x.grad_output, x.self, x.beta, x.threshold]


@_exact("log_sigmoid_backward.default")
def _log_sigmoid_backward(x: Any) -> Any:
    return f.LOG_SIGMOID_BACKWARD, [x.grad_output, x.self, x.buffer]


def _loss(name: str, formula: Formula, *constants: str) -> None:
    @_exact(f"{name}.default")
    def entry(x: Any) -> Any:
        if x.reduction != 0:
            raise _NotExactError("sums in an order of its own")
        return formula, [x.self, x.target, *(getattr(x, constant) for constant in constants)]


def _loss_gradient(name: str, formula: Formula, *constants: str) -> None:
    @_exact(f"{name}_backward.default")
    def entry(x: Any) -> Any:
        if x.reduction != 0:
            raise _NotExactError("divides by a number of elements")
        numbers = [getattr(x, constant) for constant in constants]
        return formula, [x.grad_output, x.self, x.target, *numbers]


_loss_gradient("mse_loss", f.MSE_BACKWARD)
_loss_gradient("smooth_l1_loss", f.SMOOTH_L1_BACKWARD, "beta")
_loss_gradient("huber_loss", f.HUBER_BACKWARD, "delta")
_loss("mse_loss", f.MSE)
_loss("smooth_l1_loss", f.SMOOTH_L1, "beta")


@_exact("binary_cross_entropy_with_logits.default")
def _bce_with_logits(x: Any) -> Any:
    if x.reduction != 0 or x.weight is not None or x.pos_weight is not None:
        raise _NotExactError("is proven without weights and reduction only")
    return f.BCE_WITH_LOGITS, [x.self, x.target]


_loss("huber_loss", f.HUBER, "delta")


# --- operators that Inductor lowers itself ----------------------------------------------------------

_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        *("view.default", "_unsafe_view.default", "reshape.default", "expand.default"),
        *("permute.default", "transpose.int", "t.default", "squeeze.default", "squeeze.dim"),
        *("squeeze.dims", "unsqueeze.default", "select.int", "slice.Tensor", "alias.default"),
        *("detach.default", "clone.default", "cat.default", "stack.default", "flip.default"),
        *("roll.default", "repeat.default", "unbind.int", "select_backward.default"),
        *("slice_backward.default", "tril.default", "triu.default", "narrow.default"),
        *(
            "empty_like.default",
            "zeros_like.default",
            "ones_like.default",
            "as_strided.default",
            "lift_fresh_copy.default",
        ),
    )
)

# A number among their operands is a tensor of one element to TensorIterator.
_WITH_NUMBERS_AS_TENSORS = frozenset(
    f"aten.{name}"
    for name in (
        *("add.Tensor", "sub.Tensor", "rsub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar"),
        *("fmod.Scalar", "remainder.Scalar", "fmod.Tensor", "remainder.Tensor", "pow.Scalar"),
    )
)

_CONSTANTS = frozenset(
    f"aten.{name}"
    for name in (
        *("scalar_tensor.default", "full.default", "zeros.default", "ones.default"),
        *("arange.default", "arange.start", "arange.start_step"),
    )
)

_TUPLES: Mapping[str, tuple[Formula, ...]] = {
    "aten.log_sigmoid_forward.default": (f.LOG_SIGMOID, f.LOG_SIGMOID_BUFFER),
}

_CASTS = (torch.ops.aten._to_copy.default,)

_INTEGER_OPS = frozenset(
    f"aten.{name}"
    for name in (
        *("add.Tensor", "sub.Tensor", "mul.Tensor", "neg.default", "abs.default"),
        *("eq.Tensor", "ne.Tensor", "lt.Tensor", "le.Tensor", "gt.Tensor", "ge.Tensor"),
        *("eq.Scalar", "ne.Scalar", "lt.Scalar", "le.Scalar", "gt.Scalar", "ge.Scalar"),
        *("bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor", "bitwise_not.default"),
        *("logical_and.default", "logical_or.default", "logical_xor.default"),
        *("logical_not.default", "maximum.default", "minimum.default", "where.self"),
        "remainder.Scalar",
    )
)


def known_operators() -> Mapping[str, str]:
    """Each operator of the list: "formula", "moves data" or "integers"."""
    return {
        **dict.fromkeys(sorted(_INTEGER_OPS), "integers"),
        **dict.fromkeys(sorted(_MOVES), "moves data"),
        **dict.fromkeys(sorted(_ENTRIES), "formula"),
    }
