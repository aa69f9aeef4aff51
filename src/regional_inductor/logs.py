"""What `TORCH_LOGS="regional_inductor"` shows: a line a region; with a plus, each stage's figures too.

torch knows the logger by the package's name. At the end of its own import it imports the package
that TORCH_LOGS names, so `import regional_inductor` must work there (tests/test_logs.py).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._torch import trace
from .regions import Collected, Compiled, Outlined, Partitioned, Stitched

if TYPE_CHECKING:
    from .report import GraphReport

log = logging.getLogger("regional_inductor")

_KEY_LETTERS = 8


def log_regions(graphs: Sequence[GraphReport]) -> None:
    """A line for each region: name, direction, place, status, the start of its key, seconds.

    The structured trace gets the same lines, as one text for each graph.
    """
    if trace.is_on() and any(graph.regions for graph in graphs):
        trace.emit_text("regional_inductor_regions", lambda: "\n".join(region_lines(graphs)))
    if not log.isEnabledFor(logging.INFO):
        return
    for line in region_lines(graphs):
        log.info("%s", line)
    for region in (region for graph in graphs for region in graph.regions):
        if region.key_parts:
            parts = ", ".join(f"{k} {v[:_KEY_LETTERS]}" for k, v in region.key_parts.items())
            log.debug("key of %s: %s", region.name, parts)


def region_lines(graphs: Sequence[GraphReport]) -> list[str]:
    return [
        " ".join(
            filter(
                None,
                (
                    f"region {region.name}",
                    region.direction,
                    f"at {region.module_path or region.source or '?'}:",
                    f"{region.status}",
                    f"({region.reason})" if region.reason else "",
                    f"key {region.key[:_KEY_LETTERS]}" if region.key else "",
                    f"{region.seconds:.2f} s",
                ),
            )
        )
        for graph in graphs
        for region in graph.regions
    ]


def log_stage(stage: str, product: Any, seconds: float) -> None:
    """What a stage made and how long it took."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s: %s in %.4f s", stage, _counts(product), seconds)


def _counts(product: Any) -> str:
    graphs = getattr(product, "graphs", ())
    match product:
        case Collected():
            marked = sum(len(graph.marks) for graph in graphs)
            return f"{len(graphs)} graphs with {marked} marked nodes"
        case Partitioned():
            sizes = [len(region.nodes) for graph in graphs for region in graph.regions]
            return f"{len(sizes)} regions of {sum(sizes)} nodes, the largest of {max(sizes, default=0)}"
        case Outlined():
            modules = sum(len(graph.submodules) for graph in graphs)
            return f"{modules} modules for {len(graphs)} graphs"
        case Compiled():
            found = Counter(region.status for graph in graphs for region in graph.regions.values())
            return ", ".join(f"{count} {status}" for status, count in found.items()) or "no regions"
        case Stitched():
            return f"{len(product.modules)} graphs"
        case _:
            return type(product).__name__
