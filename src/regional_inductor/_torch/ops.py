"""What an operator does besides computing its result: mutation, aliasing, draws, effects.

Checked on torch 2.11 and 2.13: `torch._ops` class names, `has_kernel_for_dispatch_key`, schema fields, `torch.fx.node`'s set of
side-effectful functions, the names of the autocast and grad-mode switches that Dynamo records.
"""

from __future__ import annotations

import builtins
import inspect
import itertools
import math
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.fx
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx.node import Node

from ..identity import identity_of
from .versions import is_one_of

_COLLECTIVE_NAMESPACES = frozenset(
    {
        "_c10d_functional",
        "c10d_functional",
        "_c10d_functional_autograd",
        "c10d",
        "symm_mem",
        "_dtensor",
    }
)
# Recorded by Dynamo as plain functions; each changes the meaning of every node after it.
_STATE_SWITCHES = frozenset(
    {
        "_enter_autocast",
        "_exit_autocast",
        "_set_grad_enabled",
        "_enter_inference_mode",
        "_exit_inference_mode",
        "_enter_dual_level",
        "_exit_dual_level",
        "_jvp_increment_nesting",
        "_jvp_decrement_nesting",
        "_vmap_increment_nesting",
        "_vmap_decrement_nesting",
        "_grad_increment_nesting",
        "_grad_decrement_nesting",
        "set_stream",
        "_add_batch_dim",
        "_remove_batch_dim",
        "_saved_tensors_hooks_disable",
        "_saved_tensors_hooks_enable",
    }
)
_PURE_MODULES = frozenset(
    {"_operator", "operator", "math", "builtins", "torch.fx.operator_schemas"}
)
_EFFECTFUL_NAMES = (
    "_assert",
    "sym_constrain_range",
    "_print",
    "record_function",
    "_check",
    "print",
)
# HOPs whose bodies or operands the effect of which their operands don't show.
_ORDERED_HOPS = frozenset({"with_effects", "print", "call_torchbind", "inductor_compiled_code"})
_RANDOM_HOPS = frozenset(
    {
        "run_and_save_rng_state",
        "run_with_rng_state",
        "graphsafe_run_with_rng_state",
        "rngprims",
        "run_dtensor_rng_op",
    }
)
_MUTATING_HOPS = frozenset({"triton_kernel_wrapper_mutation", "tag_activation_checkpoint"})


@dataclass(frozen=True, slots=True)
class OpTraits:
    """What a node's target does that data edges don't show.

    `writes` and `aliases` index positional arguments or name keyword arguments.
    """

    writes: tuple[int | str, ...] = ()
    aliases: tuple[int | str, ...] = ()
    draws: bool = False
    ordered: bool = False
    collective: bool = False
    switch: bool = False
    opaque: bool = False

    @property
    def order_matters(self) -> bool:
        """Whether it must not change places with another such node, whatever data says."""
        return bool(
            self.writes
            or self.draws
            or self.ordered
            or self.collective
            or self.switch
            or self.opaque
        )


_PURE = OpTraits()
_OPAQUE = OpTraits(draws=True, ordered=True, opaque=True)


def traits(node: Node, module: torch.nn.Module) -> OpTraits:
    """The traits of a node's target; what is unknown counts as doing everything."""
    if type(node.target) is OpOverload and "out" not in node.kwargs:
        return _schema_traits(node.target)
    if node.op in ("placeholder", "get_attr", "output"):
        return _PURE
    if node.op == "call_method":
        return _method_traits(str(node.target))
    if node.op == "call_module":
        try:
            target = module.get_submodule(str(node.target))
        except AttributeError:
            return _OPAQUE
        return body_traits(target) if isinstance(target, torch.fx.GraphModule) else _OPAQUE
    if isinstance(node.target, HigherOrderOperator):
        return _hop_traits(node, module)
    try:
        found = _function_traits(node.target)
    except TypeError:  # unhashable callable
        return _OPAQUE
    if _asks_for_inplace(node):
        return OpTraits((0,), (0,), found.draws, found.ordered)
    if node.kwargs.get("out") is not None and not found.writes:
        return OpTraits(("out",), ("out",), found.draws, found.ordered)
    return found


