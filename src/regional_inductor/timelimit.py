"""A time limit for Python code that offers no way to stop it."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator


class TimeLimitError(Exception):
    """Raised inside the `with` block when its time is up."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop the code inside after some seconds, at its next Python instruction.

    A call into C (a compiler that is being waited for) is not cut short; what it was part of fails
    as soon as it returns.

    Args:
        seconds: The limit; None for none.

    Raises:
        TimeLimitError: The time was up before the block had ended.
    """
    if seconds is None:
        yield
        return
    thread = threading.get_ident()
    lock = threading.Lock()
    state = "running"

    def stop() -> None:
        nonlocal state
        with lock:
            if state == "running":
                state = "stopping"
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(TimeLimitError)
                )

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except BaseException as error:
        if state == "stopping" and not isinstance(error, (KeyboardInterrupt, SystemExit)):
            # Whatever the interrupted code made of it, the cause is the limit.
            raise TimeLimitError(f"it took longer than {seconds:g} s") from error
        raise
    finally:
        timer.cancel()
        with lock:
            pending = state == "stopping"
            state = "done"
        if pending:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)
    if pending:
        raise TimeLimitError(f"it took longer than {seconds:g} s")
