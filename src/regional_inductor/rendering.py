"""Plain text of 100 columns from what rich draws, shared by everything that prints a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

WIDTH = 100


def as_text(renderable: Any) -> str:
    """What rich makes of something, in plain text of at most 100 columns."""
    from rich.console import Console

    console = Console(width=WIDTH, color_system=None, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()


def table(titles: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> Any:
    """A table without frames; numbers (titles with True) are to the right and never broken."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for title, right in titles:
        result.add_column(
            title, justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    for row in rows:
        result.add_row(*(Text(cell, overflow="fold") for cell in row))
    return result


def short_source(source: str) -> str:
    """A path below the current folder as it is seen from there."""
    return source.replace(os.getcwd() + os.sep, "")