def traits_of(nodes: Iterable[Node], module: torch.nn.Module) -> list[OpTraits]:
    """The traits of each of some nodes; operators are looked up by identity, since they hash in Python."""
    known: dict[int, OpTraits] = {}
    result = []
    for node in nodes:
        target = node.target
        if type(target) is not OpOverload or "out" in node.kwargs:
            result.append(traits(node, module))
            continue
        found = known.get(id(target))
        if found is None:
            found = known[id(target)] = _schema_traits(target)
        result.append(found)
    return result


def _asks_for_inplace(node: Node) -> bool:
    """Whether a function such as `F.relu` was called with `inplace=True`, which no schema shows."""
    if isinstance(node.target, (OpOverload, OpOverloadPacket)) or not callable(node.target):
        return False
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is not False
    place = _inplace_position(node.target)
    return place is not None and place < len(node.args) and node.args[place] is not False


@cache
def _inplace_position(target: Any) -> int | None:
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def body_traits(body: torch.fx.GraphModule) -> OpTraits:
    """The traits of calling a whole graph: those of all its nodes together."""
    return traits_together(body.graph.nodes, body)


def traits_together(nodes: Iterable[Node], module: torch.nn.Module) -> OpTraits:
    """What some nodes of a graph do if they are called as one."""
    draws = ordered = opaque = writes = collective = False
    for node in nodes:
        found = traits(node, module)
        if found is _PURE:
            continue
        draws |= found.draws
        ordered |= found.ordered or found.switch
        opaque |= found.opaque
        collective |= found.collective
        writes |= bool(found.writes)
    return OpTraits(draws=draws, ordered=ordered, opaque=opaque or writes, collective=collective)


def bodies(node: Node, module: torch.nn.Module) -> Iterator[tuple[str, torch.fx.GraphModule]]:
    """The GraphModules that a HOP's `get_attr` arguments name, as (attribute path, module)."""
    for argument in node.all_input_nodes:
        if argument.op == "get_attr":
            value = attribute(module, str(argument.target))
            if isinstance(value, torch.fx.GraphModule):
                yield str(argument.target), value


def attribute(module: torch.nn.Module, path: str) -> Any:
    """The attribute at a dotted path, or None."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


inputs_of: Callable[[Node], Iterable[Node]] = operator.attrgetter(
    "_input_nodes" if is_one_of(((2, 13),)) else "all_input_nodes"
)
"""The nodes that are arguments of a node, each once; `all_input_nodes` makes a list of them at each call."""


def is_overload(node: Node) -> bool:
    """Whether a node calls an overload of an operator, as nearly all do."""
    return type(node.target) is OpOverload


def is_hop(node: Node) -> bool:
    # Asking an overload whether it is an instance of that abstract class goes through Python.
    return (
        type(node.target) is not OpOverload
        and node.op == "call_function"
        and isinstance(node.target, HigherOrderOperator)
    )


def hop_name(node: Node) -> str:
    return str(getattr(node.target, "_name", getattr(node.target, "__name__", node.target)))


def is_graph_attribute(node: Node, module: torch.nn.Module) -> bool:
    return node.op == "get_attr" and isinstance(
        attribute(module, str(node.target)), torch.fx.GraphModule
    )


def is_view(node: Node) -> bool:
    """Whether a node only looks at its input's storage and computes nothing."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    return isinstance(node.target, OpOverload) and (
        bool(getattr(node.target, "is_view", False))
        or node.target._schema.name in ("aten::detach", "aten::alias", "aten::lift_fresh")
    )


def may_consist_of_others(node: Node) -> bool:
    """Whether a node calls what torch puts together from operators: `aten.linear`, `torch.matmul`.

    Exported programs and Dynamo's graphs have these. What isn't torch's own never counts.
    """
    target = node.target
    if node.op == "call_method":
        return True
    if node.op == "call_module":
        owner = node.graph.owning_module
        called = owner.get_submodule(str(target)) if owner is not None else None
        return type(called).__module__.startswith("torch.nn.")
    if isinstance(target, OpOverload):
        if torch.Tag.pointwise in target.tags or is_view(node):
            return False
        return target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    module = getattr(target, "__module__", None) or ""
    return node.op == "call_function" and (
        module in ("_operator", "torch", "torch.functional")
        or module.startswith(("torch.nn.", "torch._C"))
    )


def op_name(node: Node) -> str:
    """A short, stable name for a node's target: `aten.add.Tensor`, `flex_attention`."""
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return str(node.target)
    if isinstance(node.target, HigherOrderOperator):
        return hop_name(node)
    return str(getattr(node.target, "__name__", node.target))


