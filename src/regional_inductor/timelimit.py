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
    late = False

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
    message = f"it took longer than {seconds:g} s"
    try:
        try:
            yield
        finally:
            timer.cancel()
            with lock:
                late = state == "stopping"
                state = "done"
            if late:
                # What is on its way arrives at one of these jumps and not in the caller's code.
                # (Taking it back instead leaves CPython 3.11 checking for it for ever.)
                for _ in range(1000):
                    pass
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if state == "stopping" or late:
            # Whatever the interrupted code made of it, the cause is the limit.
            raise TimeLimitError(message) from error
        raise
    if late:
        raise TimeLimitError(message)
