"""Plain text of 100 columns from what rich draws, shared by everything that prints a table."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

WIDTH = 100


def as_text(renderable: Any) -> str:
    """What rich makes of something, in plain text of at most 100 columns."""
    from rich.console import Console

    console = Console(width=WIDTH, color_system=None, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()


def show(printable: Any) -> None:
    """Print what rich can draw: with its colours, as wide as it is, on a terminal; else as plain text."""
    if not sys.stdout.isatty():
        print(printable)
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(WIDTH, console.width)
    console.print(printable)


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
        cells = zip(titles, row, strict=True)
        result.add_row(*(Text(cell) if right else Folded(cell) for (_, right), cell in cells))
    return result


class Folded:
    """A cell whose lines break, where they must, at spaces and after the parts of a dotted name."""

    _PIECE = re.compile(r"[^\s._=/+,]*[\s._=/+,]*")

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        from rich.cells import cell_len
        from rich.measure import Measurement

        longest = max(map(cell_len, self.text.splitlines()), default=0)
        piece = max(cell_len(piece.strip()) for piece in self._PIECE.findall(self.text))
        return Measurement(piece, longest)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        for line in self.text.splitlines() or [""]:
            for part in self.folded(line, options.max_width):
                yield Text(part, overflow="fold")

    @classmethod
    def folded(cls, line: str, width: int) -> list[str]:
        """A line in parts of at most `width` columns, save where one piece alone takes more."""
        from rich.cells import cell_len

        parts = [""]
        for piece in cls._PIECE.findall(line):
            if parts[-1] and cell_len(parts[-1] + piece.rstrip()) > width:
                parts.append("")
            parts[-1] += piece
        return [part.rstrip() for part in parts]


def short_source(source: str) -> str:
    """A path below the current folder as it is seen from there."""
    return source.replace(os.getcwd() + os.sep, "")