def base_name(node: Node) -> str:
    """The operator's name without namespace and overload: `mul` for `aten.mul.Tensor`."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.split("::")[-1]
    return op_name(node).split(".")[0]


def target_identity(node: Node) -> str:
    """A name that two nodes share only if they call the very same thing."""
    target = node.target
    if isinstance(target, str):
        return f"{node.op}:{target}"
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return f"op:{target}"
    if isinstance(target, HigherOrderOperator):
        return f"hop:{hop_name(node)}"
    module = getattr(target, "__module__", "") or ""
    name = getattr(target, "__qualname__", "") or ""
    if _is_torchs_own(target):
        return f"function:{module}.{name}"
    return f"function:{module}.{name}:{identity_of(target)}"


@cache
def _is_torchs_own(target: Any) -> bool:
    """Whether a function is found under its own name in torch or Python's own modules.

    A name alone proves nothing: `functools.wraps` copies it.
    """
    module = str(getattr(target, "__module__", "") or "")
    if module.split(".")[0] not in ("torch", "_operator", "operator", "math", "builtins"):
        return False
    found: Any = sys.modules.get(module)
    for part in str(getattr(target, "__qualname__", "")).split("."):
        found = getattr(found, part, None)
    return found is target


def _hop_traits(node: Node, module: torch.nn.Module) -> OpTraits:
    name = hop_name(node)
    merged = [body_traits(body) for _, body in bodies(node, module)]
    opaque = any(found.opaque for found in merged)
    writes: tuple[int | str, ...] = ()
    if name == "triton_kernel_wrapper_mutation" or opaque:
        writes = (*range(len(node.args)), *node.kwargs)
    return OpTraits(
        writes=writes,
        draws=name in _RANDOM_HOPS or any(found.draws for found in merged),
        ordered=name in _ORDERED_HOPS or any(found.ordered for found in merged),
        collective=any(found.collective for found in merged),
    )


@cache
def _schema_traits(op: OpOverload) -> OpTraits:
    schema = op._schema
    writes: list[int | str] = []
    aliases: list[int | str] = []
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is None:
            continue
        place: int | str = argument.name if argument.kwarg_only else index
        if argument.alias_info.is_write:
            writes.append(place)
        if (
            any(
                result.alias_info is not None
                and result.alias_info.before_set & argument.alias_info.before_set
                for result in schema.returns
            )
            or "*" in argument.alias_info.before_set | argument.alias_info.after_set
        ):
            aliases.append(place)
    namespace = op.namespace
    name = schema.name.split("::")[-1]
    collective = namespace in _COLLECTIVE_NAMESPACES
    ordered = (
        collective
        or any(part in name for part in _EFFECTFUL_NAMES)
        or op in torch.fx.node._side_effectful_functions
        or (not schema.returns and not writes)
        or any(
            "ScriptObject" in str(a.type) or "__torch__" in str(a.type) for a in schema.arguments
        )
    )
    found = OpTraits(
        writes=tuple(writes),
        aliases=tuple(aliases),
        draws=torch.Tag.nondeterministic_seeded in op.tags,
        ordered=ordered,
        collective=collective,
    )
    return _PURE if found == _PURE else found


def _packet_traits(packet: OpOverloadPacket) -> OpTraits:
    """What any overload of a packet may do: the cautious union."""
    overloads = [getattr(packet, name) for name in packet.overloads()]  # type: ignore[no-untyped-call]
    merged = [_schema_traits(op) for op in overloads if not _writes_a_python_list(op)]
    return OpTraits(
        # `out=` overloads would make every operator a writer; they are written by keyword only.
        writes=tuple({w for m in merged for w in m.writes if not isinstance(w, str)}),
        aliases=tuple({a for m in merged for a in m.aliases}),
        draws=any(m.draws for m in merged),
        ordered=any(m.ordered for m in merged),
        collective=any(m.collective for m in merged),
    )


def _writes_a_python_list(op: OpOverload) -> bool:
    """TorchScript's operators on lists, `aten::sort.int(t[](a!) self)`, which no graph calls."""
    if op._schema.name.split("::")[-1].startswith(("_foreach", "_fused", "_amp")):
        return False
    return any(
        argument.alias_info is not None
        and argument.alias_info.is_write
        and not argument.kwarg_only
        and str(argument.type) not in ("Tensor", "Optional[Tensor]")
        for argument in op._schema.arguments
    )


