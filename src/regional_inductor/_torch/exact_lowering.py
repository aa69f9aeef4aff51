"""Compiling a region so that its element-wise operators give eager's bits.

On CUDA it is Inductor that lowers operators, or what `exact_cuda.py` takes them apart into. On the CPU
each operator that has a formula becomes one call of an operator of ours, which carries the formula and
which no pass of Inductor knows how to simplify. Its lowering is a plain pointwise loop, so neighbours
fuse as always; in it stands one operation of ours, for which the formula is written into the kernel.
Every operator rounds to its own type, fused or not, as eager does.

Checked on torch 2.11 and 2.13: `torch._inductor.lowering.register_lowering`, `ir.Pointwise`,
`ops_handler.DefaultHandler`, `dtype_propagation.DtypePropagationOpsHandler`,
`codegen.cpp.CppOverrides` and `CppVecOverrides`, `cpp_builder._get_ffast_math_flags`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.fx
from torch.fx.node import Node

from . import config, exact_cuda, exact_expansions, exact_ops, exact_trials, inductor
from .exact_formulas import Formula
from .loops import ALL_SCALAR, GRAIN

_CPU_OPTIONS: dict[str, Any] = {
    "cpp.enable_unsafe_math_opt_flag": False,
    "cpp.enable_floating_point_contract_flag": "off",
    "emulate_precision_casts": True,
}
_TAG = "numerics=eager 3"
"""Goes into the keys of Inductor's caches; to be changed with the code that is written here."""

_SCHEMA = (
    "pointwise(Tensor[] tensors, float[] numbers, int[] order, str vector, str scalar,"
    " ScalarType rounds_to, ScalarType dtype, int[] positions, int[] strides) -> Tensor"
)
_OPERATION = "regional_inductor_exact"


def required_options(module: torch.fx.GraphModule) -> dict[str, Any]:
    """The options of Inductor that a region can't be compiled without: those that this torch has."""
    values = [node.meta.get("val") for node in module.graph.nodes]
    devices = {v.device.type for v in values if isinstance(v, torch.Tensor)}
    required: dict[str, Any] = {}
    for device, options in (("cpu", _CPU_OPTIONS), ("cuda", exact_cuda.OPTIONS)):
        if device in devices:
            required |= {k: v for k, v in options.items() if k in config.option_types()}
    return required


