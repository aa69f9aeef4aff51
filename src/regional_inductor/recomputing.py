"""What backward regions compute again, so that the forward pass need not keep it.

A region's intermediate values that its own backward region reads are cheap to compute again there: the
kernel that reads them computes them from what it reads anyway. So a minimum cut decides which values
of the forward pass are kept. Only marked pointwise operators and views are ever computed again, and only
where the result stays inside a backward region of the same entry; what runs eagerly runs exactly as
often as without this, and so do random draws, collectives and effects.
docs/decisions/0013-min-cut.md says why so, and what else was considered.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.fx
from torch.fx.node import Node

from ._torch import joint, ops
from .costs import UnknownSize, bytes_of
from .errors import RegionError
from .options import MARK_KEY, parse_mark
from .regions import Settings
from .report import GraphReport

# Pure operators of one element each, or none at all, that carry no tag which says so.
_CHEAP = frozenset(
    [
        "_to_copy",
        "_unsafe_view",
        "reshape",
        "full",
        "full_like",
        "zeros",
        "zeros_like",
        "ones",
        "ones_like",
        "scalar_tensor",
        "new_zeros",
        "new_ones",
        "new_full",
        "arange",
        "glu",
    ]
)
# What Inductor lowers to loops: such an operator reads its inputs inside a kernel of the region.
_FUSED = _CHEAP | frozenset(
    [
        "cat",
        "_softmax",
        "_log_softmax",
        "_softmax_backward_data",
        "_log_softmax_backward_data",
        "cumsum",
        "native_layer_norm",
        "native_layer_norm_backward",
        "_fused_rms_norm",
        "_fused_rms_norm_backward",
        "native_group_norm",
        "native_group_norm_backward",
        "native_batch_norm_backward",
        "elu_backward",
        "leaky_relu_backward",
        "hardswish_backward",
        "hardtanh_backward",
        "softplus_backward",
        "hardsigmoid_backward",
        "mish_backward",
        "log_sigmoid_backward",
        "glu_backward",
        "rrelu_with_noise_backward",
        "select_backward",
        "slice_backward",
    ]
)
_NO_MODULE = torch.nn.Module()  # nothing that a plain operator is asked about


@dataclass(frozen=True)
class Recomputation:
    """What is computed again in the backward pass, and what that saves.

    Attributes:
        nodes: Nodes of the joint graph that run in both passes.
        saved_bytes: Bytes that the forward pass keeps for the backward pass, its inputs not
            counted; None where a size is known only at run time.
        saved_bytes_otherwise: The same if nothing were computed again.
    """

    nodes: tuple[Node, ...] = ()
    saved_bytes: int | None = None
    saved_bytes_otherwise: int | None = None

    @property
    def operators(self) -> int:
        """How many of the nodes compute something: views don't."""
        return sum(not _is_plain_view(node) for node in self.nodes)


def choose_recomputation(
    graph: torch.fx.Graph,
    forward_outputs: int,
    static_inputs: Collection[Node] = (),
    *,
    merge: Literal["scope", "all"] = "scope",
    recompute: Literal["regions", "off"] = "regions",
) -> Recomputation:
    """Decide which forward nodes of a joint graph the backward pass computes again.

    Args:
        graph: AOTAutograd's joint graph; it is only read.
        forward_outputs: How many of its results the forward pass returns; the others are gradients.
        static_inputs: Placeholders that live on anyway, such as parameters: they are kept for
            nothing.
        merge: Whether equal marks of different entries may share a region, as in `Settings`.
        recompute: "off" chooses nothing and counts the bytes.

    Returns:
        The nodes, which are empty where the graph doesn't say what belongs to the forward pass.
    """
    try:
        passes = joint.passes_of(graph, forward_outputs)
        if passes is None:
            return Recomputation()
        cut = _Cut(graph, passes, frozenset(static_inputs), merge)
        before = cut.saved_bytes(set())
        nodes = cut.nodes() if recompute == "regions" else []
        after = cut.saved_bytes(set(nodes))
        if after >= before:
            nodes, after = [], before
        if recompute == "regions":
            nodes = cut.with_views(nodes)
    except (RegionError, UnknownSize):
        return Recomputation()  # a mistake in a mark is reported when marks are collected
    return Recomputation(tuple(nodes), after, before)