@cache
def _method_traits(name: str) -> OpTraits:
    if (name.endswith("_") and not name.startswith("__")) or name in (
        "__setitem__",
        "set_",
        "copy_",
    ):
        packet = getattr(torch.ops.aten, name, None)
        draws = isinstance(packet, OpOverloadPacket) and _packet_traits(packet).draws
        return OpTraits(writes=(0,), aliases=(0,), draws=draws)
    packet = getattr(torch.ops.aten, name, None)
    if isinstance(packet, OpOverloadPacket):
        return _packet_traits(packet)
    if hasattr(torch.Tensor, name) or name in ("keys", "values", "items", "get"):
        return OpTraits(aliases=(0,))
    return _OPAQUE


@cache
def _function_traits(target: Any) -> OpTraits:
    if isinstance(target, OpOverload):
        return _schema_traits(target)
    if isinstance(target, OpOverloadPacket):
        return _packet_traits(target)
    name = str(getattr(target, "__name__", ""))
    module = str(getattr(target, "__module__", "") or "")
    if isinstance(target, types.FunctionType) and not _is_torchs_own(target):
        return _OPAQUE
    if target is operator.setitem:
        return OpTraits(writes=(0,), aliases=(0,))
    if name in _STATE_SWITCHES:
        return OpTraits(switch=True)
    if name.startswith("i") and module == "_operator" and name in _INPLACE_OPERATORS:
        return OpTraits(writes=(0,), aliases=(0,))
    if module in _PURE_MODULES or getattr(builtins, name, None) is target or hasattr(math, name):
        return OpTraits(aliases=(0,)) if name in ("getitem", "getattr") else _PURE
    if (
        any(part in name for part in _EFFECTFUL_NAMES)
        or target in torch.fx.node._side_effectful_functions
    ):
        return OpTraits(ordered=True)
    if module.split(".")[0] in ("torch", "") or module.startswith("torch"):
        packet = getattr(torch.ops.aten, name, None)
        if isinstance(packet, OpOverloadPacket):
            inplace = name.endswith("_") and not name.startswith("__")
            found = _packet_traits(packet)
            return OpTraits((0,), (0,), found.draws, found.ordered) if inplace else found
        if name.startswith("sym_") or module.startswith("torch.fx.experimental"):
            return _PURE
    return _OPAQUE


_INPLACE_OPERATORS = frozenset(
    name for name in dir(operator) if name.startswith("i") and hasattr(operator, f"__{name}__")
) - {"index", "inv", "invert", "is_", "is_not", "indexOf", "itemgetter"}


@dataclass(slots=True)
class OrderingEdges:
    """Order that data edges don't show, as (earlier, later) pairs of node positions."""

    edges: list[tuple[int, int]] = field(default_factory=list)

    def add(self, earlier: int, later: int) -> None:
        if earlier != later:
            self.edges.append((earlier, later))


def ordering_edges(
    nodes: list[Node], module: torch.nn.Module, found: list[OpTraits]
) -> list[tuple[int, int]]:
    """Pairs of positions whose order must be kept although no data flows between them.

    Mutation and reads of aliased storage, random draws of one device's generator, collectives and
    other effects in their order, and everything against a switch of autocast or grad mode.
    """
    result = OrderingEdges()
    special = [i for i, t in enumerate(found) if t is not _PURE]
    _chain(result, [i for i in special if found[i].ordered])
    by_device: dict[str, list[int]] = {}
    for i in special:
        if found[i].draws:
            by_device.setdefault(_device_of(nodes[i]), []).append(i)
    unknown = by_device.pop("", [])
    for draws in by_device.values() if by_device else [[]]:
        _chain(result, sorted(draws + unknown))
    if any(found[i].switch for i in special):
        _switch_edges(result, nodes, found)
    if any(found[i].writes or found[i].opaque for i in special):
        _mutation_edges(result, nodes, found)
    return result.edges


def _chain(result: OrderingEdges, positions: list[int]) -> None:
    for earlier, later in itertools.pairwise(positions):
        result.add(earlier, later)


