"""Ready-made rules: functions that mark in a captured graph what is known to pay when it is fused.

A rule is a function of a graph that marks nodes and returns the handle, or raises `MarkError` where it
finds nothing. Copy one, change it, and pass it to ``ri.compile(model, rules=[...])``. What carries a mark
already, `ri.eager` included, is left as it is: rules never overrule the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch.fx
from torch.fx.node import Node

from .errors import MarkError, OptionError, did_you_mean
from .node_marks import NodeHandle, mark_nodes
from .options import MARK_KEY
from .regions import Finding

__all__ = [
    "RULES",
    "Rule",
    "RuleSet",
    "called",
    "cross_entropy",
    "flex_attention",
    "gated_activations",
    "in_function",
    "in_module",
    "mark_unmarked",
    "norms",
    "optimizer_steps",
    "rope",
]

Rule: TypeAlias = Callable[[torch.fx.GraphModule], Any]
"""Marks nodes of a graph; raises `MarkError` where nothing matches, as `mark_nodes` does."""

_NORM_CLASS = r"^Norm$|(RMS|Layer|Group)_?Norm"
_NORM_CALLS = ("layer_norm", "rms_norm", "group_norm", "native_layer_norm", "native_group_norm")
_ACTIVATIONS = ("silu", "gelu", "sigmoid", "relu")


# --- the rules ------------------------------------------------------------------------------------


def norms(gm: torch.fx.GraphModule) -> NodeHandle:
    """Layer, RMS and group norms: what modules of such a class compute, and the operators themselves.

    Example:
        >>> import torch, regional_inductor as ri
        >>> gm = torch.fx.symbolic_trace(lambda x: torch.nn.functional.layer_norm(x, (4,)) + 1)
        >>> ri.rules.norms(gm).nodes
        1
    """
    return mark_unmarked(
        gm, lambda node: in_module(node, _NORM_CLASS) or called(node) in _NORM_CALLS, name="norm"
    )


def rope(gm: torch.fx.GraphModule) -> NodeHandle:
    """Rotary embeddings: what runs inside functions called `apply_rotary_pos_emb` or the like."""
    return mark_unmarked(
        gm, lambda node: in_function(node, r"apply_(multimodal_)?rotary\w*"), name="rope"
    )


def gated_activations(gm: torch.fx.GraphModule) -> NodeHandle:
    """SwiGLU and its kin: an activation that is only multiplied by another tensor, and the product.

    Example:
        >>> import torch, regional_inductor as ri
        >>> gm = torch.fx.symbolic_trace(lambda gate, up: torch.nn.functional.silu(gate) * up)
        >>> ri.rules.gated_activations(gm).nodes
        2
    """
    gates = {
        node
        for node in _nodes(gm)
        if called(node) in _ACTIVATIONS
        and len(node.users) == 1
        and _is_product(next(iter(node.users)))
    }
    products = {next(iter(gate.users)) for gate in gates}
    chosen = gates | products
    return mark_unmarked(gm, lambda node: node in chosen, name="gated activation")


def cross_entropy(gm: torch.fx.GraphModule) -> NodeHandle:
    """The loss over logits: softmax and the choice of the target without the steps between."""
    return mark_unmarked(
        gm,
        lambda node: called(node) in ("cross_entropy", "cross_entropy_loss"),
        name="cross entropy",
    )


def flex_attention(gm: torch.fx.GraphModule) -> NodeHandle:
    """FlexAttention, whose eager form keeps all scores in memory.

    Other attention operators run a finished kernel, which compiling them wouldn't change.
    """
    return mark_unmarked(gm, lambda node: called(node) == "flex_attention", name="flex_attention")


def optimizer_steps(gm: torch.fx.GraphModule) -> NodeHandle:
    """Updates of parameters: what runs inside `torch.optim`, and `torch._foreach_*` anywhere."""
    return mark_unmarked(
        gm,
        lambda node: (
            called(node).startswith("_foreach_")
            or re.search(r"[/\\]torch[/\\]optim[/\\]", _trace(node)) is not None
        ),
        name="optimizer step",
    )


RULES: dict[str, tuple[Rule, ...]] = {
    "norms": (norms,),
    "rope": (rope,),
    "gated_activations": (gated_activations,),
    "cross_entropy": (cross_entropy,),
    "flex_attention": (flex_attention,),
    "optimizer_steps": (optimizer_steps,),
    "transformer": (norms, rope, gated_activations, cross_entropy, flex_attention),
}
"""The names that ``rules=`` takes."""


# --- what rules are made of -----------------------------------------------------------------------


def mark_unmarked(
    gm: torch.fx.GraphModule, predicate: Callable[[Node], bool], **arguments: Any
) -> NodeHandle:
    """:func:`mark_nodes`, leaving out nodes that carry a mark already.

    Args:
        gm: The graph.
        predicate: Says of a node whether to mark it.
        **arguments: As for :func:`mark_nodes`.

    Returns:
        The handle of :func:`mark_nodes`.

    Raises:
        MarkError: Nothing that is unmarked matches.

    Example:
        >>> import torch, regional_inductor as ri
        >>> gm = torch.fx.symbolic_trace(lambda x: x.sin().cos())
        >>> ri.mark_nodes(gm, "sin").nodes
        1
        >>> ri.rules.mark_unmarked(gm, lambda node: True, name="rest").nodes
        1
    """

    def is_wanted(node: Node) -> bool:
        return MARK_KEY not in (node.meta.get("custom") or {}) and predicate(node)

    return mark_nodes(gm, is_wanted, **arguments)


def called(node: Node) -> str:
    """What a node calls, in one word that is the same in Dynamo's and in ATen's graphs: `silu`, `mul`."""
    if isinstance(node.target, str):
        return node.target if node.op == "call_method" else ""
    target: Any = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(target, "__name__", ""))


def in_module(node: Node, pattern: str) -> bool:
    """Whether the innermost module that a node was called in has a class whose name holds a pattern."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return False
    cls: Any = list(stack.values())[-1][1]
    name = cls.__name__ if isinstance(cls, type) else str(cls).rpartition(".")[2]
    return re.search(pattern, name) is not None


