"""What `verify` found: each region next to eager and float64, and the whole model next to eager."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

from .comparison import Comparison
from .rendering import as_text, short_source, table


@dataclass(frozen=True)
class RegionVerification:
    """One region, over all its calls in the run.

    Attributes:
        name: The region's name.
        direction: ``"forward"``, ``"backward"`` or ``"inference"``.
        source: ``file:line`` of the user's code, or ``""``.
        module_path: Qualified name of the innermost module that holds it, or ``""``.
        key: The region key; equal keys are one compiled region.
        status: As in a `Report`: ``"compiled"``, ``"shared"``, ``"memory"``, ``"disk"``, ``"fetched"``, ``"eager"``.
        reason: Why it is eager, or ``""``.
        calls: How often it ran.
        outputs: Its outputs and what it wrote to, each the worst of all calls.
        reference: ``"float64"``, or why there is no such reference.
        note: What else to know, or ``""``.
        error: What it raised at run time, or ``""``.
    """

    name: str
    direction: str
    source: str
    module_path: str
    key: str
    status: str
    reason: str = ""
    calls: int = 0
    outputs: tuple[Comparison, ...] = ()
    reference: str = ""
    note: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether each output is within the tolerance; true of a region that ran eagerly."""
        return not self.error and all(output.ok for output in self.outputs)

    @property
    def bitwise(self) -> bool:
        return not self.error and all(output.bitwise for output in self.outputs)

    @property
    def worst(self) -> Comparison:
        """All outputs in one."""
        nothing = Comparison("", "", 0)
        return reduce(Comparison.worse, self.outputs) if self.outputs else nothing

    @property
    def further(self) -> bool | None:
        """Whether an output is further from float64 than eager's; None without a reference."""
        known = [output.further for output in self.outputs if output.further is not None]
        return any(known) if known else None


