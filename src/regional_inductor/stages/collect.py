"""collect: read the marks of a graph, and of the bodies that its unmarked HOPs call, into nodes."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.fx
from torch.fx.node import Node

from .._torch import exact_ops, ops
from .._torch.values import known_values
from ..errors import ConflictError, RegionWarning
from ..op_trials import left_eager_after_trials
from ..options import Mark, near_miss_keys, parse_mark
from ..regions import Collected, Direction, Finding, MarkedGraph, NodeMark, Settings
from ..source import user_source

KEY = "compile_with_inductor"

Reached: TypeAlias = "dict[Node, dict[Hashable, NodeMark]]"

# These run their bodies as plain calls, so that a body may call a compiled region. Others (flex
# attention's score_mod, associative_scan) run them under vmap, which no compiled region survives.
_PLAIN_BODY_HOPS = frozenset(
    {
        "cond",
        "while_loop",
        "while_loop_stack_output",
        "scan",
        "map",
        "map_impl",
        "invoke_subgraph",
        "tag_activation_checkpoint",
        "wrap_activation_checkpoint",
        "hints_wrapper",
        "wrap",
        "wrap_with_set_grad_enabled",
    }
)


def collect(
    module: torch.fx.GraphModule, example_inputs: Sequence[Any], settings: Settings
) -> Collected:
    """Read marks into nodes.

    Args:
        module: The outermost graph.
        example_inputs: Its arguments, for placeholders that carry no fake value; may be empty.
        settings: What this run was asked to do.

    Returns:
        Graphs with at least one mark, bodies before the graphs that call them.

    Raises:
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.
        ConflictError: One id with two sets of options.
    """
    reader = _Reader(settings)
    graphs = list(_walk(module, "", tuple(example_inputs), None, "", reader, set()))
    _check_ids(graphs)
    for finding in reader.findings.values():
        if finding.kind == "misspelt":
            warnings.warn(RegionWarning(finding.text), stacklevel=2)
    return Collected(tuple(graphs), tuple(reader.findings.values()))


class _Reader:
    """Parses each distinct mark once and keeps what there is to say about them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.findings: dict[tuple[str, str], Finding] = {}
        self._parsed: dict[int, tuple[Any, Mark]] = {}
        self._custom_seen: set[tuple[Any, ...]] = set()

    def read(self, node: Node) -> Mark | None:
        custom = node.meta.get("custom")
        if not isinstance(custom, dict):
            return None
        self._note_near_misses(node, custom)
        if KEY not in custom or _is_of_several_entries(node):
            return None
        value = custom[KEY]
        known = self._parsed.get(id(value))
        if known is None or known[0] is not value:
            mark = parse_mark(
                value,
                source=user_source(node),
                import_inductor=self.settings.region_backend == "inductor",
            )
            if self.settings.numerics == "eager" and mark.numerics is None:
                mark = replace(mark, numerics="eager")
            known = self._parsed[id(value)] = (value, mark)
        return None if known[1].eager else known[1]

    def _note_near_misses(self, node: Node, custom: dict[str, Any]) -> None:
        keys = tuple(key for key in custom if key != KEY)
        if not keys or keys in self._custom_seen:
            return
        self._custom_seen.add(keys)
        for key, suggestion in near_miss_keys(custom):
            source = user_source(node)
            message = f"the annotation key {key!r} looks misspelt and marks nothing"
            finding = Finding("misspelt", message, source, f"write {suggestion!r}")
            self.findings.setdefault(("misspelt", key), finding)

    def note(self, message: str, source: str, remedy: str, mark: Mark) -> None:
        """Take down an operator that is marked and can't be in a region."""
        finding = Finding("fallback", message, source, remedy, mark.name or "")
        self.findings.setdefault((message, source), finding)


def _is_of_several_entries(node: Node) -> bool:
    """Whether a bucketing pass made a node for gradients of several entries of a scope.

    Such a node carries the annotation of the first and would tie entries in different layers.
    """
    entries = set()
    for custom in node.meta.get("bucketing_custom_sources") or ():
        value = custom.get(KEY) if isinstance(custom, dict) else None
        entries.add(value.get("entry") if isinstance(value, dict) else repr(value))
    return len(entries) > 1


