"""An outlined region in float64: the same operators, nothing rounded to a narrower type on the way.

Checked on torch 2.11 and 2.13: `OpOverload._schema`, `torch.Tag.nondeterministic_seeded`, the fake
values in `node.meta["val"]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.node import Node
from torch.utils._pytree import tree_leaves, tree_map

from . import ops

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


class NoReferenceError(Exception):
    """A region can't be computed in float64; the message says why."""


def in_float64(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What a region computes if no operator in it rounds.

    Dtypes that the graph asks for (a cast to bfloat16, say) become float64 too. Random operators
    draw what they draw in the graph's own dtype, so they must start from the same generator state.

    Args:
        module: The outlined region; its nodes carry fake values.
        inputs: Its inputs; they aren't written to.

    Returns:
        The outputs; those that are no floating-point tensors as they are.

    Raises:
        NoReferenceError: An operator has no float64, or looks at bits or at memory.
    """
    wide = [_widened(value, copy=True) for value in inputs]
    storages = [v.untyped_storage()._cdata for v in inputs if isinstance(v, torch.Tensor)]
    writes = any(ops.traits(node, module).writes for node in module.graph.nodes)
    if writes and len(set(storages)) < len(storages):
        raise NoReferenceError("it writes to inputs that share memory")
    try:
        with torch.no_grad():
            outputs: Any = _Float64(module).run(*wide)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")  # FX adds more
        known = isinstance(error, NoReferenceError)
        raise NoReferenceError(line if known else f"{type(error).__name__}: {line}") from error
    return tuple(outputs)


class _Float64(torch.fx.Interpreter):
    """Runs a graph with every narrower floating-point type replaced by float64."""

    def run_node(self, n: Node) -> Any:
        self.node = n
        result = super().run_node(n)
        if n.op.startswith("call"):
            _check_wide(n, result)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, HigherOrderOperator):
            raise NoReferenceError(f"{target} is a higher-order operator")
        if not isinstance(target, OpOverload):
            return super().call_function(target, args, kwargs)
        if target in (torch.ops.aten.view.dtype, torch.ops.aten.view_copy.dtype):
            raise NoReferenceError("it reads the bits of a number as another type")
        if target.overloadpacket in _BY_MEMORY and not _laid_out_as_recorded(self.node, args):
            raise NoReferenceError(f"{target} reads memory that float64 lays out otherwise")
        if torch.Tag.nondeterministic_seeded in target.tags:
            return tree_map(_widened, target(*self._narrowed(args), **self._narrowed(kwargs)))
        args, kwargs = tree_map(_wider_dtype, (args, kwargs))
        for index, argument in enumerate(target._schema.arguments):
            if argument.name == "half_to_float":
                args = tuple(False if i == index else value for i, value in enumerate(args))
                kwargs = {k: False if k == "half_to_float" else v for k, v in kwargs.items()}
        return target(*args, **kwargs)

    def fetch_attr(self, target: str) -> Any:
        return _widened(super().fetch_attr(target))

    def _narrowed(self, values: Any) -> Any:
        """Arguments of the current node in the dtypes that the graph recorded for them."""
        nodes = [
            a for a in self.node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)
        ]
        recorded = {
            id(self.env.get(node)): node.meta["val"].dtype
            for node in nodes
            if isinstance(self.env.get(node), torch.Tensor)
        }
        return tree_map(lambda v: v.to(recorded[id(v)]) if id(v) in recorded else v, values)


_BY_MEMORY = (torch.ops.aten.as_strided, torch.ops.aten.as_strided_copy)


def _laid_out_as_recorded(node: Node, args: tuple[Any, ...]) -> bool:
    source = node.args[0]
    recorded = source.meta.get("val") if isinstance(source, Node) else None
    value = args[0]
    if not isinstance(recorded, torch.Tensor) or not isinstance(value, torch.Tensor):
        return False
    return tuple(recorded.stride()) == value.stride() and (
        recorded.storage_offset() == value.storage_offset()
    )


def _widened(value: Any, *, copy: bool = False) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(_WIDER.get(value.dtype, value.dtype), copy=copy)


def _wider_dtype(value: Any) -> Any:
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def _check_wide(node: Node, result: Any) -> None:
    for value in tree_leaves(result):
        if isinstance(value, torch.Tensor) and value.dtype in _WIDER:
            raise NoReferenceError(f"{ops.op_name(node)} gives {value.dtype} for float64")