@dataclass(frozen=True)
class Verification:
    """Result of `verify`; printing it gives the tables, in plain text, 100 columns wide.

    Attributes:
        regions: The regions in the order they were compiled; a place in a loop counts once.
        outputs: The model's outputs next to the uncompiled original's.
        gradients: Gradients of parameters and arguments likewise.
        written: Buffers, parameters and arguments that the run wrote to.
        findings: What else is worth knowing.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> _ = ri.mark(model, "1", name="norm")
        >>> result = ri.verify(model, torch.ones(2, 4), region_backend="eager", show=False)
        >>> result.ok, len(result.regions)
        (True, 2)
    """

    regions: tuple[RegionVerification, ...]
    outputs: tuple[Comparison, ...]
    gradients: tuple[Comparison, ...] = ()
    written: tuple[Comparison, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether regions, outputs, gradients and written tensors are all within the tolerance."""
        return all(region.ok for region in self.regions) and all(c.ok for c in self._whole)

    @property
    def bitwise(self) -> bool:
        """Whether all of them are equal bit by bit."""
        return all(r.bitwise for r in self.regions) and all(c.bitwise for c in self._whole)

    @property
    def _whole(self) -> tuple[Comparison, ...]:
        return (*self.outputs, *self.gradients, *self.written)

    def to_json(self, *, indent: int | None = None) -> str:
        """The result as JSON: the attributes by name, with `ok`; infinities as text.

        Args:
            indent: Spaces for each level; one line by default.
        """
        document = {"ok": self.ok, "bitwise": self.bitwise, **asdict(self)}
        for region, fields in zip(self.regions, document["regions"], strict=True):
            fields["ok"] = region.ok
            fields["further"] = region.further
        return json.dumps(_plain(document), indent=indent)

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [Text(_headline(self)), Text()]
        if self.regions:
            parts += [
                Text(
                    "regions, on the inputs of a real run: largest differences from eager, and distances\nfrom the same in float64"
                ),
                Text(),
                _regions(self),
                Text(),
            ]
        if self._whole:
            parts += [
                Text("the whole model: largest differences from the uncompiled original"),
                Text(),
                _whole(self),
                Text(),
            ]
        parts += [Text(line) for line in _remarks(self)]
        return Group(*parts)

    def __repr__(self) -> str:
        return f"<Verification: {_headline(self)}>"


def _headline(result: Verification) -> str:
    compiled = [r for r in result.regions if r.status != "eager"]
    bad = [r for r in compiled if not r.ok]
    parts = [
        f"{len(compiled)} regions verified",
        f"{sum(r.bitwise for r in compiled)} bitwise equal",
    ]
    if len(compiled) < len(result.regions):
        parts.append(f"{len(result.regions) - len(compiled)} left eager")
    if bad:
        parts.append(f"{len(bad)} beyond the tolerance")
    elif not result.ok:
        parts.append("the whole model beyond the tolerance")
    return ("OK: " if result.ok else "NOT EQUAL: ") + ", ".join(parts)


_TITLES = (
    ("region", False),
    ("pass", True),
    ("where", False),
    ("calls", True),
    ("abs", True),
    ("rel", True),
    ("ulp", True),
    ("bitwise", True),
    ("off f64", True),
    ("eager's", True),
    ("further", True),
    ("verdict", False),
)


def _regions(result: Verification) -> Any:
    groups: dict[Any, list[RegionVerification]] = {}
    for region in result.regions:
        what = region.key or (region.name, region.source, region.reason)
        groups.setdefault((what, region.direction), []).append(region)
    return table(_TITLES, [_region_row(places) for places in groups.values()])


def _region_row(places: Sequence[RegionVerification]) -> list[str]:
    first = places[0]
    calls = sum(place.calls for place in places)
    head = [first.name, first.direction, _where(places), str(calls)]
    if first.status == "eager":
        return [*head, *[""] * 7, "left eager"]
    worst = reduce(Comparison.worse, (place.worst for place in places))
    known = [place.further for place in places if place.further is not None]
    return [
        *head,
        *_numbers(worst),
        _number(worst.compiled_error),
        _number(worst.eager_error),
        ("yes" if any(known) else "no") if known else "-",
        next((_verdict(place) for place in places if not place.ok), _verdict(first)),
    ]


def _verdict(region: RegionVerification) -> str:
    if not region.calls:
        return "not run"
    if region.error:
        return "raised"
    return "ok" if region.ok else "NOT EQUAL"


def _trouble(c: Comparison) -> str:
    if c.problem:
        return c.problem
    parts = [f"{c.nonfinite} NaN or infinite in one only"] if c.nonfinite else []
    if c.beyond:
        parts.append(f"{c.beyond} of {c.elements} beyond the tolerance")
    return ", ".join(parts)


def _numbers(c: Comparison) -> list[str]:
    return [_number(c.max_abs), _number(c.max_rel), _count(c.max_ulp), "yes" if c.bitwise else "no"]


_ROWS = 12
"""Rows of the second table; the others are within the tolerance and less far from eager."""


def _whole(result: Verification) -> Any:
    named = [
        *((c.what, c) for c in result.outputs),
        *((f"gradient of {c.what}", c) for c in result.gradients),
        *((f"written: {c.what}", c) for c in result.written),
    ]
    shown = sorted(named, key=lambda item: (item[1].ok, -item[1].max_rel))[:_ROWS]
    kept = {id(c) for _, c in shown}
    rows = [
        [name, c.dtype, *_numbers(c), "ok" if c.ok else "NOT EQUAL"]
        for name, c in named
        if id(c) in kept
    ]
    rest = len(named) - len(shown)
    if rest:
        rows.append([f"and {rest} more", "", "", "", "", "", "nearer to eager than these"])
    titles = (("tensor", False), ("dtype", False), *_TITLES[4:8], ("verdict", False))
    return table(titles, rows)


def _remarks(result: Verification) -> list[str]:
    lines = []
    for region in result.regions:
        name = f"{region.name} ({region.direction})"
        if region.error:
            lines.append(f"{name} raised {region.error}")
        lines += [f"{name}: {c.what}: {_trouble(c)}" for c in region.outputs if not c.ok]
        if region.status == "eager":
            lines.append(f"{name} is left eager: {region.reason}")
        if region.calls and region.status != "eager" and region.reference != "float64":
            lines.append(f"{name} has no float64 reference: {region.reference}")
        if region.note:
            lines.append(f"{region.name}: {region.note}")
    for c in result._whole:
        if not c.ok:
            lines.append(f"{c.what}: {_trouble(c)}")
    return list(dict.fromkeys((*lines, *result.findings)))


def _where(places: Sequence[RegionVerification]) -> str:
    paths = list(dict.fromkeys(place.module_path for place in places if place.module_path))
    if not paths:
        return short_source(places[0].source).rpartition("/")[2]
    first = paths[0].split(".")
    alike = [path.split(".") for path in paths if len(path.split(".")) == len(first)]
    joined = ".".join(p[0] if len(set(p)) == 1 else "*" for p in zip(*alike, strict=True))
    return joined if len(alike) == len(paths) else f"{joined}, ..."


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def _count(value: int) -> str:
    return str(value) if value < 100_000 else _number(float(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
