"""FX code generation and module surgery that the public API doesn't offer.

Checked on torch 2.11 and 2.13: `torch.fx.graph._BoxedCodeGen` (AOTAutograd and `RegionalOutputCode`
recognise the boxed calling convention by this class), `GraphModule.__new__`'s one class an instance,
`Graph._codegen`, `GraphPickler`. Checked on torch 2.13 only: what `Graph.create_node` does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
import torch.fx
from torch.fx._lazy_graph_module import (
    _get_graph_module_cls,
    _use_lazy_graph_module,
)
from torch.fx.graph import CodeGen, _BoxedCodeGen
from torch.fx.node import map_arg

from . import eager_calls, graph_text
from .versions import is_one_of


class BoxedOrPositionalCodeGen(_BoxedCodeGen):
    """Generates a `forward` that takes one list (boxed, emptied) or plain arguments.

    AOTAutograd hands a list over so that inputs can be freed early; a person who holds the module
    calls it as `gm(*args, **kwargs)`. One list as the only argument means boxed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._body_transformer = drop_references_before_region_calls

    def gen_fn_def(
        self,
        free_vars: list[str],
        maybe_return_annotation: str,
        *,
        expanded_def: bool = False,
    ) -> str:
        definition = f"def {self._func_name}(self, *args, **kwargs){maybe_return_annotation}:"
        variables = [v.split(":")[0].strip() for v in free_vars if v != "self"]
        names = [v.split("=")[0].strip() for v in variables]
        defaults = ", ".join(
            f"{v.split('=')[0].strip()!r}: {v.split('=', 1)[1].strip()}"
            for v in variables
            if "=" in v
        )
        definition += (
            "\n    if kwargs or len(args) != 1 or type(args[0]) is not list:"
            f"\n        args = (_bind_positional({names!r}, {{{defaults}}}, args, kwargs),)"
            "\n    args = args[0]"
        )
        if len(names) == 1:
            definition += f"\n    {names[0]}, = args"
        elif names:
            definition += f"\n    {', '.join(names)} = args"
        return definition + "\n    args.clear()"

    def additional_globals(self) -> list[tuple[str, Any]]:
        return [*super().additional_globals(), ("_bind_positional", bind_positional)]


class DirectCodeGen(BoxedOrPositionalCodeGen):
    """The same, with eager operators called without detours through Python."""

    def __init__(self) -> None:
        super().__init__()
        self._body_transformer = _with_direct_calls

    def additional_globals(self) -> list[tuple[str, Any]]:
        return [*super().additional_globals(), (eager_calls.NAME, eager_calls.EAGER)]


def _with_direct_calls(body: list[str]) -> list[str]:
    return eager_calls.with_direct_calls(drop_references_before_region_calls(body))


# FX writes a call, and then the variables that it was the last to use: `;  x = y = None`.
# A region that draws random numbers or has effects is called through a module, others as functions.
_BOXED_REGION_CALL = re.compile(
    r"(\w+(?: : [^=]+)?) = (self\.\w+|regional_inductor_\w+)\((\[[\w, ]*\])\)"
)
_FORGET = re.compile(r";  ([\w =]+ = None)\n")


def drop_references_before_region_calls(body: list[str]) -> list[str]:
    """Let a region free inputs that nobody needs after it: the caller forgets them before the call.

    FX forgets a variable after the statement that uses it last, so that an input would live until
    the region returns.
    """
    result = list(body)
    for index in range(len(result) - 1):
        call = _BOXED_REGION_CALL.fullmatch(result[index])
        forget = _FORGET.fullmatch(result[index + 1])
        if call is None or forget is None:
            continue
        variable, region, arguments = call.groups()
        result[index] = (
            f"region_args = {arguments};  {forget[1]};  {variable} = {region}(region_args)"
        )
        result[index + 1] = "\n"
    return result


