"""outline: move each region's nodes into a GraphModule of its own; build the stitching graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
import torch.fx
from torch.fx.node import Node

from .._torch import ops
from .._torch.fx import Appender, copy_graph_module, empty_like, lazy_graph_module
from .._torch.symbols import SCALAR_TYPES, symbols_bound_by, symbols_of
from ..errors import MissingValueError
from ..regions import (
    REGION_META,
    Outlined,
    OutlinedGraph,
    Partitioned,
    PartitionedGraph,
    Region,
    RegionCall,
    Settings,
)
from ..source import module_path, user_source


def outline(partitioned: Partitioned, settings: Settings) -> Outlined:
    """Build all region modules and the stitching graph in one pass over each graph.

    The caller's graphs are read only. A region's inputs are flat: tensors, constants and
    parameters, and every free symbol that its sizes use. Its outputs are a flat tuple.

    Raises:
        MissingValueError: A region's input carries no fake value (with `on_error="raise"`).
    """
    return Outlined(
        tuple(_Outliner(graph, settings).build() for graph in partitioned.graphs),
        partitioned.findings,
    )


@dataclass(frozen=True)
class _Symbol:
    """A free symbol that a region needs as an input, and the node and dimension it is read from."""

    symbol: sympy.Symbol
    provider: Node
    dimension: int | None


@dataclass
class _Interface:
    """What goes into a region and what comes out of it, as nodes of the caller's graph."""

    inputs: list[Node] = field(default_factory=list)
    bodies: list[Node] = field(default_factory=list)
    symbols: list[_Symbol] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)