def _device_of(node: Node) -> str:
    value = node.meta.get("val", node.meta.get("example_value"))
    if isinstance(value, (tuple, list)):
        value = next((v for v in value if isinstance(v, torch.Tensor)), None)
    return str(value.device) if isinstance(value, torch.Tensor) else ""


def _switch_edges(result: OrderingEdges, nodes: list[Node], found: list[OpTraits]) -> None:
    last_switch = -1
    since: list[int] = []
    for i, t in enumerate(found):
        if nodes[i].op in ("placeholder", "get_attr", "output"):
            continue
        if last_switch >= 0:
            result.add(last_switch, i)
        if t.switch:
            for earlier in since:
                result.add(earlier, i)
            last_switch, since = i, []
        else:
            since.append(i)


def _mutation_edges(result: OrderingEdges, nodes: list[Node], found: list[OpTraits]) -> None:
    """Reads and writes of each alias set in program order; writers are rare, so sets are few."""
    position = {node: i for i, node in enumerate(nodes)}
    parent = list(range(len(nodes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(a: int, b: int) -> None:
        parent[root(a)] = root(b)

    storages: dict[tuple[int, int], int] = {}
    inputs: int | None = None
    writers: list[tuple[int, list[int]]] = []
    for i, (node, t) in enumerate(zip(nodes, found, strict=True)):
        if t is not _PURE:
            everywhere = (*range(len(node.args)), *node.kwargs) if t.opaque else ()
            if writes_at := everywhere or t.writes:
                writers.append((i, [position[a] for a in _at(node, writes_at) if a in position]))
            for argument in _at(node, everywhere or t.aliases):
                if argument in position:
                    join(i, position[argument])
        elif node.op in ("placeholder", "get_attr") and _may_hold_storage(node):
            # Two inputs may be views of one storage; nothing in the graph says that they aren't.
            inputs = i if inputs is None else inputs
            join(i, inputs)
        for storage in _storages(node):
            before = storages.setdefault(storage, i)
            if before != i:
                join(i, before)

    writes = {i: {root(written) for written in places} for i, places in writers}
    written = set().union(*writes.values())
    # Who uses the values that somebody writes to; in most graphs these are few.
    touches: dict[int, set[int]] = {i: set(sets) for i, sets in writes.items()}
    for i, node in enumerate(nodes):
        alias_set = root(i)
        if alias_set in written:
            for user in node.users:
                touches.setdefault(position[user], set()).add(alias_set)
    nothing: set[int] = set()
    last_write: dict[int, int] = {}
    reads: dict[int, list[int]] = {}
    for i in sorted(touches):
        if nodes[i].op in ("placeholder", "output"):
            continue
        written_here = writes.get(i, nothing)
        for alias_set in touches[i]:
            if alias_set in last_write:
                result.add(last_write[alias_set], i)
            if alias_set in written_here:
                for read in reads.pop(alias_set, ()):
                    result.add(read, i)
                last_write[alias_set] = i
            else:
                reads.setdefault(alias_set, []).append(i)


def _at(node: Node, places: tuple[int | str, ...]) -> Iterator[Node]:
    for place in places:
        if isinstance(place, str):
            value = node.kwargs.get(place)
        else:
            value = node.args[place] if place < len(node.args) else None
            if value is None and place >= len(node.args):
                value = _keyword_for(node, place)
        yield from _nodes_in(value)


def _keyword_for(node: Node, place: int) -> Any:
    """An argument that the schema has by position and the call passes by keyword."""
    if isinstance(node.target, OpOverload):
        arguments = node.target._schema.arguments
        if place < len(arguments):
            return node.kwargs.get(arguments[place].name)
    return node.kwargs.get("input", node.kwargs.get("self")) if place == 0 else None


def _nodes_in(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _nodes_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _nodes_in(item)


def _may_hold_storage(node: Node) -> bool:
    value = node.meta.get("val", node.meta.get("example_value"))
    return value is None or isinstance(value, torch.Tensor)


def _storages(node: Node) -> Iterable[tuple[int, int]]:
    value = node.meta.get("val", node.meta.get("example_value"))
    if not isinstance(value, (list, tuple)):
        return _storage(value)
    return [storage for item in value for storage in _storage(item)]


def _storage(value: Any) -> tuple[tuple[int, int], ...]:
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        try:
            storage = value.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError):  # subclasses without storage of their own
            return ()
        return ((id(getattr(value, "fake_mode", None)), storage),)
    return ()
