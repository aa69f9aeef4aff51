"""What `bisect` found: the smallest set of regions, and of their operators, that breaks something."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from .rendering import WIDTH, short_source


@dataclass(frozen=True)
class Culprit:
    """One region that has to be compiled for the failure to show.

    Attributes:
        name: The region's name.
        direction: ``"forward"`` or ``"backward"``.
        source: ``file:line`` of the user's code, or ``""``.
        module_path: Qualified name of the innermost module that holds it, or ``""``.
        ops: Those of its operators that have to be compiled, in order.
        lines: For each of them the user's ``file:line``, or ``""``.
        nodes: How many operators the region has.
    """

    name: str
    direction: str
    source: str
    module_path: str
    ops: tuple[str, ...]
    lines: tuple[str, ...]
    nodes: int


@dataclass(frozen=True)
class Bisection:
    """Result of `bisect`; printing it says what was found.

    Attributes:
        culprits: The smallest set of regions that breaks the check: leave out any and it passes. Empty
            if it passes with everything compiled.
        kind: What kind of failure it is: ``"wrong numbers"``, ``"raises ValueError"``, ``"slow"``,
            ``"check"``, ``"exit code 1"``, or ``""``.
        what: A line that says more.
        trials: How often the program was run.
        regions: How many regions it has.
        script: The script that compiles the culprits by themselves, or None.
        reproduced: Whether the script fails too; None if it wasn't run.
        notes: What else to know.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> _ = ri.mark(model, "1", name="norm")
        >>> found = ri.bisect(model, torch.ones(2, 4), region_backend="eager", show=False)
        >>> found.ok, found.culprits
        (True, ())
    """

    culprits: tuple[Culprit, ...] = ()
    kind: str = ""
    what: str = ""
    trials: int = 0
    regions: int = 0
    script: Path | None = None
    reproduced: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.culprits

    def __str__(self) -> str:
        if self.ok:
            return f"nothing to find: good with all {_counted(self.regions, 'region')} compiled"
        lines = [
            f"{self.kind}: {self.what}" if self.what else self.kind,
            f"{_counted(len(self.culprits), 'region')} of {self.regions} must be compiled for it:",
        ]
        for culprit in self.culprits:
            lines += _described(culprit)
        if self.script is not None:
            outcome = {True: "it fails by itself", False: "it does NOT fail by itself"}
            said = outcome.get(bool(self.reproduced)) if self.reproduced is not None else "not run"
            lines.append(f"script: {short_source(str(self.script))} ({said})")
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"{_counted(self.trials, 'trial')}")
        return "\n".join(
            line for text in lines for line in textwrap.wrap(text, WIDTH, subsequent_indent="    ")
        )


def _described(culprit: Culprit) -> list[str]:
    place = f" in {culprit.module_path}" if culprit.module_path else ""
    source = f", {short_source(culprit.source)}" if culprit.source else ""
    all_of = "all" if len(culprit.ops) == culprit.nodes else f"{len(culprit.ops)} of"
    lines = [
        f"- {culprit.name} ({culprit.direction}){place}{source}: {all_of} {culprit.nodes} operators"
    ]
    for op, line in zip(culprit.ops, culprit.lines, strict=True):
        lines.append(f"    {op}" + (f"  {short_source(line)}" if line else ""))
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
