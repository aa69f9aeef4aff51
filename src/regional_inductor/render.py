"""A report as text for people: a section for each captured graph, then the findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .regions import Finding
from .rendering import as_text, short_source, table
from .report import GraphReport, RegionReport, Report

_STATUS = {
    "planned": "to compile",
    "memory": "from memory",
    "disk": "from disk",
    "fetched": "fetched",
}


def render(report: Report) -> str:
    """The report as plain text of at most 100 columns."""
    return as_text(renderable(report))


def renderable(report: Report) -> Any:
    """The report for rich: headline, a table of regions for each captured graph, findings."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(headline(report), style="bold")]
    places = iter(report.regions)
    captures: dict[int, list[tuple[GraphReport, list[RegionReport]]]] = {}
    for graph in report.graphs:
        regions = [next(places) for _ in graph.regions]
        captures.setdefault(graph.capture, []).append((graph, regions))
    for number, graphs in captures.items():
        parts.append(Text())
        parts += [Text(line) for line in _graph_lines(number, [graph for graph, _ in graphs])]
        regions = [region for _, of_graph in graphs for region in of_graph]
        if regions:
            parts += [Text(), _table(regions)]
    if any(map(_moves, report.regions)):
        parts += [Text(), Text(_LEGEND, style="dim")]
    if report.findings:
        parts += [Text(), Text("findings", style="bold"), _finding_table(report.findings)]
    return Group(*parts)


def headline(report: Report) -> str:
    regions = report.regions
    eager = sum(region.status == "eager" for region in regions)
    parts = [count(len(regions), "region"), f"{report.distinct} distinct"]
    if not report.dry_run:
        parts.append(f"{report.compiles} compiled now")
    if eager:
        parts.append(f"{eager} left eager")
    if report.dry_run:
        parts.append("nothing compiled: a dry run")
    return ", ".join(parts)


def _graph_lines(number: int, graphs: Sequence[GraphReport]) -> Iterator[str]:
    for graph in graphs:
        name = f"graph {number} {graph.direction}".rstrip()
        if graph.path:
            name += f", body {graph.path}"
        yield (
            f"{name}: {count(graph.nodes, 'node')}, {graph.marked} marked, "
            f"{count(len(graph.regions), 'region')}, {graph.eager} run eagerly"
        )
        if kept := kept_for_backward(graph):
            yield f"  {kept}"
        if early := compiled_early(graph):
            yield f"  {early}"


def kept_for_backward(graph: GraphReport) -> str:
    """What computing again saves, or ``""``."""
    if not graph.recomputed or graph.saved_bytes is None:
        return ""
    return (
        f"keeps {amount(graph.saved_bytes)}B for backward, not "
        f"{amount(graph.saved_bytes_otherwise or 0)}B: regions compute "
        f"{count(graph.recomputed, 'node')} again there"
    )


def compiled_early(graph: GraphReport) -> str:
    """How much of the backward graph is there already, or ``""``."""
    if not graph.compiled_early:
        return ""
    return f"compiled with it: {count(graph.compiled_early, 'region')} of its backward graph"


def count(number: int, what: str) -> str:
    """`1 region`, `2 regions`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


_Column = tuple[str, bool, Callable[[list[RegionReport]], str]]

_COLUMNS: tuple[_Column, ...] = (
    ("region", False, lambda places: places[0].name),
    ("pass", False, lambda places: places[0].direction),
    ("where", False, lambda places: where(places)),
    ("nodes", True, lambda places: str(places[0].nodes)),
    ("places", True, lambda places: str(len(places))),
    ("bytes", True, lambda places: _moves(places[0])),
    ("flops", True, lambda places: amount(places[0].flops or 0) if places[0].flops else ""),
    ("options", False, lambda places: _options(places[0])),
    ("status", False, lambda places: status(places)),
    ("s", True, lambda places: _seconds(places)),
)
_ALWAYS = ("region", "pass", "where", "nodes", "places", "status")
_LEGEND = "bytes: read and written by its operators one by one > by one kernel for all of them"


def _table(regions: Sequence[RegionReport]) -> Any:
    """One row for each distinct region and direction; a column that says nothing is left out."""
    rows: dict[Any, list[RegionReport]] = {}
    for region in regions:
        what = region.key or (region.name, region.source, region.reason)
        rows.setdefault((what, region.direction), []).append(region)
    columns = [
        (title, right, [cell(places) for places in rows.values()])
        for title, right, cell in _COLUMNS
    ]
    # In a dry run that leaves nothing eager, the headline has said it.
    said = {_STATUS["planned"], ""}
    columns = [
        (title, right, texts)
        for title, right, texts in columns
        if (set(texts) - said if title == "status" else title in _ALWAYS or any(texts))
    ]
    cells = zip(*(cells for _, _, cells in columns), strict=True)
    return table([(title, right) for title, right, _ in columns], list(cells))


def _text(cell: str) -> Any:
    from rich.text import Text

    return Text(cell, overflow="fold")


def _finding_table(findings: Sequence[Finding]) -> Any:
    from rich.table import Table

    result = Table.grid(padding=(0, 2, 0, 0))
    result.add_column(style="yellow", overflow="fold")
    result.add_column(overflow="fold")
    for finding in findings:
        lines = [f"{finding.region}: {finding.message}" if finding.region else finding.message]
        if finding.source:
            lines.append(f"at {short_source(finding.source)}")
        if finding.remedy:
            lines.append(f"way out: {finding.remedy}")
        result.add_row(_text(finding.kind), _text("\n".join(lines)))
    return result


def where(places: Sequence[RegionReport]) -> str:
    """Module paths with layer numbers that differ as `*`, or the source line."""
    paths = list(dict.fromkeys(place.module_path for place in places if place.module_path))
    if not paths:
        return places[0].source.rpartition("/")[2]
    shapes: dict[tuple[str, ...], list[list[str]]] = {}
    for parts in (path.split(".") for path in paths):
        shape = tuple("*" if part.isdigit() else part for part in parts)
        shapes.setdefault(shape, []).append(parts)
    return "\n".join(
        ".".join(p[0] if len(set(p)) == 1 else "*" for p in zip(*alike, strict=True))
        for alike in shapes.values()
    )


def _moves(region: RegionReport) -> str:
    """Bytes moved in eager mode and by one fused kernel; nothing where there is no such kernel."""
    if region.status == "eager":
        return ""
    if region.bytes_eager is None or region.bytes_read is None or region.bytes_written is None:
        return ""
    return f"{amount(region.bytes_eager)}>{amount(region.bytes_read + region.bytes_written)}"


def amount(number: float) -> str:
    """Three digits and a unit: 512, 1.5k, 12M."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            return f"{number:.3g}{unit}" if number < 999.5 else f"{number:.0f}{unit}"
        number /= 1000
    raise AssertionError


def _options(region: RegionReport) -> str:
    return "\n".join(f"{key}={value}" for key, value in region.changed_options.items())


def status(places: list[RegionReport]) -> str:
    first = places[0]
    if first.status == "eager":
        return f"eager: {first.reason}"
    return _STATUS.get(first.status, first.status)


def _seconds(places: list[RegionReport]) -> str:
    seconds = sum(region.seconds for region in places)
    return f"{seconds:.2f}" if seconds else ""
