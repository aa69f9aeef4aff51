"""Marks on nodes of a captured graph, by operator or by any predicate."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
import torch.fx

from ._torch.targets import is_operator, is_same_operator, target_name
from .errors import MarkError, did_you_mean
from .marking import Handle
from .options import MARK_KEY, Collectives, Numerics
from .scope import Value, caller_line, checked, make_value, qualname

__all__ = ["NodeHandle", "mark_nodes"]


class NodeHandle(Handle):
    """What :func:`mark_nodes` returns.

    Attributes:
        nodes: How many nodes were marked.
    """

    def __init__(self, marked: list[tuple[torch.fx.Node, Any]], value: Value) -> None:
        self.nodes = len(marked)
        self._marked = marked
        self._value = value

    def remove(self) -> None:
        """Give each node the mark back that it had; nodes that were marked anew since keep that."""
        for node, before in self._marked:
            custom = dict(node.meta.get("custom") or {})
            if custom.get(MARK_KEY) is not self._value:
                continue
            del custom[MARK_KEY]
            if before is not _UNMARKED:
                custom[MARK_KEY] = before
            if custom:
                node.meta["custom"] = custom
            else:
                del node.meta["custom"]

    def __repr__(self) -> str:
        return f"<{self.nodes} marked nodes>"


_UNMARKED = object()


def mark_nodes(
    gm: torch.fx.GraphModule,
    predicate: Any,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    id: Hashable = None,
    numerics: Numerics | None = None,
    compile_timeout: float | None = None,
    collectives: Collectives | None = None,
) -> NodeHandle:
    """Mark nodes of a captured graph, as if the code they come from had been marked.

    The bodies of higher-order operators are searched too, each once however many nodes call it.
    Inputs, outputs and attribute reads are never marked.  Matching nodes form one region where
    they are connected; ``id=`` joins them beyond that.

    Args:
        gm: The graph, of any tracer.
        predicate: What to mark.  An operator overload (``torch.ops.aten.silu.default``), a packet
            (``torch.ops.aten.silu``: all its overloads), a higher-order operator, a function as
            Dynamo's graphs have it (``torch.nn.functional.silu``), the name of a method as Dynamo's
            graphs have it (``"relu"``), a function of a node that says yes or no, or a list of
            these.
        name: A label for reports.
        options: As in :func:`region`.
        id: As in :func:`region`.
        numerics: As in :func:`region`.
        compile_timeout: As in :func:`region`, in seconds.
        collectives: As in :func:`region`.

    Returns:
        A handle with the number of marked ``nodes`` and ``remove()``; also a context manager.

    Raises:
        MarkError: Nothing matches; the message names near operators that are in the graph.
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.

    Example:
        >>> import torch
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> import regional_inductor as ri
        >>> gm = make_fx(lambda x: torch.relu(x.sin()) + 1)(torch.ones(3))
        >>> ri.mark_nodes(gm, [torch.ops.aten.sin, torch.ops.aten.relu.default], name="act").nodes
        2
    """
    source = caller_line()
    value = make_value(name, options, id, numerics, compile_timeout, collectives)
    value = checked(value, source)
    value["source"] = source
    candidates = list(_call_nodes(gm))
    targets = [node.target for node in candidates]
    chosen: dict[torch.fx.Node, None] = {}
    many = isinstance(predicate, (list, tuple, set, frozenset))
    for wanted in predicate if many else [predicate]:
        matching = _matching_nodes(candidates, targets, wanted)
        if not matching:
            raise _nothing_matches(wanted, targets, source)
        chosen.update(dict.fromkeys(matching))
    if not chosen:
        raise MarkError("no operator was given to mark", source=source, hint="pass at least one")
    return NodeHandle([(node, _set_mark(node, value)) for node in chosen], value)


def _call_nodes(gm: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    for module in gm.modules():  # each module once, however often it is referenced
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op in ("call_function", "call_method", "call_module"):
                    yield node


def _matching_nodes(
    nodes: list[torch.fx.Node], targets: list[Any], wanted: Any
) -> list[torch.fx.Node]:
    if isinstance(wanted, str) or _is_operator(wanted, targets):
        return [
            node for node in nodes if is_same_operator(node.target, wanted) or node.target == wanted
        ]
    return [node for node in nodes if wanted(node)]


def _is_operator(wanted: Any, targets: list[Any]) -> bool:
    """Whether something callable is what nodes call, not a predicate over nodes."""
    if is_operator(wanted) or any(target is wanted for target in targets):
        return True
    module = getattr(wanted, "__module__", None) or ""
    return module.partition(".")[0] in ("torch", "_operator", "operator", "builtins", "math")


def _nothing_matches(wanted: Any, targets: list[Any], source: str) -> MarkError:
    present = sorted({target_name(target) for target in targets})
    held = "the graph calls " + ", ".join(present[:8]) + (", ..." if present[8:] else "")
    if not present:
        held = "the graph calls nothing"
    if isinstance(wanted, str) or _is_operator(wanted, targets):
        name = target_name(wanted)
        return MarkError(
            f"no node of the graph calls {name}",
            source=source,
            hint=_same_last_name(name, present) or did_you_mean(name, present, held),
        )
    return MarkError(f"the predicate {qualname(wanted)} matches no node", source=source, hint=held)


def _same_last_name(name: str, present: list[str]) -> str:
    """A hint for a function that was named as if it were a method, or the other way round."""
    if "." in name:
        method = name.rpartition(".")[2]
        return f"the graph calls it as a method: pass {method!r}" if method in present else ""
    functions = [one for one in present if one.rpartition(".")[2] == name]
    return f"a string names a method; pass the function {functions[0]}" if functions else ""


def _set_mark(node: torch.fx.Node, value: Value) -> Any:
    """Mark one node and return the mark it had; its custom dict may be shared with other nodes."""
    custom = dict(node.meta.get("custom") or {})
    before = custom.get(MARK_KEY, _UNMARKED)
    node.meta["custom"] = {**custom, MARK_KEY: value}
    return before