def _walk(
    module: torch.fx.GraphModule,
    path: str,
    example_inputs: tuple[Any, ...],
    inherited: Direction | None,
    eager_reason: str,
    reader: _Reader,
    seen: set[int],
) -> Iterator[MarkedGraph]:
    if id(module) in seen:
        return
    seen.add(id(module))
    marks = _marked_nodes(module, reader)
    directions = _directions(module, inherited)
    overall = inherited or _overall(directions)
    for node in module.graph.nodes:
        if not ops.is_hop(node) or node in marks:
            continue
        name = ops.hop_name(node)
        reason = eager_reason
        if name not in _PLAIN_BODY_HOPS:
            reason = reason or f"the body of {name} runs under a transform of its own"
        for target, body in ops.bodies(node, module):
            inner = f"{path}.{target}" if path else target
            yield from _walk(body, inner, (), directions.get(node, overall), reason, reader, seen)
    if marks:
        values = known_values(module, example_inputs)
        node_marks = _with_entries(module, marks, directions)
        _join_gradient_accumulation(module, node_marks, reader.settings)
        joint = len(set(directions.values())) > 1
        yield MarkedGraph(path, module, values, node_marks, overall, joint, eager_reason)


def _marked_nodes(module: torch.fx.GraphModule, reader: _Reader) -> dict[Node, Mark]:
    marks: dict[Node, Mark] = {}
    autocast_depth = 0
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            # A constant is an input of the region that uses it; a HOP's body follows the HOP.
            continue
        if not ops.is_overload(node):
            name = str(getattr(node.target, "__name__", ""))
            autocast_depth += (name == "_enter_autocast") - (name == "_exit_autocast")
        if _selects_from_tuple(node):
            producer = node.args[0]
            if isinstance(producer, Node) and producer in marks:
                marks[node] = marks[producer]
            continue
        mark = reader.read(node)
        if mark is None:
            continue
        traits = ops.traits(node, module)
        if traits.switch:
            continue
        if autocast_depth > 0:
            reader.note(
                f"`{ops.op_name(node)}` runs inside an autocast block of a graph that AOTAutograd "
                "has not traced yet, and stays eager",
                user_source(node),
                "compile through torch.compile to have it compiled",
                mark,
            )
            continue
        held = _held_object(node, module)
        if held:
            reader.note(
                f"`{ops.op_name(node)}` takes a {held}, which no compiled region can",
                user_source(node),
                f"it stays eager; leave the {held} out, or move it out of the region",
                mark,
            )
            continue
        if traits.collective and (mark.collectives or reader.settings.collectives) != "include":
            reader.note(
                f"`{ops.op_name(node)}` is a collective, and stays eager",
                user_source(node),
                'collectives="include" puts it into the region, if every rank compiles the same',
                mark,
            )
            continue
        if mark.numerics == "eager":
            reason = exact_ops.left_eager(node)
            if reason:
                _note_left_eager(node, reason, mark, reader)
                continue
        marks[node] = mark
    _leave_out_after_trials(marks, reader)
    return _without_mere_views(marks)


def _leave_out_after_trials(marks: dict[Node, Mark], reader: _Reader) -> None:
    """Leave out what was tried under numerics="eager" and doesn't equal eager on this machine."""
    exact = [node for node, mark in marks.items() if mark.numerics == "eager"]
    for node, reason in left_eager_after_trials(exact, reader.settings).items():
        _note_left_eager(node, reason, marks.pop(node), reader)
    for node in exact:
        if _selects_from_tuple(node) and node in marks and node.args[0] not in marks:
            del marks[node]


def _note_left_eager(node: Node, reason: str, mark: Mark, reader: _Reader) -> None:
    reader.note(
        f'`{ops.op_name(node)}` {reason}: numerics="eager" leaves it eager',
        user_source(node),
        "its neighbours are compiled; docs/numerics.md lists what can be",
        mark,
    )


