"""The fake value of each node: from `val`, from Dynamo's `example_value`, or propagated.

Checked on torch 2.11 and 2.13: `FakeTensorMode`, `detect_fake_mode`, `TracingContext`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch._guards import TracingContext, detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import Node

from .ops import attribute

MISSING = object()


def _new_mode() -> FakeTensorMode:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def recorded_value(node: Node) -> Any:
    """What a tracer recorded for a node, or `MISSING`."""
    if "val" in node.meta:
        return node.meta["val"]
    return node.meta.get("example_value", MISSING)


def known_values(module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> dict[Node, Any]:
    """The values of a graph's nodes without touching its meta; missing ones are propagated.

    Args:
        module: The graph.
        example_inputs: The arguments the graph will be called with, real or fake; used only for
            placeholders that carry no value. May be empty.

    Returns:
        A value for each node that has one. Nodes whose value can't be found are absent.
    """
    values: dict[Node, Any] = {}
    missing = False
    placeholder = 0
    for node in module.graph.nodes:
        value = recorded_value(node)
        if node.op == "placeholder":
            if value is MISSING and placeholder < len(example_inputs):
                value = example_inputs[placeholder]
            placeholder += 1
        elif node.op == "get_attr" and (value is MISSING or value is None):
            value = attribute(module, str(node.target))
            if not isinstance(value, torch.Tensor):
                continue
        if value is MISSING:
            missing = missing or node.op != "output"
        else:
            values[node] = value
    mode = fake_mode_of(values.values())
    for node, value in values.items():
        if type(value) is not FakeTensor and isinstance(value, torch.Tensor) and not is_fake(value):
            mode = mode or _new_mode()
            values[node] = mode.from_tensor(value, static_shapes=True)
    if missing:
        mode = mode or _new_mode()
        _Propagation(module, values, mode).propagate()
    return values


class _Propagation(torch.fx.Interpreter):
    """Runs only the nodes whose value is missing and whose inputs are known."""

    def __init__(
        self, module: torch.fx.GraphModule, values: dict[Node, Any], mode: FakeTensorMode
    ) -> None:
        super().__init__(module)
        self.values = values
        self.mode = mode

    def propagate(self) -> None:
        self.env = self.values
        for node in self.graph.nodes:
            if node in self.values or node.op in ("placeholder", "output"):
                continue
            if any(argument not in self.values for argument in node.all_input_nodes):
                if not all(a in self.values or a.op == "get_attr" for a in node.all_input_nodes):
                    continue
            try:
                with self.mode, torch.no_grad():
                    self.values[node] = super().run_node(node)
            except Exception:  # noqa: BLE001 - a value that can't be found is reported where it is needed
                continue

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if isinstance(value, torch.Tensor) and not is_fake(value):
            return self.mode.from_tensor(value, static_shapes=True)
        return value


def is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor) or (
        isinstance(value, torch.Tensor) and detect_fake_mode([value]) is not None
    )


def fake_mode_of(values: Any) -> FakeTensorMode | None:
    """The one mode that fake values of a graph belong to (the ambient one first), or None."""
    for value in values:
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, FakeTensor):
                return item.fake_mode
    context = TracingContext.try_get()
    return context.fake_mode if context is not None else None


def in_one_mode(values: Sequence[Any], mode: FakeTensorMode) -> list[Any]:
    """The same values as fake tensors of one mode (real-mode traces have a mode a tensor).

    Passes that copy a node's meta leave two nodes with one tensor as their value. A compiler takes arguments
    that are one object for one argument; what they hold when the region runs may differ. So each
    gets a tensor of its own.
    """
    result: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            value = _into(value, mode)
            if any(value is other for other in result):
                value = _anew(value, mode) if isinstance(value, FakeTensor) else value
        result.append(value)
    return result


def _into(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    if not isinstance(value, FakeTensor):
        return value if is_fake(value) else mode.from_tensor(value, static_shapes=True)
    return value if value.fake_mode is mode else _anew(value, mode)


def _anew(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        moved = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
    return moved.requires_grad_(value.requires_grad) if value.is_leaf else moved


def input_values(values: Mapping[Node, Any], nodes: Sequence[Node]) -> list[Any]:
    return [values[node] for node in nodes]
