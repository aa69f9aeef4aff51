"""What the HTML page of a report draws: graphs as boxes within boxes, and the compile as bars."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from .report import GraphReport, RegionReport, Report

BOXES = 120
"""How many boxes are drawn at most where one opens; the layout of some thousands takes minutes."""


@dataclass(frozen=True)
class Box:
    """Something that opens in the picture.

    Attributes:
        label: What is written on it.
        kind: ``"region"``, ``"module"`` or ``"operators"`` (unmarked ones in a row, or a part).
        path: Qualified name of the module that it is in.
        children: Boxes, and operators by their number.
        count: How many operators it holds.
        region: Which of the graph's regions it is or is a part of, or None.
    """

    label: str
    kind: str
    path: str
    children: tuple[Box | int, ...]
    count: int
    region: int | None = None


@dataclass(frozen=True)
class Bar:
    """A stretch of the time line; `left` and `width` are hundredths of the whole."""

    label: str
    step: str
    left: float
    width: float
    seconds: float


def page_data(report: Report) -> dict[str, Any]:
    """What the page's script needs, as plain data."""
    places = iter(report.regions)
    graphs = []
    for graph in report.graphs:
        regions = [_region(next(places)) for _ in graph.regions]
        operators = [
            [op.name, op.op, op.region, op.inputs, op.module_path, op.source, op.value]
            for op in graph.operators
        ]
        boxes = [_plain(box) for box in boxes_of(graph)]
        graphs.append(
            {
                "title": title(graph),
                "regions": regions,
                "operators": operators,
                "boxes": boxes,
            }
        )
    return {"graphs": graphs, "code": report.code}


def title(graph: GraphReport) -> str:
    """``"graph 0 forward"``, as in the printed report."""
    name = f"graph {graph.capture} {graph.direction}".rstrip()
    return f"{name}, body {graph.path}" if graph.path else name


def boxes_of(graph: GraphReport) -> list[Box | int]:
    """The graph as few enough boxes to draw: regions, and unmarked operators in a row.

    Where these are too many they are put together by module, and where that doesn't help, by order.
    """
    members: dict[Hashable, list[int]] = {}
    run = 0
    previous: tuple[int | None, str] | None = None
    for number, operator in enumerate(graph.operators):
        here = (operator.region, operator.module_path)
        if operator.region is not None:
            members.setdefault(("region", operator.region), []).append(number)
        else:
            run += here != previous
            members.setdefault(("run", run), []).append(number)
        previous = here
    blocks: list[Box | int] = []
    for numbers in members.values():
        first = graph.operators[numbers[0]]
        if first.region is not None:
            region = graph.regions[first.region]
            inside = _fold(graph, list(numbers), first.region)
            blocks.append(
                Box(
                    region.name,
                    "region",
                    region.module_path,
                    tuple(inside),
                    len(numbers),
                    first.region,
                )
            )
        elif len(numbers) == 1:
            blocks.append(numbers[0])
        else:
            label = first.module_path or "not in a region"
            inside = _fold(graph, list(numbers), None)
            blocks.append(Box(label, "operators", first.module_path, tuple(inside), len(numbers)))
    return _fold(graph, blocks, None)


def _fold(graph: GraphReport, blocks: Sequence[Box | int], region: int | None) -> list[Box | int]:
    """At most `BOXES` boxes that hold these."""
    if len(blocks) <= BOXES:
        return list(blocks)
    paths = [_path(graph, block).split(".") for block in blocks]
    for depth in range(max(map(len, paths)), 0, -1):
        runs = _runs(blocks, lambda block, d=depth: _path(graph, block).split(".")[:d])  # type: ignore[misc]
        if 1 < len(runs) <= BOXES:
            return [
                run[0]
                if len(run) == 1
                else _box(
                    graph, ".".join(_path(graph, run[0]).split(".")[:depth]), "module", run, region
                )
                for run in runs
            ]
    size = -(-len(blocks) // BOXES)
    parts = [blocks[start : start + size] for start in range(0, len(blocks), size)]
    return [
        _box(
            graph,
            f"{number}: {_span(graph, part)}",
            "operators" if region is None else "region",
            part,
            region,
        )
        for number, part in enumerate(parts, 1)
    ]


def _span(graph: GraphReport, part: Sequence[Box | int]) -> str:
    """Where a part of a row begins and ends."""
    first, last = _path(graph, part[0]), _path(graph, part[-1])
    return first if first == last else f"{first} to {last}"


def _runs(
    blocks: Sequence[Box | int], what: Callable[[Box | int], Any]
) -> list[Sequence[Box | int]]:
    return [list(run) for _, run in groupby(blocks, what)]


def _box(
    graph: GraphReport, label: str, kind: str, blocks: Sequence[Box | int], region: int | None
) -> Box:
    count = sum(block.count if isinstance(block, Box) else 1 for block in blocks)
    inside = tuple(_fold(graph, blocks, region))
    return Box(label or "outside modules", kind, _path(graph, blocks[0]), inside, count, region)


def _path(graph: GraphReport, block: Box | int) -> str:
    return block.path if isinstance(block, Box) else graph.operators[block].module_path


def _plain(box: Box | int) -> Any:
    if isinstance(box, int):
        return box
    children = [_plain(child) for child in box.children]
    return {
        "label": box.label,
        "kind": box.kind,
        "count": box.count,
        "region": box.region,
        "children": children,
    }


def _region(region: RegionReport) -> dict[str, Any]:
    result = asdict(region)
    for name in ("inputs", "outputs"):
        result[name] = [f"{value.name} {value}".strip() for value in getattr(region, name)]
    for name in ("options", "changed_options"):
        result[name] = {key: str(value) for key, value in result[name].items()}
    return result


def bars(report: Report) -> list[Bar]:
    """The stages, then the compiles of regions step by step, on one scale."""
    found: dict[tuple[str, str, float], float] = {}
    for graph in report.graphs:
        for stage, started in graph.started.items():
            found[(f"stage {stage}", stage, started)] = graph.seconds.get(stage, 0.0)
        for region in graph.regions:
            if region.started is None:
                continue
            moment = region.started
            for step, seconds in region.steps.items():
                found[(region.name, step, moment)] = seconds
                moment += seconds
    if not found:
        return []
    begin = min(started for _, _, started in found)
    end = max(started + seconds for (_, _, started), seconds in found.items())
    scale = 100 / max(end - begin, 1e-9)
    return [
        Bar(label, step, (started - begin) * scale, seconds * scale, seconds)
        for (label, step, started), seconds in found.items()
    ]


def span(of: Iterable[Bar]) -> float:
    """Seconds from one end of the time line to the other."""
    return max((100 * bar.seconds / bar.width for bar in of if bar.width), default=0.0)


def lanes(report: Report) -> Iterator[tuple[str, list[Bar]]]:
    """Bars of one thing on one line."""
    of: dict[str, list[Bar]] = {}
    for bar in bars(report):
        of.setdefault(bar.label, []).append(bar)
    yield from of.items()
