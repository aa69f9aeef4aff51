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
    """
    global _narrowed
    with _lock:
        if _narrowed == 0 and gc.get_freeze_count():
            narrows = False
        else:
            narrows = True
            if _narrowed == 0:
                gc.freeze()
            _narrowed += 1
    try:
        yield
    finally:
        if narrows:
            with _lock:
                _narrowed -= 1
                if _narrowed == 0:
                    gc.unfreeze()
