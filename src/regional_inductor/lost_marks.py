"""Marks that Dynamo's graph carries and AOTAutograd's doesn't: carried over, or reported.

Under dynamic shapes torch rewrites arithmetic on symbolic floats (a float argument, `1 / sqrt(size)`)
into tensor operators that carry no metadata at all, marks included. What was marked before is found
again by what it computes and from what; where that fails, one warning says which mark.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.fx.node import Node

from ._torch import dynamo, ops
from ._torch.annotate import surrounding_annotation
from .errors import RegionWarning
from .options import MARK_KEY
from .regions import Finding
from .source import user_source

_SAME_OPERATOR = {"truediv": "div", "floordiv": "div", "matmul": "mm"}


@dataclass(frozen=True)
class MarkedOperator:
    """A marked operator of Dynamo's graph; `body_of` names the HOP whose body it is in."""

    name: str
    operator: str
    value: Any
    inputs: tuple[str, ...]
    source: str
    is_tensor: bool
    body_of: str = ""

    @property
    def label(self) -> str:
        name = self.value.get("name") if isinstance(self.value, dict) else self.value
        return str(name) if isinstance(name, str) else repr(name)


@dataclass(frozen=True)
class DynamoMarks:
    """What to look for in the graph that AOTAutograd makes of Dynamo's."""

    operators: tuple[MarkedOperator, ...]
    placeholders: tuple[str, ...]

    def digest(self) -> str:
        """Text that is equal in another process for the same marks in the same places.

        Numbers of entries are drawn anew in each process; only which are equal counts.
        """
        numbers: dict[Any, int] = {}
        lines = []
        for operator in self.operators:
            value = operator.value
            if isinstance(value, dict):
                entry = value.get("entry")
                value = {k: v for k, v in value.items() if k not in ("entry", "source")}
                value["entry"] = numbers.setdefault(entry, len(numbers))
                value = sorted(value.items(), key=str)
            lines.append(f"{operator.body_of} {operator.name} {value!r}")
        return "\n".join(lines)


def take_over_surrounding_mark(module: torch.fx.GraphModule) -> None:
    """Mark a graph of Dynamo's with the mark that its call stands in, where it has no mark itself.

    Dynamo doesn't see a region that was entered before the compiled function was called: around one
    block of a model that is compiled block by block, or where a graph break made Dynamo give up the
    function with the region in it. AOTAutograd sees it and would mark the backward graph alone.
    """
    surrounding = surrounding_annotation()
    if MARK_KEY not in surrounding:
        return
    for node in module.graph.nodes:
        custom = node.meta.get("custom") or {}
        if node.op.startswith("call") and MARK_KEY not in custom:
            node.meta["custom"] = {**custom, MARK_KEY: surrounding[MARK_KEY]}


def remember_marks(module: torch.fx.GraphModule) -> DynamoMarks:
    """Take down the marked operators of a graph before AOTAutograd traces it."""
    return DynamoMarks(
        tuple(_marked_operators(module, "")),
        tuple(node.name for node in module.graph.nodes if node.op == "placeholder"),
    )


def _marked_operators(module: torch.fx.GraphModule, body_of: str) -> Iterator[MarkedOperator]:
    for node in module.graph.nodes:
        if ops.is_hop(node):
            for _, body in ops.bodies(node, module):
                yield from _marked_operators(body, body_of or ops.hop_name(node))
        value = _mark_value(node)
        if not node.op.startswith("call") or value is None:
            continue
        recorded = node.meta.get("example_value", node.meta.get("val"))
        yield MarkedOperator(
            name=node.name,
            operator=_operator(node),
            value=value.value,
            inputs=tuple(argument.name for argument in node.all_input_nodes),
            source=user_source(node),
            is_tensor=isinstance(recorded, torch.Tensor),
            body_of=body_of,
        )


@dataclass(frozen=True)
class _Present:
    value: Any


def _mark_value(node: Node) -> _Present | None:
    custom = node.meta.get("custom")
    if not isinstance(custom, dict) or MARK_KEY not in custom:
        return None
    value = custom[MARK_KEY]
    if isinstance(value, dict) and value.get("eager"):
        return None
    return _Present(value)