def in_function(node: Node, pattern: str) -> bool:
    """Whether a node was called, at any depth, in a function whose whole name fits a pattern."""
    return (
        re.search(rf'^\s*File ".*", line \d+, in {pattern}$', _trace(node), re.MULTILINE)
        is not None
    )


def _trace(node: Node) -> str:
    return node.meta.get("stack_trace") or ""


def _is_product(node: Node) -> bool:
    factors = [argument for argument in node.args if isinstance(argument, Node)]
    return called(node) in ("mul", "__mul__", "multiply") and len(set(factors)) == 2


def _nodes(gm: torch.fx.GraphModule) -> Iterable[Node]:
    for module in gm.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


# --- rules= ---------------------------------------------------------------------------------------


class RuleSet:
    """The rules of one compiled model; remembers over its graphs which of them have matched."""

    def __init__(self, rules: str | Rule | Iterable[str | Rule], *, whole: bool) -> None:
        single = isinstance(rules, str) or callable(rules)
        given: Iterable[Any] = [rules] if single else rules  # type: ignore[assignment]
        # A dictionary, as one rule may come by its own name and with "transformer".
        self.rules = tuple(dict.fromkeys(rule for one in given for rule in _resolve(one)))
        if not self.rules:
            raise OptionError("rules= is empty", hint=f"one of {', '.join(RULES)}, or leave it out")
        self._whole = whole
        self._matched: set[Rule] = set()

    def __call__(self, gm: torch.fx.GraphModule, findings: list[Finding]) -> None:
        """Mark a captured graph, and keep one finding for each rule that has matched in none so far.

        Raises:
            MarkError: No rule matches, in a graph that is known to be all there is.
        """
        for rule in self.rules:
            try:
                rule(gm)
            except MarkError:
                continue
            self._matched.add(rule)
        if self._whole and not self._matched:
            raise MarkError(
                f"no rule matches anything in the model: {', '.join(map(_name, self.rules))}",
                hint="mark by hand with regional_inductor.mark, or write a rule of your own",
            )
        findings[:] = [finding for finding in findings if finding.kind != "rules"]
        findings += [_unmatched(rule) for rule in self.rules if rule not in self._matched]


def _resolve(rule: Any) -> tuple[Rule, ...]:
    if callable(rule):
        return (rule,)
    if rule in RULES:
        return RULES[rule]
    raise OptionError(
        f"rules={rule!r} is no rule",
        hint=did_you_mean(str(rule), RULES, f"a function of a graph, or one of {', '.join(RULES)}"),
    )


def _unmatched(rule: Rule) -> Finding:
    return Finding(
        "rules",
        f"the rule {_name(rule)} matches nothing in the model that is not marked already",
        remedy="leave it out of rules=, or mark by hand what it should have found",
    )


def _name(rule: Rule) -> str:
    return str(getattr(rule, "__name__", type(rule).__name__))