def _without_mere_views(marks: dict[Node, Mark]) -> dict[Node, Mark]:
    """Leave out what only moves data, under numerics="eager", where nothing near it is computed.

    Operators that stay eager cut a region into pieces; one that is only views saves nothing.
    """
    movers = {n for n, mark in marks.items() if mark.numerics == "eager" and exact_ops.moves(n)}
    useful: set[Node] = set()
    for nodes, neighbours in ((list(marks), _producers), (list(marks)[::-1], _users)):
        for node in nodes:
            if node in movers and any(
                other in useful or (other in marks and other not in movers)
                for other in neighbours(node)
                if other in marks and marks[other].join_key == marks[node].join_key
            ):
                useful.add(node)
    return {node: mark for node, mark in marks.items() if node not in movers or node in useful}


def _producers(node: Node) -> Iterable[Node]:
    return node.all_input_nodes


def _users(node: Node) -> Iterable[Node]:
    return node.users


def _held_object(node: Node, module: torch.fx.GraphModule) -> str:
    """The kind of an argument that is neither tensor nor graph: a generator, a torchbind object."""
    for argument in ops.inputs_of(node):
        if argument.op == "get_attr":
            value = ops.attribute(module, str(argument.target))
            if not isinstance(value, (torch.Tensor, torch.fx.GraphModule, int, float, type(None))):
                return type(value).__name__
    values: Iterable[Any] = (*node.args, *node.kwargs.values()) if node.kwargs else node.args
    for value in values:
        if type(value) is not Node and isinstance(value, torch.Generator):
            return "Generator"
    return ""


def _selects_from_tuple(node: Node) -> bool:
    if node.target is not operator.getitem or node.op != "call_function":
        return False
    producer = node.args[0]
    if not isinstance(producer, Node):
        return False
    value = producer.meta.get("val", producer.meta.get("example_value"))
    return not isinstance(value, torch.Tensor) and isinstance(node.args[1], (int, str))


def _directions(module: torch.fx.GraphModule, inherited: Direction | None) -> dict[Node, Direction]:
    """Forward or backward of each node where one graph holds both; else one answer for all.

    A backward graph also holds recomputed forward nodes: those may fuse with backward ones. Only
    in a joint graph (one whose outputs include a forward node) must the two stay apart, since
    AOTAutograd will cut it in two later.
    """
    backward = set()
    for node in module.graph.nodes:
        meta = node.meta
        if meta.get("autograd_backward") or meta.get("partitioner_tag") == "is_backward":
            backward.add(node)
    if not backward:
        return {}
    outputs = module.graph.output_node().all_input_nodes
    joint = any(o.op not in ("placeholder", "get_attr") and o not in backward for o in outputs)
    if not joint or inherited == "backward":
        return dict.fromkeys(module.graph.nodes, "backward")
    return {n: "backward" if n in backward else "forward" for n in module.graph.nodes}


def _overall(directions: dict[Node, Direction]) -> Direction:
    return "backward" if "backward" in directions.values() else "forward"


def _with_entries(
    module: torch.fx.GraphModule, marks: dict[Node, Mark], directions: dict[Node, Direction]
) -> dict[Node, NodeMark]:
    """Tell apart the entries of marked scopes.

    Marks of ours carry the entry's number. Others are told apart by runs: ordered by sequence
    number (which checkpointing and bucketing keep while they move nodes, and which backward nodes
    share with the forward node they belong to), nodes of one entry stand together, with no
    unmarked node and no other module between them.
    """
    numbered: dict[Any, int] = {}
    result: dict[Node, NodeMark] = {}
    last: Node | None = None
    broken = True
    runs = 0
    for node in _in_sequence(module, directions):
        mark = marks.get(node)
        if mark is None:
            broken = broken or not _is_glue(node)
            continue
        direction = directions.get(node, "forward")
        if mark.entry is not None:
            entry = numbered.setdefault(("entry", mark.entry), len(numbered))
        else:
            continues = (
                not broken
                and last is not None
                and marks[last].entry is None
                and marks[last].join_key == mark.join_key
                and directions.get(last, "forward") == direction
                and _same_place(last, node)
            )
            runs += not continues
            entry = numbered.setdefault(("run", runs), len(numbered))
        if not _selects_from_tuple(node):
            last, broken = node, False
        result[node] = NodeMark(mark, entry, direction)
    for node in result:
        if _selects_from_tuple(node):
            result[node] = result[node.args[0]]  # type: ignore[index]
    return {node: result[node] for node in module.graph.nodes if node in result}


