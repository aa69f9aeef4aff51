"""Whose own code this thread runs: that of a model of which blocks are captured, or nobody's.

Such code is plain Python, in which marked functions are called and marked scopes entered. They ask here
(`scope.py`) whether there is somebody to compile them (`block_capture.py`).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ._torch.in_place import backward_sequence_number, sequence_number


class Capture(Protocol):
    """Compiles marked functions where they are called."""

    def call_marked(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a marked function, compiled by itself."""


_RUNS_KEPT = 4096

_local = threading.local()


@dataclass(frozen=True)
class _Run:
    """A run of a model: the nodes of the autograd graph that it made, as each thread numbers its own."""

    thread: int
    first: int
    end: int
    capture: weakref.ref[Any]


_runs: deque[_Run] = deque(maxlen=_RUNS_KEPT)


def current() -> Capture | None:
    """The capture whose model's own code this thread runs, outside everything that is compiled.

    In a backward pass a checkpoint calls again what a run had called: it is that run's capture then, for
    what was compiled there has to be here, or other tensors would be saved than in the run.
    """
    capture: Capture | None = getattr(_local, "capture", None)
    if capture is None and _runs and not getattr(_local, "inside", False):
        number = backward_sequence_number()
        if number is not None:
            return _of_run(number)
    return capture


def _of_run(number: int) -> Capture | None:
    """The capture of the run that made a node; nobody's where runs of other threads could be meant as well.

    On a CPU a backward pass runs in the thread of its forward pass; of a node whose backward runs in another
    thread, as a GPU's do, nothing says which thread made it. Then a checkpoint runs what is marked uncompiled
    and raises where that saves other tensors, which is better than another model's options.
    """
    found: dict[int, Capture] = {}
    for run in reversed(_runs):
        capture: Capture | None = run.capture() if run.first <= number < run.end else None
        if capture is None:
            continue
        if run.thread == threading.get_ident():
            return capture
        found[id(capture)] = capture
    return next(iter(found.values())) if len(found) == 1 else None


@contextmanager
def run_of(capture: Capture) -> Iterator[None]:
    """A run of a model's own code."""
    first = sequence_number()
    before = _set(capture, inside=False)
    try:
        yield
    finally:
        _set(*before)
        end = sequence_number()
        if end > first:
            _runs.append(_Run(threading.get_ident(), first, end, weakref.ref(capture)))


@contextmanager
def inside() -> Iterator[None]:
    """A call of something compiled, in which nothing is compiled by itself."""
    before = _set(None, inside=True)
    try:
        yield
    finally:
        _set(*before)


def _set(capture: Capture | None, inside: bool) -> tuple[Capture | None, bool]:
    before = getattr(_local, "capture", None), getattr(_local, "inside", False)
    _local.capture, _local.inside = capture, inside
    return before