def bind_positional(
    names: list[str], defaults: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    """The arguments of a plain call, in placeholder order, with the messages Python itself gives."""
    if len(args) > len(names):
        raise TypeError(
            f"forward() takes {len(names)} positional arguments but {len(args)} were given"
        )
    bound = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in bound:
            raise TypeError(f"forward() got multiple values for argument {name!r}")
        if name not in names:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
        bound[name] = value
    missing = [name for name in names if name not in bound and name not in defaults]
    if missing:
        raise TypeError(f"forward() missing required arguments: {', '.join(missing)}")
    return [bound[name] if name in bound else defaults[name] for name in names]


def has_plain_codegen(graph: torch.fx.Graph) -> bool:
    """Whether nothing (pytree or other code generation of the caller's) would be lost by boxing."""
    kinds = (CodeGen, _BoxedCodeGen, BoxedOrPositionalCodeGen, DirectCodeGen)
    return type(graph._codegen) in kinds


def lazy_graph_module(
    attributes: dict[str, Any], graph: torch.fx.Graph, class_name: str
) -> torch.fx.GraphModule:
    """A GraphModule that generates its code when it is first needed.

    Most outlined regions share another's compiled code and never run themselves; generating code
    for each was most of the time that outlining took.
    """
    with _use_lazy_graph_module(True):
        kind = _get_graph_module_cls()
        is_lazy = kind is not torch.fx.GraphModule
        if not (_IS_CHECKED and is_lazy) or attributes or graph._tracer_cls or graph._tracer_extras:
            return kind(attributes, graph, class_name)
    module = kind.__new__(kind)
    state = module.__dict__
    for name, value in _new_state(kind):  # type: ignore[arg-type]
        state[name] = value.copy() if isinstance(value, _CONTAINERS) else value
    state["_graph"] = graph
    graph.owning_module = module
    type(module).__name__ = class_name
    module.recompile()  # which puts it off
    return module


_CONTAINERS = (dict, list, set)


@cache
def _new_state(kind: Any) -> tuple[tuple[str, Any], ...]:
    """What a module of one empty graph consists of.

    The constructor assigns it piece by piece through `Module.__setattr__`, which was a fifth of outlining.
    """
    return tuple(vars(kind({}, torch.fx.Graph())).items())


def set_boxed(graph: torch.fx.Graph, *, direct: bool = False) -> None:
    """Have a graph's code take one list, or plain arguments.

    Args:
        graph: The graph.
        direct: Whether eager operators may be called by other names than the graph has for them.
    """
    graph.set_codegen(DirectCodeGen() if direct else BoxedOrPositionalCodeGen())


def set_graph(module: torch.fx.GraphModule, graph: torch.fx.Graph) -> None:
    """Give a module another graph and generate its code."""
    with _written_quickly(graph):
        module.graph = graph


def recompile(module: torch.fx.GraphModule) -> None:
    """Generate a module's code from its graph."""
    with _written_quickly(module.graph):
        module.recompile()


def _written_quickly(graph: torch.fx.Graph) -> AbstractContextManager[None]:
    return graph_text.written_quickly(
        graph,
        (CodeGen, BoxedOrPositionalCodeGen, DirectCodeGen),
        (None, drop_references_before_region_calls, _with_direct_calls),
    )


def is_boxed(compiled: Callable[..., Any]) -> bool:
    """Whether a compiled region takes one list of arguments."""
    return bool(getattr(compiled, "_boxed_call", False)) and not isinstance(
        compiled, torch.fx.GraphModule
    )


def empty_like(graph: torch.fx.Graph) -> torch.fx.Graph:
    """A graph without nodes that keeps another one's tracer and code generation."""
    new = torch.fx.Graph(tracer_cls=graph._tracer_cls, tracer_extras=graph._tracer_extras)
    new._codegen = graph._codegen  # shared: a pytree codegen holds specs that are costly to copy
    if hasattr(graph, "_co_fields"):
        new._co_fields = graph._co_fields
    return new


class Appender:
    """Adds nodes to the end of a graph that nothing else knows of yet.

    `Graph.create_node` looks through all arguments for raw symbolic sizes, takes names apart with regular
    expressions, and each assignment to a node's meta looks the node up in tables that hash its operator in
    Python. Together that was more than half of outlining.
    """

    def __init__(self, graph: torch.fx.Graph) -> None:
        self.graph = graph
        self._of_target: dict[tuple[str, int], dict[torch.fx.Node, None]] = {}
        if _IS_CHECKED:
            self._names = graph._graph_namespace._obj_to_name
            self._append = graph._root._prepend

    def add(
        self,
        op: str,
        target: Any,
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        name: str,
        returns: Any = None,
    ) -> torch.fx.Node:
        """A new node; its arguments must be nodes or what holds no raw symbolic size."""
        graph = self.graph
        if not _IS_CHECKED:
            return graph.create_node(op, target, arguments, dict(keywords), name, returns)
        name = _free_name(graph._graph_namespace, name)
        node = torch.fx.Node(graph, name, op, target, arguments, keywords, returns)  # type: ignore[arg-type]
        self._names[node] = name
        self._append(node)
        place = (op, id(target) if op == "call_function" else 0)
        of_target = self._of_target.get(place)
        if of_target is None:
            key = graph._find_nodes_lookup_table._key(node)
            of_target = self._of_target[place] = graph._find_nodes_lookup_table.table[key]
        of_target[node] = None
        graph._len += 1
        return node

    def copy(
        self, node: torch.fx.Node, counterparts: Mapping[torch.fx.Node, torch.fx.Node]
    ) -> torch.fx.Node:
        """Copy a node of another graph, as `Graph.node_copy` does.

        Args:
            node: The node. Its own arguments have been looked through when it was made.
            counterparts: For each node that is an argument what takes its place.
        """
        if not _IS_CHECKED:
            return self.graph.node_copy(node, counterparts.__getitem__)
        arguments: Any = node.args
        if arguments:
            arguments = map_arg(arguments, counterparts.__getitem__)
        keywords: Any = node.kwargs
        if keywords:
            keywords = map_arg(keywords, counterparts.__getitem__)
        copied = self.add(node.op, node.target, arguments, keywords, node.name, node.type)
        if type(node.meta) is dict:
            copied.meta.update(node.meta)
        else:
            copied.meta = copy.copy(node.meta)
        return copied


_IS_CHECKED = is_one_of(((2, 13),))
_ILLEGAL_NAMES = getattr(torch.fx.graph, "_illegal_names", {})


def _free_name(namespace: Any, name: str) -> str:
    """The name, or one like it that is free, as `_Namespace.create_name` chooses it."""
    used = namespace._used_names
    if name in used or not (name.isascii() and name.isidentifier()):
        return str(namespace.create_name(name, None))
    base, _, number = name.rpartition("_")
    if base and number.isdigit():
        namespace._base_count[base] = int(number)
    elif name in _ILLEGAL_NAMES:
        return str(namespace.create_name(name, None))
    else:
        namespace._base_count.setdefault(name, 0)
    used.add(name)
    return name


def copy_graph(graph: torch.fx.Graph) -> torch.fx.Graph:
    """A copy with nodes of its own; their values are shared."""
    new = empty_like(graph)
    appender = Appender(new)
    environment: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in graph.nodes:
        environment[node] = appender.copy(node, environment)
    return new


def copy_graph_module(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy with graphs of its own, nested ones included; tensors and fake values are shared."""
    result = torch.fx.GraphModule(module, copy_graph(module.graph))
    for name, child in module.named_children():
        if isinstance(child, torch.fx.GraphModule) and hasattr(result, name):
            setattr(result, name, copy_graph_module(child))
    result.meta = dict(module.meta)
    return result
