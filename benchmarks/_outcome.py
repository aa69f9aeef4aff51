"""What a benchmark returns: tables of rows, and targets with their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Value: TypeAlias = "str | int | float | None"
Row: TypeAlias = Mapping[str, Value]
Tables: TypeAlias = "dict[str, list[Row]]"


@dataclass(frozen=True)
class Target:
    """A figure that the project promises, and what came out.

    `value` is None where this form of the run didn't measure it; `unit` may be "x" for ratios. `why`
    says what stands in the way, for where it is missed; it is shown only there.
    """

    figure: str
    value: float | None
    bound: float
    better: Literal["lower", "higher"]
    unit: str = ""
    why: str = ""

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.bound if self.better == "lower" else self.value >= self.bound

    @property
    def verdict(self) -> str:
        """`reached`, or by how much not."""
        if self.value is None:
            return "not measured in this form"
        if self.reached:
            return "reached"
        if self.bound == 0:
            return f"not reached: {number(self.value)}{self.unit} above"
        part = self.value / self.bound
        return f"not reached: {number(part)} of the bound"

    def row(self) -> dict[str, Value]:
        sign = "≤" if self.better == "lower" else "≥"
        unit = f" {self.unit}" if self.unit else ""
        return {
            "figure": self.figure,
            "measured": "-" if self.value is None else f"{number(self.value)}{unit}",
            "target": f"{sign} {number(self.bound)}{unit}",
            "verdict": self.verdict,
        }


@dataclass
class Outcome:
    """A benchmark's tables by title, its targets, and remarks on how to read them."""

    tables: Tables = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, result: Outcome | Sequence[Row]) -> Outcome:
        return result if isinstance(result, Outcome) else cls({"": list(result)})


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All keys of all rows, in order of first appearance: a way that failed has fewer."""
    return list(dict.fromkeys(key for row in rows for key in row))


def number(value: Value) -> str:
    """As many digits as a reader can use; times and ratios are never more precise than that."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown_table(rows: Sequence[Row]) -> str:
    columns = columns_of(rows)
    numeric = {c for c in columns if all(not isinstance(row.get(c), str) for row in rows)}
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if c in numeric else "---" for c in columns) + "|",
    ]
    for row in rows:
        cells = (number(row.get(c)).replace("|", "\\|") for c in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