def restore_marks(wanted: DynamoMarks, module: torch.fx.GraphModule) -> list[Finding]:
    """Mark again what lost its mark on the way, and warn of what can't be found.

    Args:
        wanted: What Dynamo's graph carried.
        module: AOTAutograd's forward or inference graph; marks are added to its nodes.

    Returns:
        What was warned of.
    """
    if not wanted.operators:
        return []
    images = _images(wanted, module)
    bare = [node for node in module.graph.nodes if _is_bare(node)]
    missing: dict[str, MarkedOperator] = {}
    for operator in wanted.operators if bare else ():
        if not operator.is_tensor or operator.body_of or operator.name in images:
            continue
        found = _image_among(bare, operator, images)
        if found is not None:
            images[operator.name] = found
            bare.remove(found)
            found.meta["custom"] = {**found.meta.get("custom", {}), MARK_KEY: operator.value}
        elif _has_bare_user(operator, images, bare):
            missing.setdefault(operator.label, operator)
    present = {_key(v.value) for v in map(_mark_value, _all_nodes(module)) if v is not None}
    # Tensor operators first: they say best what was lost.
    for operator in sorted(wanted.operators, key=lambda o: not o.is_tensor):
        if _key(operator.value) not in present:
            missing.setdefault(operator.label, operator)
    findings = [_finding(operator) for operator in missing.values()]
    for finding in findings:
        warnings.warn(RegionWarning(finding.text), stacklevel=2)
    return findings


def _finding(operator: MarkedOperator) -> Finding:
    if operator.body_of:
        what = (
            f"code marked inside a body of {operator.body_of} is compiled together with it or not at "
            "all: torch drops the mark"
        )
        hint = f"mark the call of {operator.body_of} itself"
    else:
        what = (
            f"what was marked ({operator.operator}) left no marked operator in the graph that "
            "AOTAutograd made, so it runs eager"
        )
        hint = (
            "results that nobody uses and arithmetic on Python numbers leave nothing to compile; pass "
            "numbers as tensors, or compile with dynamic=False"
        )
    return Finding("lost", what, operator.source, hint, operator.label)


def _key(value: Any) -> str:
    return repr(value)


def _all_nodes(module: torch.fx.GraphModule) -> Iterator[Node]:
    for nested in module.modules():
        if isinstance(nested, torch.fx.GraphModule):
            yield from nested.graph.nodes


def _images(wanted: DynamoMarks, module: torch.fx.GraphModule) -> dict[str, Node]:
    """For names of Dynamo's nodes the last node of the new graph that came of it."""
    images: dict[str, Node] = {}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(placeholders) == len(wanted.placeholders):
        images.update(zip(wanted.placeholders, placeholders, strict=True))
    for node in module.graph.nodes:
        for origin in node.meta.get("from_node") or ():
            images[origin.name] = node
    return images


def _is_bare(node: Node) -> bool:
    return (
        node.op == "call_function"
        and "from_node" not in node.meta
        and not node.meta.get("stack_trace")
        and isinstance(node.meta.get("val"), torch.Tensor)
    )


def _image_among(
    bare: list[Node], operator: MarkedOperator, images: Mapping[str, Node]
) -> Node | None:
    inputs = {images[name] for name in operator.inputs if name in images}
    for node in bare:
        if _operator(node) == operator.operator and inputs & set(node.all_input_nodes):
            return node
    return None


def _has_bare_user(operator: MarkedOperator, images: Mapping[str, Node], bare: list[Node]) -> bool:
    inputs = {images[name] for name in operator.inputs if name in images}
    return any(inputs & set(node.all_input_nodes) for node in bare)


def _operator(node: Node) -> str:
    """The operator's base name, the same for Dynamo's functions and methods and for aten's."""
    name = ops.base_name(node).strip("_")
    return _SAME_OPERATOR.get(name, name)


def warn_of_lost_regions() -> None:
    """Say when a graph break inside a marked region made Dynamo give a frame up."""
    for finding in lost_regions():
        warnings.warn(RegionWarning(finding.text), stacklevel=2)


def lost_regions() -> list[Finding]:
    """Regions lost to a graph break since this was asked last."""
    count, breaks, annotations = dynamo.lost_regions()
    if not count:
        return []
    causes = "; ".join(dict.fromkeys(breaks)) or "unknown"
    named: dict[str, Any] = {}
    line = ""
    for annotation, broken_line in annotations:
        line = broken_line
        value = _annotated_value(annotation)
        if isinstance(value, dict):
            named = value
            break
    return [
        Finding(
            "graph-break",
            "a graph break lies inside a marked region, so Dynamo runs the whole function that "
            f"holds the region eagerly; graph breaks so far: {causes}",
            str(named.get("source") or line),
            "move what breaks out of the region; fullgraph=True shows its line",
            str(named.get("name") or ""),
        )
    ]


def _annotated_value(annotation: Any) -> Any:
    for item in annotation if isinstance(annotation, (list, tuple)) else (annotation,):
        if isinstance(item, dict) and MARK_KEY in item:
            return item[MARK_KEY]
    return None
