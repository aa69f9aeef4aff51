"""What changed between two compiles, and so why something was compiled again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .report import NOT_SET, RegionReport, Report


@dataclass(frozen=True)
class Regrouped:
    """One place of the model whose regions became more (split) or fewer (joined)."""

    name: str
    direction: str
    source: str
    module_path: str
    before: int
    after: int


@dataclass(frozen=True)
class Rekeyed:
    """A region that is there in both reports and would be compiled anew.

    Attributes:
        before: The region in the first report.
        after: The region in the second.
        parts: The parts of the key that differ, by the names that `RegionReport.key_parts` uses;
            empty where one of the reports doesn't have them.
        details: What differs, in words, as far as the reports show it.
    """

    before: RegionReport
    after: RegionReport
    parts: tuple[str, ...]
    details: tuple[str, ...]


@dataclass(frozen=True)
class ReportDiff:
    """What changed from one report to another; false when nothing did."""

    gained: tuple[RegionReport, ...] = ()
    lost: tuple[RegionReport, ...] = ()
    split: tuple[Regrouped, ...] = ()
    joined: tuple[Regrouped, ...] = ()
    rekeyed: tuple[Rekeyed, ...] = ()

    def __bool__(self) -> bool:
        return any((self.gained, self.lost, self.split, self.joined, self.rekeyed))

    def __str__(self) -> str:
        return "\n".join(_lines(self)) or "nothing changed"


def diff(before: Report, after: Report) -> ReportDiff:
    """Compare two reports, region by region.

    Regions correspond if they agree in capture, name, direction, module path and source line; of
    what is left over, if they agree in all but the line, or in all but the module path: code moves,
    and modules are renamed.
    """
    left, right = _regions(before), _regions(after)
    split: list[Regrouped] = []
    joined: list[Regrouped] = []
    rekeyed: list[Rekeyed] = []
    gained: list[RegionReport] = []
    lost: list[RegionReport] = []
    for place in _PLACES:
        pairs = _matched(left, right, place)
        taken = {id(one) for old, new in pairs for one in (*old, *new)}
        left = [one for one in left if id(one) not in taken]
        right = [one for one in right if id(one) not in taken]
        for before_it, after_it in pairs:
            old, new = [one.region for one in before_it], [one.region for one in after_it]
            nodes = sum(r.nodes for r in new) - sum(r.nodes for r in old)
            if len(new) > len(old) and nodes <= 0:
                split.append(_regrouped(old, new))
            elif len(new) < len(old) and nodes >= 0:
                joined.append(_regrouped(old, new))
            else:
                lost += old[len(new) :]
                gained += new[len(old) :]
                rekeyed += [
                    _rekeyed(a, b)
                    for a, b in zip(before_it, after_it, strict=False)
                    if a.region.key != b.region.key
                ]
    return ReportDiff(
        gained=(*gained, *(one.region for one in right)),
        lost=(*lost, *(one.region for one in left)),
        split=tuple(split),
        joined=tuple(joined),
        rekeyed=tuple(rekeyed),
    )


@dataclass(frozen=True)
class _Located:
    """A region, which of the captured graphs it is in, and under which settings that was compiled."""

    capture: int
    region: RegionReport
    environment: Mapping[str, str]

    @property
    def name(self) -> tuple[int, str, str]:
        return (self.capture, self.region.name, self.region.direction)


_PLACES: tuple[Callable[[_Located], Hashable], ...] = (
    lambda at: (at.name, at.region.module_path, at.region.source),
    lambda at: (at.name, at.region.module_path),
    lambda at: (at.name, at.region.source),
)


def _regions(report: Report) -> list[_Located]:
    found = []
    for graph in report.graphs:
        environment = {**report.environment, **graph.environment}
        found += [_Located(graph.capture, region, environment) for region in graph.regions]
    return found


def _matched(
    left: Sequence[_Located], right: Sequence[_Located], place: Callable[[_Located], Hashable]
) -> list[tuple[list[_Located], list[_Located]]]:
    """Regions of both sides by place, where both sides have some."""
    found: dict[Hashable, tuple[list[_Located], list[_Located]]] = {}
    for side, regions in enumerate((left, right)):
        for region in regions:
            found.setdefault(place(region), ([], []))[side].append(region)
    return [(old, new) for old, new in found.values() if old and new]


def _regrouped(old: Sequence[RegionReport], new: Sequence[RegionReport]) -> Regrouped:
    first = old[0]
    return Regrouped(
        first.name, first.direction, first.source, first.module_path, len(old), len(new)
    )


def _rekeyed(before: _Located, after: _Located) -> Rekeyed:
    a, b = before.region, after.region
    names = [*a.key_parts, *(name for name in b.key_parts if name not in a.key_parts)]
    parts: tuple[str, ...] = ()
    if a.key_parts and b.key_parts:
        parts = tuple(n for n in names if a.key_parts.get(n) != b.key_parts.get(n))
    inputs = list(_changed_values("input", a.inputs, b.inputs))
    details = [*inputs, *_changes(a.options, b.options)]
    if a.ops != b.ops:
        more, fewer = Counter(b.ops) - Counter(a.ops), Counter(a.ops) - Counter(b.ops)
        changes = [f"+{op}" for op in more.elements()] + [f"-{op}" for op in fewer.elements()]
        details.append("operators: " + (" ".join(changes) or "in another order"))
    else:
        details += _changed_constants(a.constants, b.constants)
        if not inputs:
            details += _changed_values("output", a.outputs, b.outputs)
    if "environment" in parts or not parts:
        details += _changes(before.environment, after.environment)
    if a.status != b.status and "eager" in (a.status, b.status):
        eager = a if a.status == "eager" else b
        details.append(f"{a.status} -> {b.status}: {eager.reason}")
    if not details:
        details += [f"{part}: {_IN_WORDS[part]}" for part in parts if part in _IN_WORDS]
    return Rekeyed(a, b, parts, tuple(details))


_IN_WORDS = {
    "backend": "what compiles regions is another",
    "environment": "a setting that reports don't record, of Inductor's or functorch's",
    "inputs": "their strides, offsets or kind",
    "arguments": "how operators are connected, or the body of one",
    "values": "what operators compute has other strides, dtypes or sizes",
    "aliases": "which inputs share storage",
    "symbols": "symbolic sizes belong to one capture, and each compiles its regions for itself",
}


def _changed_constants(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    if len(old) == len(new):
        yield from dict.fromkeys(f"{a} -> {b}" for a, b in zip(old, new, strict=True) if a != b)


def _changed_values(what: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:
    if len(old) != len(new):
        yield f"{len(old)} {what}s -> {len(new)}"
        return
    for index, (a, b) in enumerate(zip(old, new, strict=True)):
        if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
            device = f" on {a.device} -> {b.device}" if a.device != b.device else ""
            yield f"{what} {index}: {a} -> {b}{device}"
        elif a.stride and b.stride and a.stride != b.stride:
            yield f"{what} {index}: strides {_list(a.stride)} -> {_list(b.stride)}"
        if a.stride and b.stride and a.requires_grad != b.requires_grad:
            before, after = (("no", "a")[one.requires_grad] for one in (a, b))
            yield f"{what} {index}: {before} gradient is required -> {after} gradient is required"


def _list(sizes: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name}: {_shown(old, name)} -> {_shown(new, name)}"
        for name in names
        if _shown(old, name) != _shown(new, name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else NOT_SET


def _lines(changes: ReportDiff) -> Iterator[str]:
    for kind, regions in (("lost", changes.lost), ("gained", changes.gained)):
        by_name: dict[Hashable, list[RegionReport]] = {}
        for region in regions:
            by_name.setdefault((region.name, region.direction), []).append(region)
        yield from (f"{kind}: {_places(places)}" for places in by_name.values())
    for kind, groups in (("split", changes.split), ("joined", changes.joined)):
        for group in groups:
            yield f"{kind}: {_place(group)}, {group.before} -> {group.after} regions"
    for alike in _alike(changes.rekeyed):
        parts = ", ".join(alike[0].parts) or "parts not recorded"
        yield f"re-keyed: {_places([one.after for one in alike])}, by {parts}"
        yield from (f"    {detail}" for detail in alike[0].details)


def _alike(changes: Sequence[Rekeyed]) -> list[list[Rekeyed]]:
    """Together what is the same change in many layers."""
    found: dict[Hashable, list[Rekeyed]] = {}
    for one in changes:
        what = (one.after.name, one.after.direction, one.parts, one.details)
        found.setdefault(what, []).append(one)
    return list(found.values())


def _places(regions: Sequence[RegionReport]) -> str:
    from .render import where

    if len(regions) == 1:
        return _place(regions[0])
    first = regions[0]
    at = where(regions).replace("\n", ", ")
    return f"{first.name} {first.direction} in {len(regions)} places, at {at}"


def _place(region: RegionReport | Regrouped) -> str:
    where = region.module_path or region.source
    return f"{region.name} {region.direction}" + (f" at {where}" if where else "")
