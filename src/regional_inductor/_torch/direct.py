"""Lowering an already functional region straight through Inductor, without a second AOTAutograd.

`standalone_compile` traces a region again for its metadata, aliasing, mutation and gradients, and
wraps the result accordingly, at every call. A region of a functional graph has none of these: it is
decomposed once and handed to Inductor's own forward compiler. Whatever doesn't fit is refused here
with a reason and goes through `standalone_compile`.

Checked on torch 2.11 and 2.13: `compile_fx.compile_fx_forward`, `create_compiler_config_extra`,
`select_decomp_table`, `CompiledFxGraph.current_callable`, `V.set_fake_mode`.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import Node

from . import ops
from .versions import is_one_of

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))
# Options that `compile_fx` itself acts upon, around or before the part that is called here.
_OUTER_OPTIONS = (
    "cpp_wrapper",
    "fx_wrapper",
    "freezing",
    "triton.cudagraphs",
    "fallback_by_default",
    "selective_decompose",
)


class DirectLoweringRefusedError(Exception):
    """This region needs what only `standalone_compile` does."""


def refusal(module: torch.fx.GraphModule, options: Mapping[str, Any]) -> str:
    """Why a region can't be lowered directly, or an empty string."""
    if not is_one_of(CHECKED_VERSIONS):
        return f"not checked on torch {torch.__version__}"
    for node in module.graph.nodes:
        reason = _node_refusal(node, module)
        if reason:
            return f"{node.name} {reason}"
    return _options_refusal(options)


def _node_refusal(node: Node, module: torch.fx.GraphModule) -> str:
    from .symbols import (
        symbols_of,  # and sympy with it, which running a compiled region doesn't need
    )

    value = node.meta.get("val")
    if symbols_of(value):
        return "has symbolic sizes"
    if node.op == "placeholder":
        if not isinstance(value, torch.Tensor):
            return "is no tensor"
        return _tensor_refusal(value)
    if node.op == "output":
        return "" if node.args[0] else "is empty"
    if node.op != "call_function":
        return f"is a {node.op}"
    if node.target is operator.getitem:
        return ""
    if not isinstance(node.target, OpOverload):
        return "is no plain operator"
    traits = ops.traits(node, module)
    if traits.writes or traits.ordered or traits.opaque or traits.collective:
        return "mutates or has effects"
    if torch.Tag.data_dependent_output in node.target.tags:
        return "depends on data"
    if torch.Tag.dynamic_output_shape in node.target.tags:
        return "has an output of unknown size"
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, torch.Tensor) and _tensor_refusal(item):
            return _tensor_refusal(item)
    return ""


def _tensor_refusal(value: torch.Tensor) -> str:
    if type(value) is not FakeTensor:
        return f"is a {type(value).__name__}"
    if value.requires_grad:
        return "requires a gradient"
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        return f"is {value.layout}, {value.dtype}"
    if value.is_conj() or value.is_neg():
        return "is a lazy conjugate or negation"
    return ""


def _options_refusal(options: Mapping[str, Any]) -> str:
    import torch._inductor.config as inductor_config

    for name in _OUTER_OPTIONS:
        # One by one: a copy of the whole config costs more than everything else here.
        if options[name] if name in options else _value_of(inductor_config, name):
            return f"needs {name}"
    return ""


