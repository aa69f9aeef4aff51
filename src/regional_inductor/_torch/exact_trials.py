"""Operators by themselves, to be compared with eager where nobody has done it for the list.

A trial is of an operator with its types and constants: on CUDA an element doesn't depend on its
neighbours, nor on the layout. One graph holds all operators that are to be tried, in all ways in
which each may be compiled, so that they cost one call of Inductor.

Checked on torch 2.11 and 2.13: `torch.fx.experimental.proxy_tensor.make_fx`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.fx.node import Node, map_arg

from . import exact_cuda
from .cuda_candidates import NotExactError
from .exact_cuda import Candidate

ELEMENTS = {"cpu": (1 << 16) + 5, "cuda": (1 << 20) + 5}
"""All values of 16 bits and then some; no multiple of a vector."""


@dataclass(frozen=True)
class Verdict:
    """What a trial found out.

    Attributes:
        reason: Why the operator stays eager, or ``""``.
        choice: Which of its candidates equals eager.
    """

    reason: str
    choice: int = 0


@dataclass(frozen=True)
class Attempt:
    """One way of compiling one operator: the operator `alone`, and which candidate."""

    node: Node
    choice: int


_verdicts: dict[Hashable, Verdict] = {}


def forget() -> None:
    """Forget what was found out in this process."""
    _verdicts.clear()


def signature(node: Node) -> Hashable:
    """What a trial of a node holds for: its operator, types and constants, and what is a single number."""
    places: dict[Node, int] = {}
    singles = _single_numbers(node)

    def described(argument: Any) -> Any:
        if isinstance(argument, Node):
            value = argument.meta["val"]
            known = places.setdefault(argument, len(places))
            return known, str(value.dtype), argument in singles
        if isinstance(argument, (list, tuple)):
            return tuple(described(item) for item in argument)
        return repr(argument)

    value = node.meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    return (
        str(node.target),
        str(first.device),
        described(node.args),
        tuple((name, described(item)) for name, item in sorted(node.kwargs.items())),
    )


def _single_numbers(node: Node) -> set[Node]:
    """Operands of one number, next to others that have more; where all are, a trial takes many."""
    operands = node.all_input_nodes
    singles = {operand for operand in operands if operand.meta["val"].dim() == 0}
    return set() if len(singles) == len(operands) else singles


def verdict(node: Node) -> Verdict | None:
    """What is known of an operator like this; None before its trial."""
    return _verdicts.get(signature(node))


def decide(node: Node, found: Verdict) -> None:
    """Hold on to what a trial found out."""
    _verdicts[signature(node)] = found


def attempts(node: Node) -> list[Attempt]:
    """All ways in which an operator may be compiled, the one to prefer first."""
    return [Attempt(node, choice) for choice in range(len(_candidates(node)))]


def _candidates(node: Node) -> Sequence[Candidate]:
    return exact_cuda.candidates(node) if exact_cuda.is_tried(node) else (None,)


def expansion(node: Node, choice: int) -> Callable[..., Any] | None:
    """A candidate of an operator as a function; None if Inductor lowers it, or by its formula."""
    return _candidates(node)[choice]


def chosen(node: Node) -> Callable[..., Any] | None:
    """The function that a trial chose for an operator; None for any that is lowered as it is."""
    if not exact_cuda.is_tried(node):
        return None
    found = verdict(node)
    return None if found is None else expansion(node, found.choice)


def inlined(
    graph: torch.fx.Graph, node: Node, function: Callable[..., Any], copies: dict[Node, Node]
) -> Node:
    """Put the operators that a function calls into a graph, in place of a node.

    Args:
        graph: That gets the operators.
        node: What the function stands for; its arguments are the function's.
        function: Over tensors, with one tensor as its result.
        copies: For each of the node's operands its copy in `graph`.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    operands = node.all_input_nodes
    fakes = [operand.meta["val"] for operand in operands]

    def call(*tensors: torch.Tensor) -> Any:
        given = dict(zip(operands, tensors, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: given[n])
        return function(*args, **kwargs)

    with fakes[0].fake_mode:
        traced = make_fx(call)(*fakes)
    made: dict[Node, Node] = {}
    inputs = iter(operands)
    for inner in traced.graph.nodes:
        if inner.op == "placeholder":
            made[inner] = copies[next(inputs)]
        elif inner.op == "output":
            (result,) = inner.all_input_nodes
        else:
            made[inner] = graph.node_copy(inner, lambda old: made[old])
    return made[result]


def alone(node: Node, mode: Any) -> Node:
    """An operator in a graph of its own, over operands of the size that trials have."""
    graph = torch.fx.Graph()
    operands = {}
    singles = _single_numbers(node)
    with mode:
        for operand in node.all_input_nodes:
            value = operand.meta["val"]
            shape = () if operand in singles else (ELEMENTS[value.device.type],)
            operands[operand] = graph.placeholder("operand")
            operands[operand].meta["val"] = torch.empty(
                shape, dtype=value.dtype, device=value.device
            )
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: operands[n])
        call = graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
        values: Any = map_arg((args, kwargs), lambda n: n.meta["val"])
        call.meta["val"] = node.target(*values[0], **values[1])  # type: ignore[operator]
    return call


