"""A progress line on the terminal for compiles that take longer than a second.

The compile stage says which region is in hand; after a second a line shows up below what is on the
terminal, and it is gone when the compile is done. Nothing shows where standard error is no
terminal, where the user's own progress bar (tqdm's or rich's) is on the screen, where
TORCH_LOGS="regional_inductor" already talks there, or with REGIONAL_INDUCTOR_PROGRESS=0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_DELAY = 1.0
_local = threading.local()
_on_screen = threading.Lock()


@contextlib.contextmanager
def compiling(total: int | None = None) -> Iterator[None]:
    """Show a progress line for what is compiled inside, should it take long.

    Args:
        total: How many distinct regions there are to compile; None where that isn't known yet.
    """
    if not _may_show() or getattr(_local, "line", None) is not None:
        yield
        return
    _local.line = line = _Line(total)
    try:
        yield
    finally:
        _local.line = None
        line.close()


@dataclass
class Step:
    """Something in hand: how many regions are done when it is, and how many then wait for another step."""

    done: int
    waiting: int = 0


@contextlib.contextmanager
def in_hand(what: str, regions: int = 1) -> Iterator[Step]:
    """Say what is being compiled.

    Args:
        what: A region's name, or a step that is for several regions.
        regions: How many regions are done when this is.

    Yields:
        The step, which may turn out to leave its region waiting for a later one.
    """
    step = Step(regions)
    line: _Line | None = getattr(_local, "line", None)
    if line is None:
        yield step
        return
    line.in_hand = what
    line.refresh()
    try:
        yield step
    finally:
        line.done += step.done
        line.waiting += step.waiting
        line.refresh()


def _may_show() -> bool:
    return (
        os.environ.get("REGIONAL_INDUCTOR_PROGRESS", "1").lower() not in ("", "0", "false")
        and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        and os.environ.get("LOCAL_RANK", "0") == "0"  # one of torchrun's processes is enough
        and sys.stderr is not None
        and sys.stderr.isatty()
        and not logging.getLogger("regional_inductor").isEnabledFor(logging.INFO)
    )


class _Line:
    """The line of one compile: a timer until it shows, rich's display from then on."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.done = 0
        self.waiting = 0
        self.in_hand = ""
        self._display: Any = None
        self._closed = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(_DELAY, self._show)
        self._timer.daemon = True
        self._timer.start()

    def refresh(self) -> None:
        with self._lock:
            if self._display is not None:
                self._display.update(self._display.task_ids[0], **self._fields())

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._display is not None:
                self._display.stop()
                _on_screen.release()

    def _fields(self) -> dict[str, Any]:
        of = "" if self.total is None else f"/{self.total}"
        return {
            "total": self.total,
            "completed": self.done + self.waiting / 2,
            "count": f"{self.done}{of}",
            "what": self.in_hand,
        }

    def _show(self) -> None:
        with self._lock:
            if self._closed or _others_show() or not _on_screen.acquire(blocking=False):
                return
            try:
                self._display = _display()
                task = self._display.add_task("compiling regions", **self._fields())
                # The task began when the compile did, a second ago.
                self._display.tasks[task].start_time -= _DELAY
                self._display.start()
            except BaseException:
                self._display = None
                _on_screen.release()
                raise


def _display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        # What is printed meanwhile goes above the line; what goes to a file must go there.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        redirect_stderr=True,
    )


def _others_show() -> bool:
    """Whether a progress bar of the user's is on the screen: two of them would garble each other."""
    return _tqdm_shows() or _rich_shows()


def _tqdm_shows() -> bool:
    tqdm = sys.modules.get("tqdm.std")
    kinds = [tqdm.tqdm] if tqdm is not None else []
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if any(not bar.disable for bar in list(getattr(kind, "_instances", ()))):
            return True
    return False


def _rich_shows() -> bool:
    rich = sys.modules.get("rich")
    console = getattr(rich, "_console", None)
    # A list since rich 14.1, one display before.
    if getattr(console, "_live_stack", None) or getattr(console, "_live", None):
        return True
    return any(
        type(thread).__module__ in ("rich.live", "rich.progress")
        for thread in threading.enumerate()
    )
