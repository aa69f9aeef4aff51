"""AOTAutograd's joint graph: which node belongs to which pass, and cutting it in two.

Checked on torch 2.11 and 2.13: `node.meta["partitioner_tag"]`, names of placeholders, `meta["desc"]` with
`InputMutationAOTOutput`, `default_partition` and its reading of `node.meta["recompute"]`, which selective
activation checkpointing writes too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch._ops import OpOverload
from torch.fx.node import Node
from torch.utils.checkpoint import CheckpointPolicy

_RECOMPUTED = (CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE)


@dataclass(frozen=True)
class Passes:
    """The nodes of each pass, placeholders included, and what the forward pass returns."""

    forward: frozenset[Node]
    backward: frozenset[Node]
    outputs: tuple[Node, ...]
    gradients: tuple[Node, ...]


def passes_of(graph: torch.fx.Graph, forward_outputs: int) -> Passes | None:
    """Which nodes belong to which pass, as torch's default partition places them.

    Returns:
        None for a graph that doesn't say, or that writes to anything but its inputs.
    """
    nodes = list(graph.nodes)
    places = [
        index
        for index, node in enumerate(nodes)
        if node.meta.get("partitioner_tag") == "is_forward" or _is_forward_input(node)
    ]
    if not any(nodes[index].op == "call_function" for index in places):
        return None
    if any(_writes(node) for node in nodes if not _is_copy_to_input(node)):
        return None
    forward = frozenset(
        node for node in nodes[: places[-1] + 1] if node.op != "output" and not _is_tangent(node)
    )
    results = graph.output_node().args[0]
    if not isinstance(results, Sequence):
        return None
    return Passes(
        forward,
        frozenset(node for node in nodes if node not in forward and node.op != "output"),
        tuple(r for r in results[:forward_outputs] if isinstance(r, Node)),
        tuple(r for r in results[forward_outputs:] if isinstance(r, Node)),
    )


def _is_forward_input(node: Node) -> bool:
    return node.op == "placeholder" and not _is_tangent(node) and "bwd_" not in str(node.target)


def _is_tangent(node: Node) -> bool:
    return node.op == "placeholder" and "tangents" in str(node.target)


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _is_copy_to_input(node: Node) -> bool:
    return (
        node.target is torch.ops.aten.copy_.default
        and isinstance(node.args[0], Node)
        and node.args[0].op == "placeholder"
    )


def written_inputs(graph: torch.fx.Graph) -> frozenset[Node]:
    """Inputs that hold something else after the forward pass: all of them, if that isn't known."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    written = {node.args[0] for node in graph.nodes if _is_copy_to_input(node)}
    described = {node.meta.get("desc"): node for node in inputs}
    descriptions = graph.output_node().meta.get("desc")
    if descriptions is None:
        return frozenset(inputs)
    for description in descriptions:
        mutated = getattr(description, "mutated_input", None)
        if mutated is None:
            continue
        if mutated not in described:  # the whole of which the graph has only parts
            return frozenset(inputs)
        written.add(described[mutated])
    return frozenset(written)


def is_recomputed_by_user(node: Node) -> bool:
    """Whether the user's own activation checkpointing computes a node again."""
    return node.meta.get("recompute") in _RECOMPUTED


def is_torchs_operator(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target.namespace in ("aten", "prims")


def has_tag(node: Node, name: str) -> bool:
    """Whether an operator has one of torch's tags; an older torch may not have the tag at all."""
    tag = getattr(torch.Tag, name, None)
    return tag is not None and tag in getattr(node.target, "tags", ())


Choose = Callable[[torch.fx.Graph, int, Collection[Node]], Collection[Node]]


def partition_with(choose: Choose, withdraw: Callable[[], None]) -> Callable[..., tuple[Any, Any]]:
    """A partition function for AOTAutograd that also computes chosen nodes in the backward pass.

    Torch's default partition does the work, and keeps its promises about order, effects and random
    draws; the nodes are tagged for it as selective checkpointing tags them. If anything else than
    these would run twice because of it, they are not, and all is as by default.

    Args:
        choose: Given the joint graph, the number of forward outputs and the placeholders that live
            on anyway, names the nodes.
        withdraw: Called when what was named isn't done.
    """

    def partition(
        module: torch.fx.GraphModule,
        joint_inputs: Any,
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: list[int] | None = None,
        **others: Any,
    ) -> tuple[Any, Any]:
        from torch._functorch.partitioners import default_partition

        def by_default() -> tuple[Any, Any]:
            return default_partition(
                module,
                joint_inputs,
                num_fwd_outputs=num_fwd_outputs,
                static_lifetime_input_indices=static_lifetime_input_indices,
                **others,
            )

        primals = [n for n in module.graph.nodes if n.op == "placeholder" and "primals" in n.name]
        static = [primals[i] for i in static_lifetime_input_indices or () if i < len(primals)]
        chosen = choose(module.graph, num_fwd_outputs, static)
        if not chosen:
            return by_default()
        # By name: a partition may put another graph into the module.
        policies = {node.name: node.meta.get("recompute") for node in module.graph.nodes}
        for node in chosen:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        try:
            forward, backward = by_default()
        finally:
            _set_policies(module, policies)
        for result in (forward, backward):
            _set_policies(result, policies)
        others_run_twice = _run_twice(forward, backward) - {node.name for node in chosen}
        if others_run_twice and not others_run_twice <= _run_twice(*by_default()):
            withdraw()
            return by_default()
        return forward, backward

    return partition


def _set_policies(
    module: torch.fx.GraphModule, policies: Mapping[str, CheckpointPolicy | None]
) -> None:
    for node in module.graph.nodes:
        policy = policies.get(node.name)
        if policy is None:
            node.meta.pop("recompute", None)
        else:
            node.meta["recompute"] = policy


def _run_twice(forward: torch.fx.GraphModule, backward: torch.fx.GraphModule) -> set[str]:
    """Names of the operators that both graphs run."""
    names = [
        {n.name for n in m.graph.nodes if n.op == "call_function"} for m in (forward, backward)
    ]
    return names[0] & names[1]