def in_one_graph(tried: Sequence[Attempt]) -> tuple[torch.fx.GraphModule, list[int]]:
    """Operators next to each other, each with operands of its own, as a region would hold them.

    Returns:
        The graph, in which a placeholder's `meta["place"]` says which operand of its operator it is, and for each of its outputs the number of the attempt that it belongs to.
    """
    graph = torch.fx.Graph()
    placed: list[dict[Node, Node]] = []
    for number, attempt in enumerate(tried):
        operands = {}
        for place, operand in enumerate(attempt.node.all_input_nodes):
            operands[operand] = graph.placeholder(f"operand_{number}_{place}")
            operands[operand].meta = {**operand.meta, "place": place}
        placed.append(operands)
    outputs: list[Node] = []
    owners: list[int] = []
    for number, (attempt, operands) in enumerate(zip(tried, placed, strict=True)):
        call = graph.node_copy(attempt.node, operands.__getitem__)
        call.meta["attempt"] = attempt.choice
        parts = list(_parts(graph, call))
        outputs += parts
        owners += [number] * len(parts)
    graph.output(tuple(outputs))
    return torch.fx.GraphModule(torch.nn.Module(), graph), owners


def _parts(graph: torch.fx.Graph, node: Node) -> Iterable[Node]:
    value = node.meta["val"]
    if not isinstance(value, (tuple, list)):
        yield node
        return
    for place, part in enumerate(value):
        selected = graph.call_function(operator.getitem, (node, place))
        selected.meta["val"] = part
        yield selected


def expanded(
    module: torch.fx.GraphModule, known: Callable[[Node], Callable[..., Any] | None]
) -> torch.fx.GraphModule:
    """A copy of a graph in which operators are what trials chose, or what is to be tried.

    Args:
        module: The graph.
        known: Says what any other operator is to be taken apart into; None for most.
    """
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    for node in module.graph.nodes:
        function = chosen(node)
        if "attempt" in node.meta:
            function = expansion(node, node.meta["attempt"])
        function = function or known(node)
        if function is None:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
        else:
            copies[node] = inlined(graph, node, function, copies)
    return torch.fx.GraphModule(module, graph)


def fits(attempt: Attempt) -> bool:
    """Whether a candidate is one for the constants and types of an operator at all."""
    function = expansion(attempt.node, attempt.choice)
    if function is None:
        return True
    graph = torch.fx.Graph()
    copies = {n: graph.placeholder("operand") for n in attempt.node.all_input_nodes}
    try:
        result = inlined(graph, attempt.node, function, copies)
    except NotExactError:
        return False
    made, wanted = result.meta["val"], attempt.node.meta["val"]
    return (made.dtype, made.shape) == (wanted.dtype, wanted.shape)