class _Outliner:
    def __init__(self, partitioned: PartitionedGraph, settings: Settings) -> None:
        self.partitioned = partitioned
        self.marked = partitioned.marked
        self.module = partitioned.marked.module
        self.values = partitioned.marked.values
        self.settings = settings
        self.graph = empty_like(self.module.graph)
        self.appender = Appender(self.graph)
        self.environment: dict[Node, Node] = {}
        self.submodules: dict[str, torch.nn.Module] = {}
        self._symbol_nodes: dict[sympy.Symbol, Node] = {}
        self._providers: dict[sympy.Symbol, tuple[Node, int | None]] | None = None
        self._op_names: dict[int, str] = {}  # by the target's identity

    def build(self) -> OutlinedGraph:
        interfaces = self._interfaces()
        environment, copy = self.environment, self.appender.copy
        for item in self.partitioned.schedule:
            if isinstance(item, Region):
                self._add_region(item, interfaces[id(item)])
            elif not self._only_for_regions(item):
                environment[item] = copy(item, environment)
        return OutlinedGraph(self.module, self.graph, self.submodules)

    def _only_for_regions(self, node: Node) -> bool:
        """A HOP body that only region nodes use moves into the regions with its HOP."""
        return (
            node.op == "get_attr"
            and ops.is_graph_attribute(node, self.module)
            and bool(node.users)
            and all(user in self.marked.marks for user in node.users)
        )

    def _interfaces(self) -> dict[int, _Interface]:
        """What goes into each region and comes out of it, by the region's identity: hashing one hashes all nodes."""
        regions = self.partitioned.regions
        owner = {node: i for i, region in enumerate(regions) for node in region.nodes}
        owner_of = owner.get
        interfaces: list[_Interface] = []
        needed_outside: set[Node] = set()
        for number, region in enumerate(regions):
            interface = _Interface()
            seen: set[Node] = set()
            for node in region.nodes:
                for argument in ops.inputs_of(node):
                    if owner_of(argument) == number or argument in seen:
                        continue
                    seen.add(argument)
                    if argument.op == "get_attr" and ops.is_graph_attribute(argument, self.module):
                        interface.bodies.append(argument)
                    else:
                        interface.inputs.append(argument)
            self._add_symbols(region, interface)
            needed_outside.update(symbol.provider for symbol in interface.symbols)
            interfaces.append(interface)
        for number, (region, interface) in enumerate(zip(regions, interfaces, strict=True)):
            for node in region.nodes:
                if node not in needed_outside:
                    for user in node.users:
                        if owner_of(user) != number:
                            break
                    else:
                        continue
                if not _is_bundle(node, self.values):
                    interface.outputs.append(node)
        return dict(zip(map(id, regions), interfaces, strict=True))

    def _add_symbols(self, region: Region, interface: _Interface) -> None:
        """Symbols that appear in the region's sizes and can't be read off one of its inputs."""
        needed: set[sympy.Symbol] = set()
        bound: set[sympy.Symbol] = set()
        for nodes in (interface.inputs, region.nodes):
            for node in nodes:
                needed |= symbols_of(self.values.get(node))
        if not needed:
            return
        for node in interface.inputs:
            bound |= {symbol for symbol, _ in symbols_bound_by(self.values.get(node))}
        inside = set(region.nodes)
        for node in region.nodes:
            bound |= set(node.meta.get("unbacked_bindings") or ())
        for symbol in sorted(needed - bound, key=str):
            provider = self._provider_of(symbol)
            if provider is None or provider[0] in inside:
                continue
            interface.symbols.append(_Symbol(symbol, *provider))

    def _provider_of(self, symbol: sympy.Symbol) -> tuple[Node, int | None] | None:
        if self._providers is None:
            self._providers = {}
            for node in self.module.graph.nodes:
                for found, dimension in symbols_bound_by(self.values.get(node)):
                    known = self._providers.get(found)
                    if known is None or (dimension is None and known[0].op != "placeholder"):
                        self._providers[found] = (node, dimension)
        return self._providers.get(symbol)

    def _add_region(self, region: Region, interface: _Interface) -> None:
        missing = [node for node in interface.inputs if node not in self.values]
        reason = self.marked.eager_reason or region.eager_reason
        if missing and not reason:
            reason = self._missing_value(region, missing[0])
        arguments = [self.environment[node] for node in interface.inputs]
        input_values = [self.values.get(node) for node in interface.inputs]
        for symbol in interface.symbols:
            node = self._symbol_node(symbol)
            arguments.append(node)
            input_values.append(node.meta["val"])
        submodule = self._region_module(region, interface, input_values)
        traits = ops.traits_together(region.nodes, self.module)
        name = self._submodule_name(region.name)
        self.submodules[name] = submodule
        add = self.appender.add
        call = add("call_module", name, tuple(arguments), {}, region.name)
        call.meta.update(self._call_meta(region, name, interface, traits, reason))
        # Past `Module.__setattr__`, which asks first whether it is a parameter, a module or a buffer.
        vars(submodule)["_is_impure"] = traits.ordered or traits.draws or traits.opaque
        for index, node in enumerate(interface.outputs):
            output = add("call_function", operator.getitem, (call, index), {}, node.name)
            output.meta.update(node.meta)
            output.meta.setdefault("val", self.values.get(node))
            # The value is selected here, not computed; a second run of the pass must not mark it.
            output.meta.pop("unbacked_bindings", None)
            self.environment[node] = output

    def _missing_value(self, region: Region, node: Node) -> str:
        what = f"{node.name}, an input of the region, carries no fake value"
        if self.settings.on_error == "raise":
            raise MissingValueError(
                what,
                region=region.label,
                source=region.mark.source or user_source(region.nodes[0]),
                hint="pass example inputs to the pass, or run torch.fx.passes.fake_tensor_prop."
                "FakeTensorProp over the graph first",
            )
        return what

    def _symbol_node(self, wanted: _Symbol) -> Node:
        known = self._symbol_nodes.get(wanted.symbol)
        if known is not None:
            return known
        source = self.environment[wanted.provider]
        if wanted.dimension is None:
            node = source
            node.meta.setdefault("val", self.values[wanted.provider])
        else:
            node = self.graph.call_function(torch.ops.aten.sym_size.int, (source, wanted.dimension))
            node.meta["val"] = self.values[wanted.provider].shape[wanted.dimension]
        self._symbol_nodes[wanted.symbol] = node
        return node

    def _region_module(
        self, region: Region, interface: _Interface, input_values: list[Any]
    ) -> torch.fx.GraphModule:
        graph = torch.fx.Graph()
        appender = Appender(graph)
        inner: dict[Node, Node] = {}
        for index, value in enumerate(input_values):
            placeholder = appender.add("placeholder", f"arg{index}", (), {}, f"arg{index}")
            placeholder.meta["val"] = value
            if index < len(interface.inputs):
                source = interface.inputs[index]
                inner[source] = placeholder
                if isinstance(value, torch.Tensor) and "tensor_meta" in source.meta:
                    placeholder.meta["tensor_meta"] = source.meta["tensor_meta"]
        attributes: dict[str, Any] = {}
        for body in interface.bodies:
            path = str(body.target)
            name = path.replace(".", "_")
            # The body may be shared with an unmarked call, whose copy gets regions of its own.
            attributes[name] = copy_graph_module(ops.attribute(self.module, path))
            inner[body] = appender.add("get_attr", name, (), {}, body.name)
        copy, values = appender.copy, self.values
        for node in region.nodes:
            if node.op == "call_module":
                attributes[str(node.target)] = self.module.get_submodule(str(node.target))
            inner[node] = copied = copy(node, inner)
            if "val" not in copied.meta and node in values:
                copied.meta["val"] = values[node]
        outputs = tuple([inner[node] for node in interface.outputs])
        output = appender.add("output", "output", (outputs,), {}, "output")
        output.meta["val"] = tuple([values.get(node) for node in interface.outputs])
        return lazy_graph_module(attributes, graph, region.name)

    def _names_of_ops(self, region: Region) -> tuple[str, ...]:
        known = self._op_names
        names = []
        for node in region.nodes:
            name = known.get(id(node.target))
            if name is None:
                name = known[id(node.target)] = ops.op_name(node)
            names.append(name)
        return tuple(names)

    def _computes(self, node: Node) -> bool:
        return not ops.is_view(node) and not isinstance(self.values.get(node), SCALAR_TYPES)

    def _submodule_name(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self.submodules or hasattr(self.module, candidate):
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _call_meta(
        self,
        region: Region,
        submodule: str,
        interface: _Interface,
        traits: ops.OpTraits,
        reason: str,
    ) -> dict[str, Any]:
        source = region.mark.source or next(filter(None, map(user_source, region.nodes)), "")
        if not reason and not any(self._computes(node) for node in region.nodes):
            reason = "it only makes views of its inputs: there is nothing to compile"
        meta: dict[str, Any] = {
            "val": tuple(self.values.get(node) for node in interface.outputs),
            REGION_META: RegionCall(
                name=region.label,
                submodule=submodule,
                mark=region.mark,
                direction=region.direction,
                nodes=len(region.nodes),
                ops=self._names_of_ops(region),
                source=source,
                module_path=module_path(region.nodes),
                effectful=traits.ordered or traits.draws or traits.opaque,
                eager_reason=reason,
                joint=self.marked.joint,
            ),
        }
        first = region.nodes[0].meta
        for key in (
            "stack_trace",
            "nn_module_stack",
            "fwd_nn_module_stack",
            "seq_nr",
            "partitioner_tag",
            "autograd_backward",
        ):
            if key in first:
                meta[key] = first[key]
        return meta


def _is_bundle(node: Node, values: Mapping[Node, Any]) -> bool:
    """Whether a node gives several values, which its own getitems select inside the region."""
    return (
        isinstance(values.get(node), (tuple, list))
        and all(
            user.op == "call_function" and user.target is operator.getitem for user in node.users
        )
        and bool(node.users)
    )
