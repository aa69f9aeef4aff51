"""Whether what is compiled for a region is settled by its key alone, so that another process may rely on it.

A key names operators. Those of torch mean the same wherever the same torch runs; a lowering or
decomposition of the user's is code that the key doesn't hold and that may change between processes.
An operator of a library is called by its name, with whatever code it has by then, as long as nothing
of that code could have been compiled into the region.

Checked on torch 2.11 and 2.13: operator namespaces, names of higher-order operators,
`torch._inductor.lowering.lowerings` and `_maybe_layout_constraints`,
`torch._inductor.decomposition.decompositions`, `OpOverload.py_kernels`, `python_key_table` and
`functorch_table`, `torch._library.simple_registry` (on 2.11 by its documentation), dispatch keys.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch.fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx.node import Node

from . import ops

_NAMESPACES = frozenset(
    {"aten", "prims", "prim", "rngprims", "inductor", "quantized", "_quantized", "mkldnn", "mkl"}
)
# Wholly described by their arguments and bodies, which are in the key. Others, such as those of
# user-written Triton kernels, name entries of tables that belong to the process.
_HOPS = frozenset(
    {
        "associative_scan",
        "auto_functionalized",
        "auto_functionalized_v2",
        "cond",
        "flex_attention",
        "flex_attention_backward",
        "foreach_map",
        "invoke_subgraph",
        "map_impl",
        "out_dtype",
        "scan",
        "while_loop",
        "while_loop_stack_output",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    }
)

# Homes of the functions in Inductor's own tables: torch 2.11 has some of Python's operators there.
_KNOWN = frozenset(
    {"torch", "functools", "builtins", "_operator", "operator", "math", "regional_inductor"}
)


def why_not(module: torch.fx.GraphModule) -> str:
    """What in a region only this process knows, in a few words, or ``""``."""
    for target in _targets(module):
        if isinstance(target, HigherOrderOperator):
            if target._name not in _HOPS:
                return f"the operator {target._name} may refer to this process"
        elif not is_torchs_operator(target):
            reason = _why_not_a_call(target)
            if reason:
                return f"the key doesn't see the code of {target}, {reason}"
            if any(map(_requires_grad, module.graph.nodes)):
                return f"the key doesn't see the backward formula of {target}"
    return ""


def signatures(module: torch.fx.GraphModule) -> dict[str, list[str]]:
    """What a region's code relies on of operators that aren't torch's: schema and tags, by name."""
    return {
        str(target): [str(target._schema), *sorted(map(str, target.tags))]
        for target in _targets(module)
        if isinstance(target, OpOverload) and not is_torchs_operator(target)
    }


def is_torchs_operator(target: Any) -> bool:
    """Whether a target is an operator of torch, or no operator at all."""
    if not isinstance(target, (OpOverload, OpOverloadPacket)):
        return True  # functions are known by their identity
    return str(target).partition(".")[0] in _NAMESPACES


def _why_not_a_call(target: Any) -> str:
    """Why compiling may have put code of an operator into a region, or ``""`` where it only calls it."""
    if not isinstance(target, OpOverload):
        return "of which it has no one overload"
    name: str = target.name()  # type: ignore[no-untyped-call]
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
        return "which is traced through"
    if target.py_kernels or target.python_key_table or target.functorch_table:
        return "which has rules of its own for tracing"
    constraint = getattr(
        sys.modules.get("torch._inductor.lowering"), "_maybe_layout_constraints", {}
    ).get(target)
    if constraint is not None and not _is_torchs(constraint):
        return "which has rules of its own for layouts"
    from torch._library.simple_registry import singleton

    known = singleton._data.get(name)
    if known is None:
        return ""
    rules = getattr(known, "torch_dispatch_rules", None)
    if rules is None or rules._data:
        return "which has rules of its own for tracing"
    memory = getattr(known, "symm_mem_args", None)
    if getattr(getattr(known, "effect", None), "effect", None) is not None:
        return "which has effects"
    if memory is not None and memory.get():
        return "which has rules of its own for memory"
    return ""


def _requires_grad(node: Node) -> bool:
    value = node.meta.get("val") if node.op == "placeholder" else None
    return isinstance(value, torch.Tensor) and value.requires_grad


def customised_tables() -> str:
    """Which operator somebody gave Inductor a lowering or decomposition of their own for, or ``""``.

    Where Inductor isn't loaded, nobody can have done so.
    """
    for module, table in (
        ("torch._inductor.lowering", "lowerings"),
        ("torch._inductor.decomposition", "decompositions"),
    ):
        for target, function in list(getattr(sys.modules.get(module), table, {}).items()):
            if not _is_torchs(function):
                return str(target)
    return ""


def _is_torchs(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    home = getattr(function, "__module__", None) or type(function).__module__
    # This package's own lowerings are covered by the digest of its code.
    return str(home).partition(".")[0] in _KNOWN


def _targets(module: torch.fx.GraphModule) -> Iterator[Any]:
    for node in module.graph.nodes:
        if node.op == "call_function":
            yield node.target
            # Operators are arguments as well, of auto_functionalized for one.
            yield from _operators_in((node.args, node.kwargs))
        elif node.op == "get_attr":
            value = ops.attribute(module, str(node.target))
            if isinstance(value, torch.fx.GraphModule):
                yield from _targets(value)
        elif node.op == "call_module":
            value = module.get_submodule(str(node.target))
            if isinstance(value, torch.fx.GraphModule):
                yield from _targets(value)


def _operators_in(value: Any) -> Iterator[Any]:
    if isinstance(value, (OpOverload, OpOverloadPacket, HigherOrderOperator)):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _operators_in(item)
    elif isinstance(value, (tuple, list)) and not isinstance(value, Node):
        for item in value:
            yield from _operators_in(item)


def device_kinds(module: torch.fx.GraphModule) -> frozenset[str]:
    """The kinds of devices that a region's values are on."""
    return frozenset(device.type for device in _devices(module))


def only_gpu(module: torch.fx.GraphModule) -> int | None:
    """The number of the GPU that a region's values are on, if they are on one alone, apart from the CPU."""
    found = {device for device in _devices(module) if device.type != "cpu"}
    if len(found) != 1:
        return None
    (device,) = found
    return device.index if device.type == "cuda" else None


def _devices(module: torch.fx.GraphModule) -> Iterator[torch.device]:
    for node in module.graph.nodes:
        value = node.meta.get("val")
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, torch.Tensor):
                yield item.device