def with_exact_operators(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a region in which each operator with a formula is a call of ours that carries it."""
    module = exact_trials.expanded(module, _expansion)
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    for node in module.graph.nodes:
        form = exact_ops.exact_form(node) if _may_have_a_formula(node) else None
        if form is None:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
            continue
        tensors: list[Node] = []
        numbers: list[float] = []
        order: list[int] = []
        for operand in form.operands:
            if isinstance(operand, Node):
                order.append(len(tensors))
                tensors.append(copies[operand])
            else:
                numbers.append(float(operand))
                order.append(-len(numbers))
        arguments = (tensors, numbers, order, form.formula.vector, form.formula.scalar)
        copies[node] = graph.call_function(
            _prepared(),
            (*arguments, form.rounds_to, form.result, list(form.positions), list(form.strides)),
        )
        copies[node].meta = dict(node.meta)
    graph.eliminate_dead_code()  # what gave several results, each of which has its formula now
    return torch.fx.GraphModule(module, graph)


def _expansion(node: Node) -> Callable[..., Any] | None:
    return exact_expansions.expansion(node, _computed) if _may_have_a_formula(node) else None


def _computed(formula: Formula, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Our operator for a formula over tensors of one shape and type, while a graph is traced."""
    shape, dtype = tuple(tensors[0].shape), tensors[0].dtype
    positions: tuple[int, ...] = ()
    if formula.depends_on_position:
        formula, positions = exact_ops.placed(formula, shape, tensors, dtype)
    order = list(range(len(tensors)))
    text = (formula.vector, formula.scalar)
    result: torch.Tensor = _prepared()(tensors, [], order, *text, dtype, dtype, positions, [])
    return result


def _may_have_a_formula(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    is_ours = getattr(node.target, "namespace", "") == "regional_inductor"
    return (
        node.op == "call_function"
        and not is_ours
        and any(
            isinstance(v, torch.Tensor) and v.device.type not in exact_cuda.DEVICES for v in values
        )
    )


def identity() -> str:
    """Changes with whatever here, or in the processor, changes what is generated."""
    libraries = f"{torch._C.has_mkl} {bool(torch.backends.mkldnn.enabled)}"
    return f"{_TAG} {torch.backends.cpu.get_cpu_capability()} {libraries}"


@contextlib.contextmanager
def exact_code() -> Iterator[None]:
    """While this is on, what is compiled keeps the sign of zeros, and caches know of it."""
    from torch._inductor import cpp_builder

    original = cpp_builder._get_ffast_math_flags

    def flags() -> list[str]:
        # ATen is compiled with these two and with none of the others.
        kept = [flag for flag in original() if flag.startswith(("ffp-contract", "fno-finite"))]
        return ["fno-trapping-math", *kept]

    with mock.patch.object(cpp_builder, "_get_ffast_math_flags", flags), inductor.tagged(_TAG):
        yield


# --- the operator ---------------------------------------------------------------------------------


@functools.cache
def _prepared() -> Any:
    """Define the operator, its lowering and its code, once."""
    library: Any = torch.library.Library("regional_inductor", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(_SCHEMA)
    _libraries.append(library)
    torch.library.register_fake("regional_inductor::pointwise", _fake, lib=library)
    packet = torch.ops.regional_inductor.pointwise

    from torch._inductor import dtype_propagation, lowering, ops_handler, shape_propagation
    from torch._inductor.codegen import cpp

    lowering.register_lowering(packet.default, type_promotion_kind=None)(_lower)
    ops_handler.DefaultHandler.regional_inductor_exact = (  # type: ignore[attr-defined]
        ops_handler.DefaultHandler._call_default(_OPERATION)
    )
    dtype_propagation.DtypePropagationOpsHandler.regional_inductor_exact = staticmethod(  # type: ignore[attr-defined]
        lambda *_: torch.float32
    )
    shapes: Any = shape_propagation.ShapePropagationOpsHandler
    shapes.regional_inductor_exact = staticmethod(
        lambda vector, scalar, rounds_to, loop, *operands: (
            shape_propagation.broadcast_shapes_for_args(operands)
        )
    )
    cpp.CppOverrides.regional_inductor_exact = _Unwrapped(_scalar_code)  # type: ignore[attr-defined]
    cpp.CppVecOverrides.regional_inductor_exact = _Unwrapped(_vector_code)  # type: ignore[attr-defined]
    return packet.default


_libraries: list[
    torch.library.Library
] = []  # a library that is collected takes its operators along


class _Unwrapped(staticmethod):  # type: ignore[type-arg]
    """A static method that `CppVecOverrides` leaves as it is: it would take our text for numbers."""


def _fake(
    tensors: Sequence[torch.Tensor],
    numbers: Sequence[float],
    order: Sequence[int],
    vector: str,
    scalar: str,
    rounds_to: torch.dtype,
    dtype: torch.dtype,
    positions: Sequence[int],
    strides: Sequence[int],
) -> torch.Tensor:
    from torch._prims_common import compute_elementwise_output_strides

    expanded = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    strides = strides or compute_elementwise_output_strides(*expanded)
    return torch.empty_strided(expanded[0].shape, strides, dtype=dtype, device=tensors[0].device)


def _lower(
    tensors: Sequence[Any],
    numbers: Sequence[float],
    order: Sequence[int],
    vector: str,
    scalar: str,
    rounds_to: torch.dtype,
    dtype: torch.dtype,
    positions: Sequence[int],
    strides: Sequence[int],
) -> Any:
    from torch._inductor import lowering, virtualized
    from torch._inductor.ir import Pointwise

    ops: Any = virtualized.ops
    expanded = list(tensors)
    if len(tensors) > 1:
        expanded = lowering.broadcast_tensors(*tensors)
    loaders = [tensor.make_loader() for tensor in expanded]
    dtypes = [tensor.get_dtype() for tensor in tensors]

    def loaded(number: int, index: Any) -> Any:
        value = loaders[number](index)
        if dtypes[number].is_floating_point:
            return value
        return ops.to_dtype(value, torch.float32, src_dtype=dtypes[number])

    def inner(index: Any) -> Any:
        operands = [
            loaded(place, index) if place >= 0 else ops.constant(numbers[-1 - place], torch.float32)
            for place in order
        ]
        loop: tuple[int, ...] = tuple(int(number) for number in positions)
        if len(loop) > 1:
            place = sum(i * weight for i, weight in zip(index, loop[3:], strict=True))
            operands.append(ops.index_expr(place, torch.int32))
        result = ops.regional_inductor_exact(
            vector, scalar, str(rounds_to).removeprefix("torch."), loop[:3], *operands
        )
        if dtype is torch.bool:
            return ops.ne(result, ops.constant(0.0, torch.float32))
        return result

    return Pointwise.create(
        device=expanded[0].get_device(),
        dtype=dtype,
        inner_fn=inner,
        ranges=list(expanded[0].get_size()),
    )


# --- its code -------------------------------------------------------------------------------------

_CPP_TYPES = {"bfloat16": "at::BFloat16", "float16": "at::Half"}


def _scalar_code(
    vector: str, scalar: str, rounds_to: str, loop: tuple[int, ...], *operands: Any
) -> str:
    """An element outside vectorised loops: eager's vector code on one lane, or its scalar code."""
    values, place = _split(operands, loop)
    in_scalar = _scalar_call(scalar, rounds_to, values)
    if not vector or loop == ALL_SCALAR:
        return in_scalar
    lanes = [f"at::vec::Vectorized<float>({value})" for value in values]
    in_vector = (
        f"[&]() -> float {{ auto r = {_vector_call(vector, rounds_to, lanes, (1, 1))};"
        " alignas(64) float lanes[decltype(r)::size()]; r.store(lanes); return lanes[0]; }()"
    )
    if place is None:
        return in_vector
    return f"({_POSITION.format(loop=_loop(loop))})({place}) ? {in_scalar} : {in_vector}"


def _vector_code(
    vector: str, scalar: str, rounds_to: str, loop: tuple[int, ...], *operands: Any
) -> str:
    from torch._inductor.virtualized import V

    if not any(operand.is_vec for operand in operands):
        return _scalar_code(vector, scalar, rounds_to, loop, *operands)
    wide = [operand if operand.is_vec else V.kernel.broadcast(operand) for operand in operands]
    values, place = _split(wide, loop)
    if not vector or loop == ALL_SCALAR:
        return _lanewise_call(scalar, rounds_to, values, values[0], "true")
    low = getattr(torch, rounds_to)
    vectors = (V.kernel._get_num_vectors(torch.float32), V.kernel._get_num_vectors(low))
    whole = _vector_call(vector, rounds_to, values, vectors)
    if place is None:
        return whole
    # Eager's vector code on all lanes, then its scalar code on those that eager does with it.
    return (
        f"[&]() {{ auto is_scalar = {_POSITION.format(loop=_loop(loop))};"
        f" auto r = {whole}; constexpr int n = decltype(r)::size();"
        f" alignas(64) int32_t places[n]; {place}.store(places);"
        " if (places[n - 1] - places[0] == n - 1"
        " && is_scalar.all_in_vectors(places[0], places[n - 1])) return r;"
        f" return {_lanewise_call(scalar, rounds_to, values, 'r', 'is_scalar(places[i])')}; }}()"
    )


def _split(operands: Sequence[Any], loop: tuple[int, ...]) -> tuple[list[str], str | None]:
    names = [str(operand) for operand in operands]
    return (names[:-1], names[-1]) if len(loop) > 1 else (names, None)


def _body(text: str) -> str:
    return text if text.endswith(";") else f"return {text};"


# No generic lambdas: gcc 12 doesn't find functions that are declared inside one.


def _vector_call(
    formula: str, rounds_to: str, values: Sequence[str], vectors: tuple[int, int]
) -> str:
    low = _CPP_TYPES.get(rounds_to)
    rounding = "return v;"
    if low is not None:
        floats, lows = vectors
        to, back = f"{low}, {lows}, float, {floats}", f"float, {floats}, {low}, {lows}"
        if floats == lows == 1:
            to, back = low, "float"
        rounding = f"return at::vec::convert<{back}>(at::vec::convert<{to}>(v));"
    operands = "".join(f" const V {n} = {v};" for n, v in zip("abcdefgh", values, strict=False))
    return (
        f"[&]() {{ using V = std::decay_t<decltype({values[0]})>;{operands}"
        f" auto R = [](V v) -> V {{ {rounding} }};"
        f" return R([&]() -> V {{ {_body(formula)} }}()); }}()"
    )


def _scalar_call(formula: str, rounds_to: str, values: Sequence[str]) -> str:
    low = _CPP_TYPES.get(rounds_to)
    rounding = f"return static_cast<float>({low}(v));" if low else "return v;"
    operands = "".join(f" const float {n} = {v};" for n, v in zip("abcdefgh", values, strict=False))
    return (
        f"[&]() -> float {{{operands} auto R = [](float v) -> float {{ {rounding} }};"
        f" return R([&]() -> float {{ {_body(formula)} }}()); }}()"
    )


def _lanewise_call(
    formula: str, rounds_to: str, values: Sequence[str], other: str, condition: str
) -> str:
    """The scalar formula on those lanes for which a condition holds; another vector's elsewhere."""
    stores = "".join(
        f" alignas(64) float lanes{i}[n]; {value}.store(lanes{i});"
        for i, value in enumerate(values)
    )
    call = _scalar_call(formula, rounds_to, [f"lanes{i}[i]" for i in range(len(values))])
    return (
        f"[&]() {{ using V = std::decay_t<decltype({other})>; constexpr int n = V::size();{stores}"
        f" alignas(64) float out[n]; {other}.store(out);"
        f" for (int i = 0; i < n; i++) if ({condition}) out[i] = {call};"
        " return V::loadu(out); }()"
    )


def _loop(loop: tuple[int, ...]) -> str:
    return ", ".join(map(str, loop))


# What `loops.is_scalar` says, for any number of threads at run time: chunks are eager's.
_POSITION = (
    "[] {{ struct Loop {{ int32_t step, row, count, chunk;"
    " int64_t start(int32_t p) const {{"
    " return std::max((int64_t)(p / row) * row, (int64_t)(p / chunk) * chunk); }}"
    " int64_t whole(int32_t p) const {{ int64_t end = std::min<int64_t>(count,"
    " std::min((p / row + 1LL) * row, (p / chunk + 1LL) * chunk));"
    " return (end - start(p)) / step * step; }}"
    " bool operator()(int32_t p) const {{ return p - start(p) >= whole(p); }}"
    " bool all_in_vectors(int32_t first, int32_t last) const {{"
    " return last - start(first) < whole(first); }} }};"
    " const int32_t sizes[] = {{{loop}}}; int64_t threads = 1;"
    f" if (sizes[2] > {GRAIN}) {{{{"
    # A worker that asks ATen for the first time, inside a parallel region, is told 1.
    ' int threads_of_aten() asm("_ZN2at15get_num_threadsEv");'
    ' int in_parallel() asm("omp_in_parallel"); int threads_of_omp() asm("omp_get_max_threads");'
    " threads = std::min<int64_t>(in_parallel() ? threads_of_omp() : threads_of_aten(),"
    f" (sizes[2] + {GRAIN - 1}LL) / {GRAIN}); }}}}"
    " return Loop{{sizes[0], sizes[1], sizes[2], (int32_t)((sizes[2] + threads - 1) / threads)}};"
    " }}()"
)