class RecomputationChooser:
    """Chooses for the one joint graph of a capture, and says in its reports what was chosen.

    `partition` is the function by which AOTAutograd cuts the joint graph in two.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._chosen: Recomputation | None = None
        self.partition = joint.partition_with(self._choose, self._withdraw)

    def _choose(
        self, graph: torch.fx.Graph, forward_outputs: int, static_inputs: Collection[Node]
    ) -> Collection[Node]:
        self._chosen = choose_recomputation(
            graph,
            forward_outputs,
            static_inputs,
            merge=self._settings.merge,
            recompute=self._settings.recompute,
        )
        return self._chosen.nodes

    def _withdraw(self) -> None:
        if self._chosen is not None:
            kept = self._chosen.saved_bytes_otherwise
            self._chosen = Recomputation((), kept, kept)

    def added_to(self, graphs: Sequence[GraphReport]) -> list[GraphReport]:
        """The reports of one capture's graphs; that of the outermost forward graph says more."""
        chosen = self._chosen
        if chosen is None:
            return list(graphs)
        return [
            replace(
                graph,
                recomputed=chosen.operators,
                saved_bytes=chosen.saved_bytes,
                saved_bytes_otherwise=chosen.saved_bytes_otherwise,
            )
            if graph.direction == "forward" and not graph.path
            else graph
            for graph in graphs
        ]