def _in_sequence(module: torch.fx.GraphModule, directions: dict[Node, Direction]) -> list[Node]:
    keyed: list[tuple[bool, int, int, Node]] = []
    sequence = -1
    for position, node in enumerate(module.graph.nodes):
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        number = node.meta.get("seq_nr")
        if isinstance(number, int) and not node.meta.get("is_gradient_acc"):
            sequence = number
        backward = directions.get(node) == "backward" and bool(node.meta.get("autograd_backward"))
        keyed.append((backward, sequence, position, node))
    keyed.sort(key=operator.itemgetter(0, 1, 2))
    return [node for *_, node in keyed]


def _is_glue(node: Node) -> bool:
    """Nodes that tracers insert between the ops of one scope without the scope's annotation."""
    return (
        bool(node.meta.get("is_gradient_acc"))
        or _selects_from_tuple(node)
        or isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat, int))
    )


def module_stack(node: Node) -> tuple[str, ...]:
    """Names of the modules a node was called in, outermost first; the forward's for backward."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ()
    return tuple(re.sub(r"@\d+$", "", str(key)) + str(value[0]) for key, value in stack.items())


def _same_place(a: Node, b: Node) -> bool:
    """Whether one module call may have produced both: one stack lies within the other, or beside
    it inside a common caller."""
    first, second = module_stack(a), module_stack(b)
    if not first or not second:
        return True
    shared = 0
    for x, y in zip(first, second, strict=False):
        if x != y:
            break
        shared += 1
    return shared > 0


def _join_gradient_accumulation(
    module: torch.fx.GraphModule, marks: dict[Node, NodeMark], settings: Settings
) -> None:
    """Autograd's additions of gradients carry no mark; each joins the region it lies in.

    It lies in a region when gradients of that region flow into it and out of it into the same
    region again, straight or through other such additions. One at a region's border stays eager.
    """
    additions = [
        node
        for node in module.graph.nodes
        if node.meta.get("is_gradient_acc") and node not in marks and node.op == "call_function"
    ]
    if not additions:
        return

    def place(marked: NodeMark) -> Hashable:
        entry = marked.entry if settings.merge == "scope" else None
        return (marked.mark.join_key, marked.direction, entry)

    def reach(nodes: list[Node], neighbours: Callable[[Node], Iterable[Node]]) -> Reached:
        reached: Reached = {}
        for node in nodes:
            found = reached[node] = {}
            for other in neighbours(node):
                if other in marks:
                    found.setdefault(place(marks[other]), marks[other])
                else:
                    found.update(reached.get(other, {}))
        return reached

    flows_in = reach(additions, lambda node: node.all_input_nodes)
    flows_out = reach(additions[::-1], lambda node: node.users)
    for node in additions:
        inside = [marked for where, marked in flows_in[node].items() if where in flows_out[node]]
        if inside:
            marks[node] = inside[-1]
    ordered = {node: marks[node] for node in module.graph.nodes if node in marks}
    marks.clear()
    marks.update(ordered)


def _check_ids(graphs: list[MarkedGraph]) -> None:
    first: dict[Any, tuple[Mark, Node]] = {}
    for graph in graphs:
        for node, node_mark in graph.marks.items():
            mark = node_mark.mark
            if mark.id is None:
                continue
            known, where = first.setdefault(mark.id, (mark, node))
            if known.options_key != mark.options_key:
                raise ConflictError(
                    f"the id {mark.id!r} is used with different options: "
                    f"{_describe(known)} and {_describe(mark)}",
                    region=mark.name or str(mark.id),
                    source=", ".join(s for s in (user_source(where), user_source(node)) if s),
                    hint="give both places the same options, or each an id of its own",
                )


def _describe(mark: Mark) -> str:
    parts = {**dict(mark.options)}
    for name in ("numerics", "compile_timeout", "collectives"):
        if getattr(mark, name) is not None:
            parts[name] = getattr(mark, name)
    return str(parts)
