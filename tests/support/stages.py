"""Products of the stages as short text, for inline expected results."""

from __future__ import annotations

import re
from typing import Any

from torch.fx import Graph, GraphModule, Node

from regional_inductor.pipeline import run
from regional_inductor.regions import REGION_META, Settings


def after(stage: str, gm: GraphModule, *example_inputs: Any, **settings: Any) -> Any:
    """The product of a stage."""
    settings = {"region_backend": "eager", "on_error": "raise", **settings}
    return run(gm, example_inputs, Settings(**settings), stop_after=stage)


def collected_text(collected: Any) -> str:
    """One line a marked node: its label, entry and direction."""
    lines = []
    for graph in collected.graphs:
        lines.append(f"graph {graph.path or '(outermost)'}:")
        for node, marked in graph.marks.items():
            mark = marked.mark
            what = [mark.name or "-", f"entry {marked.entry}", marked.direction]
            what += [f"id {mark.id!r}"] if mark.id is not None else []
            what += [str(dict(mark.options))] if mark.options else []
            lines.append(f"  {node.name}: {', '.join(what)}")
    lines += [
        f"{finding.kind}: {finding.message.splitlines()[0]}" for finding in collected.findings
    ]
    return "\n".join(lines)


def schedule_text(partitioned: Any) -> str:
    """One line an item, in the order in which they will run."""
    lines = []
    for graph in partitioned.graphs:
        lines.append(f"graph {graph.marked.path or '(outermost)'}:")
        for item in graph.schedule:
            if isinstance(item, Node):
                lines.append(f"  {item.name}")
            else:
                lines.append(f"  [{item.name}: {' '.join(n.name for n in item.nodes)}]")
    return "\n".join(lines)


def graph_text(graph: Graph) -> str:
    """One line a node: `name = target(arguments)`."""
    lines = []
    for node in graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{node.name}: input")
        elif node.op == "output":
            lines.append(f"return {node.args[0]}")
        else:
            target = node.target if isinstance(node.target, str) else _name(node.target)
            values = [str(a) for a in node.args] + [f"{k}={v}" for k, v in node.kwargs.items()]
            kind = "call " if REGION_META in node.meta else ""
            lines.append(f"{node.name} = {kind}{target}({', '.join(values)})")
    return "\n".join(lines)


def _name(target: Any) -> str:
    if "." in str(target) and " " not in str(target):
        return str(target)
    return re.sub(r"^_", "", str(getattr(target, "__name__", target)))


def outlined_text(outlined: Any) -> str:
    """The stitching graph, then each region."""
    parts = []
    for graph in outlined.graphs:
        parts.append(graph_text(graph.graph))
        for name, module in graph.submodules.items():
            body = graph_text(module.graph).replace("\n", "\n  ")
            parts.append(f"{name}:\n  {body}")
    return "\n".join(parts)