class _Cut:
    """Which nodes of one joint graph may be computed again, and which of them should be."""

    def __init__(
        self,
        graph: torch.fx.Graph,
        passes: joint.Passes,
        static_inputs: frozenset[Node],
        merge: Literal["scope", "all"],
    ) -> None:
        self._graph = graph
        self._passes = passes
        self._static = static_inputs
        self._merge = merge
        self._forward = [node for node in graph.nodes if node in passes.forward]
        self._places: dict[Node, int] = {}
        self._known_marks: dict[int, int | None] = {}
        self._numbers: dict[Hashable, int] = {}
        self._roots: dict[Node, Node] = {}
        for node in graph.nodes:
            self._roots[node] = self._root_of(node)
            place = self._place_of(node)
            if place is not None:
                self._places[node] = place
        written = self._written = joint.written_inputs(graph)
        self._exposed = {self._roots[node] for node in (*passes.outputs, *written)}
        candidates = {n for n in self._forward if self._may_run_again(n, written)}
        self._candidates = {n for n in candidates if not self._is_materialized(n)}
        self._kept = {
            self._roots[node]
            for node in self._forward
            if node not in self._candidates and self._is_read_by_backward(node)
        }
        self._depths = self._barriers_before()

    def nodes(self) -> list[Node]:
        """The nodes to compute again, in the graph's order."""
        again: set[Node] = set()
        saved: set[Node] = set()
        for group in self._groups():
            computed, boundary = self._solve(group)
            again |= computed
            saved |= boundary
            self._kept |= {self._roots[node] for node in boundary}
        return [node for node in self._forward if node in again and node not in saved]

    def with_views(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes, and the views that backward makes anew of tensors that it gets anyway.

        A view costs nothing there. Kept, it would be a second result for one storage: a region with such
        results can't be lowered directly, and Inductor's views don't count the writes to what they look at.
        """
        again = set(nodes)
        for node in self._forward:
            if node not in again and self._is_kept(node, again):
                again |= self._views_of_what_is_there(node, again)
        return [node for node in self._forward if node in again]

    def _is_kept(self, node: Node, again: Collection[Node]) -> bool:
        return self._is_read_by_backward(node) or any(user in again for user in node.users)

    def _views_of_what_is_there(self, node: Node, again: Collection[Node]) -> set[Node]:
        """The views between a kept node and what it looks at, which is kept instead; else nothing."""
        found: set[Node] = set()
        while node in self._places and _is_plain_view(node) and "recompute" not in node.meta:
            place = self._places[node]
            if any(
                self._places.get(user) != place
                for user in node.users
                if not _is_symbolic(user) and (user in self._passes.backward or user in again)
            ):
                return set()
            found.add(node)
            node = node.all_input_nodes[0]
        return found if node not in again and node not in self._written else set()

    def saved_bytes(self, again: Collection[Node]) -> int:
        """Bytes of the storages that the forward pass keeps; inputs are there anyway."""
        kept: dict[Node, int] = {}
        for node in self._forward:
            if node in again or not _is_tensor(node):
                continue
            if self._is_read_by_backward(node) or any(user in again for user in node.users):
                root = self._roots[node]
                if root.op == "call_function":
                    kept[root] = bytes_of(root if _is_tensor(root) else node)
        return sum(kept.values())

    # --- what may be computed again ---------------------------------------------------------------

    def _may_run_again(self, node: Node, written: Collection[Node]) -> bool:
        return (
            node in self._places
            and _is_tensor(node)
            and "recompute" not in node.meta  # the user's own checkpointing has decided
            and (_is_pointwise(node) or _is_plain_view(node))
            and not any(
                self._roots[a] in written or a.op == "get_attr" for a in node.all_input_nodes
            )
        )

    def _is_materialized(self, node: Node) -> bool:
        """Whether computing a node again would write it to memory, which costs a kernel.

        It is written where anything but its own backward region reads it: an eager operator, a
        matrix multiplication, another region, or what the user's checkpointing computes again.
        """
        return any(
            self._needs_it_in_memory(node, user) for user in node.users if not _is_symbolic(user)
        )

    def _needs_it_in_memory(self, node: Node, user: Node) -> bool:
        if user in self._passes.forward:
            return joint.is_recomputed_by_user(user)
        if user not in self._passes.backward:
            return False
        if not _is_fused(user) or self._places.get(user) != self._places[node]:
            return True
        if _is_plain_view(user):
            return any(self._needs_it_in_memory(node, reader) for reader in user.users)
        return False

    def _is_read_by_backward(self, node: Node) -> bool:
        return _is_tensor(node) and any(
            user in self._passes.backward and not _is_symbolic(user) for user in node.users
        )

    def _barriers_before(self) -> dict[Node, int]:
        """How many operators that don't fuse lie on the longest way to each forward node.

        Values with such an operator between them are apart in time: computing one from the other
        again would chain the whole depth of a model together (its residual stream, say).
        """
        depths: dict[Node, int] = {}
        for node in self._forward:
            above = max((depths.get(a, 0) for a in node.all_input_nodes), default=0)
            fuses = node.op != "call_function" or _is_fused(node)
            depths[node] = above if fuses else above + 1
        return depths

    def _together(self, value: Node, user: Node) -> bool:
        """Whether a value may be computed again for a user that is computed again itself."""
        return (
            value in self._candidates
            and user in self._candidates
            and self._places[value] == self._places[user]
            and self._depths[value] == self._depths[user]
        )

    # --- the cut ----------------------------------------------------------------------------------

    def _groups(self) -> Iterator[list[Node]]:
        """The candidates in groups that share no value, each a minimum cut of its own.

        Each is as small as what was marked in one place, so that the time is linear in a model's depth.
        """
        leader: dict[Node, Node] = {}

        def find(node: Node) -> Node:
            while leader[node] is not node:
                leader[node] = leader[leader[node]]
                node = leader[node]
            return node

        wanted: set[Node] = set()
        boundary_of: dict[tuple[Node, int, int], Node] = {}
        for node in self._forward:
            if node not in self._candidates:
                continue
            leader[node] = node
            if self._is_read_by_backward(node):
                wanted.add(node)
            for value in node.all_input_nodes:
                if self._together(value, node):
                    leader[find(node)] = find(value)
                elif self._cost_of_boundary(value) != 0:
                    # What two of them read from outside is kept once for both.
                    shared = (value, self._places[node], self._depths[node])
                    other = boundary_of.setdefault(shared, node)
                    leader[find(node)] = find(other)
        groups: dict[Node, list[Node]] = {}
        for node in leader:
            groups.setdefault(find(node), []).append(node)
        yield from (group for group in groups.values() if not wanted.isdisjoint(group))

    def _cost_of_boundary(self, value: Node) -> int | None:
        """Bytes that keeping a value costs which is not computed again; None: it can't be kept."""
        if not _is_tensor(value):
            return 0 if _is_symbolic(value) else None
        root = self._roots[value]
        if root in self._kept:
            return 0
        if root in self._exposed or joint.is_recomputed_by_user(value):
            # What the caller may overwrite before the backward pass, and what isn't there then.
            return None
        if root in self._static:
            return 0
        # Of two values of one size rather an input: its caller mostly holds it too, and nothing writes it.
        cost = bytes_of(value)
        return cost - cost // 8 if root.op == "placeholder" else cost

    def _solve(self, group: list[Node]) -> tuple[set[Node], set[Node]]:
        """One minimum cut: which nodes are computed again, and which values are kept for them."""
        import networkx

        flow = networkx.DiGraph()
        flow.add_nodes_from(("source", "sink"))
        boundary: set[Node] = set()
        for node in group:
            read = self._is_read_by_backward(node)
            flow.add_edge((node, "in"), (node, "out"), **self._capacity(node, read))
            if read:
                flow.add_edge((node, "out"), "sink")
            for value in node.all_input_nodes:
                if self._together(value, node):
                    flow.add_edge((value, "out"), (node, "in"))
                    continue
                cost = self._cost_of_boundary(value)
                if cost is None:
                    flow.add_edge("source", (node, "in"))
                elif cost:
                    boundary.add(value)
                    flow.add_edge("source", (value, "kept"), capacity=cost)
                    flow.add_edge((value, "kept"), (node, "in"))
        # networkx gives the cut next to the sink: of equal cuts the one that computes least again.
        _, (_, sink_side) = networkx.minimum_cut(flow, "source", "sink")
        again = {node for node in group if (node, "in") in sink_side}
        read_again = {value for node in again for value in node.all_input_nodes}
        return again, boundary & read_again

    def _capacity(self, node: Node, read: bool) -> dict[str, int]:
        """Bytes that keeping a node costs; without a capacity it can't be kept."""
        if not read and (_is_plain_view(node) or self._roots[node] in self._exposed):
            return {}
        return {"capacity": bytes_of(node)}

    # --- reading the graph ------------------------------------------------------------------------

    def _root_of(self, node: Node) -> Node:
        """The node whose storage a node looks at: itself, unless it is a view."""
        if (
            (_is_plain_view(node) or ops.base_name(node) in ("reshape", "_unsafe_view"))
            and node.all_input_nodes
            and node.op == "call_function"
        ):
            return self._roots[node.all_input_nodes[0]]
        return node

    def _place_of(self, node: Node) -> int | None:
        """A number that two nodes share if they may be in one region, as far as marks go."""
        custom = node.meta.get("custom")
        if node.op != "call_function" or not isinstance(custom, dict) or MARK_KEY not in custom:
            return None
        value = custom[MARK_KEY]
        if id(value) not in self._known_marks:
            mark = parse_mark(value)
            joined = self._merge == "all" or mark.id is not None
            place: Hashable = mark.join_key if joined else mark
            number = self._numbers.setdefault(place, len(self._numbers))
            self._known_marks[id(value)] = None if mark.eager else number
        return self._known_marks[id(value)]


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _is_symbolic(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int))


def _is_plain_view(node: Node) -> bool:
    return ops.is_view(node) and node.target is not operator.getitem


def _is_pointwise(node: Node) -> bool:
    """Whether a node computes its elements one by one, the same each time it runs."""
    if not joint.is_torchs_operator(node):
        return False
    traits = ops.traits(node, _NO_MODULE)
    pure = not (traits.writes or traits.draws or traits.ordered or traits.collective)
    return pure and (joint.has_tag(node, "pointwise") or ops.base_name(node) in _CHEAP)


def _is_fused(node: Node) -> bool:
    """Whether Inductor makes a node part of a kernel that also computes what it reads."""
    if node.target is operator.getitem or _is_plain_view(node):
        return True
    return joint.is_torchs_operator(node) and (
        joint.has_tag(node, "pointwise")
        or joint.has_tag(node, "reduction")
        or ops.base_name(node) in _FUSED
    )