def _value_of(config: Any, name: str) -> Any:
    """An entry of Inductor's config by its dotted name; None where this torch has none."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def compile_direct(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    mode: FakeTensorMode,
) -> Callable[[list[Any]], Any]:
    """Compile one functional region.

    Args:
        module: The region, for which `refusal` had nothing to say.
        inputs: Fake inputs, all of `mode`.
        options: Inductor's options.
        mode: The fake tensor mode.

    Returns:
        Inductor's compiled graph; it takes one list, which it empties, and returns a sequence.

    Raises:
        DirectLoweringRefusedError: Decomposing showed an alias or a mutation after all.
    """
    import torch._inductor.config as inductor_config
    from torch._inductor.compile_fx import compile_fx_forward, create_compiler_config_extra
    from torch._inductor.virtualized import V

    with (
        inductor_config.patch(dict(options)),
        tracing(TracingContext(mode)),
        V.set_fake_mode(mode),
        torch.no_grad(),
    ):
        functional = _decomposed(module, inputs, mode)
        outputs: Any = functional.graph.output_node().args[0]
        # torch 2.11 takes the config here, 2.13 a graph module or anything else, which says nothing.
        extra = create_compiler_config_extra(inductor_config)  # type: ignore[arg-type]
        return compile_fx_forward(
            functional,
            list(inputs),
            num_orig_model_outputs=len(outputs),
            num_example_inputs=len(inputs),
            compiler_config_extra=extra,
            is_inference=True,
        )


def is_lowered_directly(compiled: Any) -> bool:
    """Whether a compiled region is what `compile_direct` returned, or was loaded in its place."""
    return bool(getattr(compiled, "_boxed_call", False)) and hasattr(compiled, "current_callable")


def innermost_callable(compiled: Any) -> Callable[[list[Any]], Any]:
    """What a compiled graph runs, without the bookkeeping that its first call needs."""
    return getattr(compiled, "current_callable", compiled)  # type: ignore[no-any-return]


def bare_call(artifact: Any) -> Callable[[list[Any]], Any] | None:
    """What a standalone artifact runs inside AOTAutograd's wrappers, where it is known to have one only.

    AOTAutograd puts further wrappers around regions that have duplicate inputs, gradients, effects
    or subclasses; then the chain looks different, and the answer is None. Checked on torch 2.13;
    2.11 names the variable differently, if at all, and keeps the wrappers.
    """
    inner = getattr(artifact, "inner_fn", None)
    while inner is not None and not isinstance(inner, types.FunctionType):
        inner = getattr(inner, "compiled_fn", None)
    for _ in range(4):
        if inner is None:
            return None
        if inner.__qualname__ == "_create_runtime_wrapper.<locals>.runtime_wrapper":
            break
        inner = _in_closure(inner, "fn") or _in_closure(inner, "compiled_fn")
        while inner is not None and not isinstance(inner, types.FunctionType):
            inner = getattr(inner, "compiled_fn", None)
    else:
        return None
    graph = _in_closure(inner, "_inner_compiled_fn")
    if (
        type(graph).__name__ == "SerializableCompiledFunction"
    ):  # compiled now; plain when from a cache
        graph = graph.compiled_fn
    if type(graph).__name__ != "CompiledFxGraph" or graph.mutated_input_idxs:
        return None
    call: Callable[[list[Any]], Any] | None = graph.current_callable
    return call


def _in_closure(function: types.FunctionType, name: str) -> Any:
    if name not in function.__code__.co_freevars or function.__closure__ is None:
        return None
    try:
        return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents
    except ValueError:  # not filled yet
        return None


def autocast_is_on() -> Callable[[], bool]:
    """The function that says whether any device's autocast is on."""
    return torch._C._is_any_autocast_enabled


def share_no_storage(inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """Whether each output is a tensor with a storage of its own, which no input has."""
    taken = {v.untyped_storage()._cdata for v in inputs if isinstance(v, torch.Tensor)}
    for output in outputs:
        if not isinstance(output, torch.Tensor) or output.untyped_storage()._cdata in taken:
            return False
        taken.add(output.untyped_storage()._cdata)
    return True


def storage_identity(tensor: torch.Tensor) -> int:
    """Equal for tensors that lie in one storage, real or fake."""
    return int(tensor.untyped_storage()._cdata)


def _decomposed(
    module: torch.fx.GraphModule, inputs: Sequence[Any], mode: FakeTensorMode
) -> torch.fx.GraphModule:
    from torch._dispatch.python import enable_python_dispatcher
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.traceback import preserve_node_meta

    with enable_python_dispatcher(), mode, preserve_node_meta():
        traced = make_fx(
            lambda *args: torch.fx.Interpreter(module).run(*args),
            decomposition_table=select_decomp_table(),
        )(*inputs)
    _check_functional(traced)
    return traced


def _check_functional(traced: torch.fx.GraphModule) -> None:
    storages: dict[int, str] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            raise DirectLoweringRefusedError(f"{node.name} is a constant")
        if node.op == "call_function" and ops.traits(node, traced).writes:
            raise DirectLoweringRefusedError(f"{node.name} mutates")
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
            storages[node.meta["val"].untyped_storage()._cdata] = node.name
    outputs: Any = traced.graph.output_node().args[0]
    for output in outputs:
        value = output.meta.get("val") if isinstance(output, Node) else None
        if not isinstance(value, torch.Tensor):
            raise DirectLoweringRefusedError("an output is no tensor")
        storage = value.untyped_storage()._cdata
        if storage in storages:
            raise DirectLoweringRefusedError(f"{output} aliases {storages[storage]}")
        storages[storage] = str(output)
