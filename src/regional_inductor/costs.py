"""What a region moves and computes, from the metadata of its values: nothing is run."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.fx.node import Node, map_aggregate

from ._torch import ops
from ._torch.symbols import hint_of, leaves


@dataclass(frozen=True)
class Costs:
    """Bytes and floating-point operations of one call of a region.

    Attributes:
        bytes_read: Bytes of its inputs: what one kernel for the whole region would read.
        bytes_written: Bytes of its outputs, without views of its inputs, which nobody writes.
        bytes_eager: Bytes that its operators read and write when each runs as a kernel of its own,
            as in eager mode. What fusing can save is the difference.
        flops: Floating-point operations of its matrix multiplications, convolutions and attention,
            as `torch.utils.flop_counter` counts them; pointwise operators count zero.
    """

    bytes_read: int
    bytes_written: int
    bytes_eager: int
    flops: int


def costs_of(module: torch.fx.GraphModule) -> Costs | None:
    """The costs of an outlined region; symbolic sizes count as what they were at capture.

    Returns:
        None where a size is known only at run time.
    """
    try:
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        return Costs(
            bytes_read=sum(bytes_of(node) for node in inputs),
            bytes_written=_written(module.graph.output_node().all_input_nodes),
            bytes_eager=sum(_moved(node) for node in module.graph.nodes if _computes(node)),
            flops=sum(_flops_of(node) for node in module.graph.nodes if _computes(node)),
        )
    except UnknownSize:
        return None


class UnknownSize(Exception):
    """A size that is known only at run time."""


def _computes(node: Node) -> bool:
    return (
        node.op.startswith("call") and not ops.is_view(node) and node.target is not operator.getitem
    )


def _moved(node: Node) -> int:
    return bytes_of(node) + sum(map(bytes_of, node.all_input_nodes))


def _written(outputs: Iterable[Node]) -> int:
    """What has to be written for some values: each storage once, and none for a view of an input."""
    found: dict[Node, int] = {}
    for node in outputs:
        storage = _viewed(node)
        if storage.op != "placeholder":
            found[storage] = max(found.get(storage, 0), bytes_of(node))
    return sum(found.values())


def _viewed(node: Node) -> Node:
    """The node that made the storage that a node only looks at."""
    while ops.is_view(node) and node.all_input_nodes:
        source = node.all_input_nodes[0]
        if node.target is operator.getitem and not ops.is_view(source):
            break  # one of several results
        node = source
    return node


def bytes_of(node: Node) -> int:
    """Bytes of a node's tensors.

    Raises:
        UnknownSize: One of their sizes is known only at run time.
    """
    value = node.meta.get("val")
    return sum(_tensor_bytes(leaf) for leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def _tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor's elements take; an expanded dimension is there once."""
    sizes: Iterable[Any] = tensor.shape
    if tensor.layout is torch.strided:
        strides = [hint_of(stride) for stride in tensor.stride()]
        sizes = (s for s, stride in zip(tensor.shape, strides, strict=True) if stride != 0)
    return math.prod(map(_size, sizes)) * tensor.element_size()


def _size(size: Any) -> int:
    hint = hint_of(size)
    if hint is None:
        raise UnknownSize
    return hint


def _flops_of(node: Node) -> int:
    from torch.utils.flop_counter import flop_registry

    target = getattr(node.target, "overloadpacket", node.target)
    formula = flop_registry.get(target) if _is_hashable(target) else None
    if formula is None and not ops.may_consist_of_others(node):
        return 0

    def plain(value: Any) -> Any:
        if isinstance(value, Node):
            return map_aggregate(value.meta.get("val"), plain)
        if isinstance(value, torch.Tensor):
            return torch.empty([_size(s) for s in value.shape], dtype=value.dtype, device="meta")
        if isinstance(value, torch.SymInt):
            return _size(value)
        return value

    args, kwargs = map_aggregate((node.args, dict(node.kwargs)), plain)
    try:
        if formula is None:
            return _flops_within(node, args, kwargs)
        return int(formula(*args, **kwargs, out_val=plain(node)))
    except UnknownSize:
        raise
    except Exception:  # noqa: BLE001 - a formula for other arguments than these: nothing is known
        return 0


def _flops_within(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """What torch counts while a node's function runs on tensors without contents."""
    from torch.utils.flop_counter import FlopCounterMode

    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves((args, kwargs))):
        return 0  # it may draw random numbers, or read a clock
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    if node.op == "call_method":
        function, args = getattr(args[0], str(node.target)), args[1:]
    elif node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
        held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        without_contents = {name: value.to("meta") for name, value in held.items()}
        function = functools.partial(torch.func.functional_call, module, without_contents)
        args = (args,)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return int(counter.get_total_flops())


def _is_hashable(value: Any) -> bool:
    return getattr(type(value), "__hash__", None) is not None
