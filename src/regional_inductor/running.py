"""Whose own code this thread runs: that of a model of which blocks are captured, or nobody's.

Such code is plain Python, in which marked functions are called and marked scopes entered. They ask here
(`scope.py`) whether there is somebody to compile them (`block_capture.py`).
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ._torch import checkpoints
from ._torch.annotate import annotated_as, surrounding_annotation
from ._torch.in_place import backward_sequence_number, in_backward, sequence_number
from .errors import RegionError


class Capture(Protocol):
    """Compiles marked functions where they are called."""

    def call_marked(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a marked function, compiled by itself."""


_RUNS_KEPT = 4096  # of a thread
_THREADS_KEPT = 256

_local = threading.local()


@dataclass(frozen=True)
class _Run:
    """A run of a model: the first node of the autograd graph that it made, and the one after the last."""

    first: int
    end: int
    capture: weakref.ref[Any]


# Runs of each thread, which numbers its nodes by itself, upwards; the thread that ran last is the last.
_threads: OrderedDict[int, deque[_Run]] = OrderedDict()
_lock = threading.Lock()
_numbers = itertools.count()


def current(function: str = "") -> Capture | None:
    """The capture whose model's own code this thread runs, outside everything that is compiled.

    In a backward pass a checkpoint calls again what a run had called: it is that run's capture then, for
    what was compiled there has to be here, or other tensors would be saved than in the run. torch's own
    checkpoints know (:func:`resumable`); of other code that runs something again it is looked up.

    Args:
        function: What asks, for the error's sake.

    Raises:
        RegionError: It could be of runs of several models.
    """
    capture: Capture | None = getattr(_local, "capture", None)
    if capture is None and _threads and not getattr(_local, "inside", False):
        number = backward_sequence_number()
        if number is not None:
            return _of_run(number, function)
    return capture


def resumable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is part of what this thread runs now whenever and in whichever thread it is called."""
    capture, inside = getattr(_local, "capture", None), getattr(_local, "inside", False)
    # Nobody's run is looked for later, where other threads' runs had nodes of the same numbers.
    inside = inside or capture is None
    around = surrounding_annotation()

    def resumed(*args: Any, **kwargs: Any) -> Any:
        before, resuming = _set(capture, inside), getattr(_local, "resuming", False)
        _local.resuming = True
        try:
            with annotated_as(around):
                return function(*args, **kwargs)
        finally:
            _local.resuming = resuming
            _set(*before)

    return resumed


def marks_are_lost() -> bool:
    """Whether this thread runs something again outside the scopes that had been entered around it."""
    return in_backward() and not getattr(_local, "resuming", False)


def _of_run(number: int, function: str) -> Capture | None:
    """The capture of the run that made a node.

    A backward pass on a CPU runs in the thread that asks for it, mostly that of its forward pass, and such a
    run is taken before any other; on a GPU it runs in a thread of the device's, and no node says which thread
    made it.
    """
    own = _find(getattr(_local, "runs", ()), number)
    if own is not None:
        found: Capture | None = own.capture()
        return found
    with _lock:
        others = [_find(runs, number) for runs in _threads.values()]
    captures = {id(c): c for run in others if run is not None and (c := run.capture()) is not None}
    if len(captures) > 1:
        raise RegionError(
            "a backward pass runs marked code again, and it can't be told for which of the models that ran in "
            "several threads",
            region=function,
            hint="checkpoint with torch.utils.checkpoint, or call the models in the thread that calls backward",
        )
    return next(iter(captures.values()), None)


def _find(runs: Sequence[_Run], number: int) -> _Run | None:
    for run in reversed(runs):
        if run.end <= number:
            return None  # as do all before it
        if run.first <= number:
            return run
    return None


def _note(run: _Run) -> None:
    if not hasattr(_local, "runs"):
        _local.runs, _local.number = deque(maxlen=_RUNS_KEPT), next(_numbers)
    with _lock:
        _local.runs.append(run)
        _threads[_local.number] = _local.runs
        _threads.move_to_end(_local.number)
        if len(_threads) > _THREADS_KEPT:
            _threads.popitem(last=False)


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
            _note(_Run(first, end, weakref.ref(capture)))


@contextmanager
def inside() -> Iterator[None]:
    """A call of something compiled, in which nothing is compiled by itself."""
    before = _set(None, inside=True)
    try:
        yield
    finally:
        _set(*before)


def follow_checkpoints() -> None:
    """Have torch's checkpoints run again what they ran as part of the same run; once in a process."""
    checkpoints.keep_wrapped(resumable)


def _set(capture: Capture | None, inside: bool) -> tuple[Capture | None, bool]:
    before = getattr(_local, "capture", None), getattr(_local, "inside", False)
    _local.capture, _local.inside = capture, inside
    return before
