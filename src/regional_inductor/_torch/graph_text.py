"""The text of a graph's code, as FX writes it, in less time.

`Graph.python_code` renames each node in a namespace of its own, through assignments that look the node up in
tables, and goes over each line with regular expressions. What is written here is the same text for the graphs that stitching makes; for
whatever else may be in a graph, FX writes it.

Checked on torch 2.13 only: `CodeGen._gen_python_code`, `Graph.python_code`, `GraphModule.recompile`.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.fx
from torch.fx import graph as fx_graph
from torch.fx.node import Node, _get_qualified_name

from .ops import inputs_of
from .versions import is_one_of

_IS_CHECKED = is_one_of(((2, 13),))


class _Unusual(Exception):
    """Something that FX had better write itself."""


@contextlib.contextmanager
def written_quickly(
    graph: torch.fx.Graph,
    codegens: Collection[type],
    transformers: Collection[Callable[..., Any] | None],
) -> Iterator[None]:
    """Have what asks a graph for its code get it from here.

    Args:
        graph: The graph.
        codegens: Classes of code generators that write statements as `CodeGen` does.
        transformers: What they may do to statements: keep each a line, and look at no other than the next.
    """
    codegen = graph._codegen
    is_usual = (
        _IS_CHECKED
        and type(graph) is torch.fx.Graph
        and type(codegen) in codegens
        and codegen._body_transformer in transformers
        and os.environ.get("FX_GRAPH_SHOW_META", "0") != "1"
    )
    if not is_usual:
        yield
        return

    def python_code(root_module: str, **asked: Any) -> fx_graph.PythonCode:
        if root_module == "self" and not any(asked.values()):
            try:
                return _Writer(graph).write()
            except _Unusual:
                pass
        return torch.fx.Graph.python_code(graph, root_module, **asked)

    vars(graph)["python_code"] = python_code
    try:
        yield
    finally:
        del vars(graph)["python_code"]


class _Writer:
    def __init__(self, graph: torch.fx.Graph) -> None:
        self.graph = graph
        self.globals: dict[str, Any] = {}
        self.parameters: list[str] = []
        self._targets: dict[int, Callable[[Node], str]] = {}  # by a target's identity

    def write(self) -> fx_graph.PythonCode:
        nodes = list(self.graph.nodes)
        for name, (_, value) in fx_graph._custom_builtins.items():
            self._global(name, value)
        body, node_of_line = self._body(nodes)
        codegen = self.graph._codegen
        if codegen._body_transformer is not None:
            body = codegen._body_transformer(body)
        for name, value in codegen.additional_globals():
            self._global(name, value)
        self._check_names(nodes)
        prologue = codegen.gen_fn_def(self.parameters, "", expanded_def=False)
        lines = "".join(body).split("\n")
        if len(lines) != len(node_of_line) + 1:
            raise _Unusual
        first = prologue.count("\n") + 1
        node_of_line.append(node_of_line[-1])
        return fx_graph.PythonCode(
            "\n\n\n{}\n    {}".format(prologue, "\n    ".join(lines)),
            self.globals,
            _lineno_map=dict(enumerate(node_of_line, first)),
            _prologue_start=4,
        )

    def _body(self, nodes: list[Node]) -> tuple[list[str], list[int | None]]:
        """Statements, each followed by what is forgotten after it; and the node of each line."""
        forgotten = _last_uses(nodes)
        body: list[str] = []
        node_of_line: list[int | None] = []
        for index, node in enumerate(nodes):
            if node.type is not None or node.meta.get("is_wrapped", False):
                raise _Unusual
            if node.op == "placeholder":
                renamed = self._parameter(node)
                if not renamed:
                    continue
                body.append(renamed)
            else:
                body.append(self._statement(node))
                last = forgotten.get(node, [])
                if node.op == "output":
                    last = []
                elif not node.users:
                    last.append(node.name)
                body.append(";  {} = None\n".format(" = ".join(last)) if last else "\n")
            node_of_line.append(index)
        if not node_of_line:
            raise _Unusual
        return body, node_of_line

    def _parameter(self, node: Node) -> str:
        """Take a parameter down; gives the statement that renames it where it must have another name."""
        name = str(node.target)
        default = f" = {_text(node.args[0])}" if node.args else ""
        self.parameters.append(f"{name}{default}")
        name = name.replace("*", "")
        return f"{node.name} = {name}\n" if name != node.name else ""

    def _statement(self, node: Node) -> str:
        op = node.op
        if op == "call_function":
            known = self._targets.get(id(node.target))
            if known is None:
                known = self._targets[id(node.target)] = self._call_of(node.target)
            return f"{node.name} = {known(node)}"
        if op == "call_module":
            return f"{node.name} = {_attribute(str(node.target))}({_arguments(node)})"
        if op == "get_attr":
            return f"{node.name} = {_attribute(str(node.target))}"
        if op == "output":
            return f"return {_text(node.args[0])}"
        raise _Unusual

    def _call_of(self, target: Any) -> Callable[[Node], str]:
        """How calls of a function are written."""
        if target is operator.getitem:
            return lambda node: f"{_text(node.args[0])}[{_text(node.args[1])}]"
        if getattr(target, "__module__", "") == "_operator" or not callable(target):
            raise _Unusual
        name = self._global(_get_qualified_name(target), target)
        if name == "getattr":
            raise _Unusual
        return lambda node: f"{name}({_arguments(node)})"

    def _global(self, hint: str, value: Any) -> str:
        """The name of a global, which must be free."""
        if fx_graph._is_from_torch(value) and value != torch.device:
            return str(_get_qualified_name(value))
        name = str(fx_graph._Namespace().create_name(hint, value))
        if self.globals.setdefault(name, value) is not value:
            raise _Unusual
        return name

    def _check_names(self, nodes: list[Node]) -> None:
        """Nodes keep their names where these are proper ones and not those of globals."""
        names = {node.name for node in nodes}
        if len(names) != len(nodes) or not (
            names.isdisjoint(self.globals)
            and names.isdisjoint(fx_graph._illegal_names)
            and all(name.isidentifier() and name.isascii() for name in names)
        ):
            raise _Unusual


def _last_uses(nodes: list[Node]) -> dict[Node, list[str]]:
    """The names of the nodes that each node is the last to use."""
    seen: set[Node] = set()
    found: dict[Node, list[str]] = {}
    for node in reversed(nodes):
        for argument in inputs_of(node):
            if argument not in seen:
                seen.add(argument)
                if node in found:
                    found[node].append(argument.name)
                else:
                    found[node] = [argument.name]
    return found


def _arguments(node: Node) -> str:
    text = ", ".join([a.name if type(a) is Node else _text(a) for a in node.args])
    if not node.kwargs:
        return text
    keywords = [f"{key} = {_text(value)}" for key, value in node.kwargs.items()]
    return ", ".join([text, *keywords] if text else keywords)


_PLAIN_TYPES = frozenset(
    {
        *(int, float, bool, str, type(None)),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    }
)
_LISTS = (list, torch.fx.immutable_collections.immutable_list)


def _text(value: Any) -> str:
    kind = type(value)
    if kind is Node:
        return str(value.name)
    if kind in _PLAIN_TYPES:
        return repr(value)
    if kind in _LISTS:
        return "[{}]".format(", ".join([_text(item) for item in value]))
    if kind is tuple:
        inside = ", ".join([_text(item) for item in value])
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    raise _Unusual


def _attribute(path: str) -> str:
    if "." not in path and path.isidentifier():
        return f"self.{path}"
    return str(fx_graph._format_target("self", path))
