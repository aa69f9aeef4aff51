"""Keeping garbage collection away from what is alive anyway: paused, or for new objects only."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_pauses = 0
_was_enabled = False
_narrowed = 0
_debt = 0
"""New objects, about, whose turn to be looked through Python has lost count of."""
_full_collections = -1
"""Python's own count of them, when we last looked."""
_alive: int | None = None
"""Objects that there were when we last counted; None after a collection."""


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """Keep Python from looking for cycles inside the block.

    Outlining makes hundreds of objects a region and drops none; looking through all of them again
    and again took half of its time on graphs of 100,000 nodes. Blocks may nest and overlap between
    threads; who had collection switched off finds it off afterwards.
    """
    global _pauses, _was_enabled
    with _lock:
        if _pauses == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_enabled:
                gc.enable()


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """Let Python look for cycles among those objects only that are made inside the block.

    Compiling makes garbage enough that it has to be collected. But one full collection looks through
    all that torch and the model have made before, a million objects, which takes as long as lowering
    two regions and finds nothing. Where somebody has frozen objects himself, nothing is done.

    Freezing sets back the counts by which Python knows that a full collection is due: a process that did
    nothing but compile would never have one, and keep every graph that it dropped. So they are kept
    here, and one that is due comes at the end of the block.
    """
    global _narrowed
    is_due = False
    with _lock:
        if _narrowed == 0 and gc.get_freeze_count():
            narrows = False
        else:
            narrows = True
            if _narrowed == 0:
                looks = _is_time_to_count()
                gc.freeze()
                is_due = looks and _has_grown()
            _narrowed += 1
    try:
        yield
    finally:
        if narrows:
            with _lock:
                _narrowed -= 1
                if _narrowed == 0:
                    gc.unfreeze()
        if is_due and gc.isenabled():
            gc.collect()


def _is_time_to_count() -> bool:
    """Take over what Python counted since the last block; is it enough for it to think of all objects?"""
    global _debt, _full_collections, _alive
    full_collections = gc.get_stats()[2]["collections"]
    if full_collections != _full_collections:
        _full_collections, _debt, _alive = full_collections, 0, None
    (youngest, middle, oldest), thresholds = gc.get_count(), gc.get_threshold()
    _debt += youngest + thresholds[0] * (middle + thresholds[1] * oldest)
    if _debt <= thresholds[0] * thresholds[1] * thresholds[2]:
        return False
    _debt = 0
    return thresholds[0] > 0


def _has_grown() -> bool:
    """Whether there are a quarter more objects than there were, which is Python's own measure too.

    All are frozen now, which is how they can be counted; for 400,000 that takes 40 ms.
    """
    global _alive
    count = gc.get_freeze_count()
    if _alive is not None and count > _alive + _alive // 4:
        return True
    _alive = count if _alive is None else min(_alive, count)
    return False
