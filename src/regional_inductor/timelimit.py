"""A time limit for Python code that offers no way to stop it."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Collection, Iterator

from ._torch import workers
from .processes import Ending, all_threads, children_of_threads

# How often, in seconds, a block whose time is up is looked at until it has ended.
_AGAIN_S = 0.02


MORE_TIME = "a longer compile_timeout in its mark, or none, has it compiled"


class TimeLimitError(Exception):
    """Raised inside the `with` block when its time is up."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop the code inside after some seconds: its compilers and workers at once, itself at its next Python step.

    The processes that this thread started inside the block are ended (on Linux), and Inductor's
    threads and processes if they have work; whatever waits for them goes on and is stopped. Any other
    call into C is not cut short.

    Args:
        seconds: The limit; None for none.

    Raises:
        TimeLimitError: The time was up before the block had ended.
    """
    if seconds is None:
        yield
        return
    limit = _Limit(seconds)
    message = f"it took longer than {seconds:g} s"
    try:
        try:
            limit.timer.start()  # a short limit is up before this returns
            yield
        finally:
            late = limit.end()
            if late:
                # What is on its way arrives at one of these jumps and not in the caller's code.
                # (Taking it back instead leaves CPython 3.11 checking for it for ever.)
                for _ in range(1000):
                    pass
    except (KeyboardInterrupt, SystemExit):
        limit.end()
        raise
    except BaseException as error:
        if limit.end():
            # Whatever the interrupted code made of it, the cause is the limit.
            raise TimeLimitError(message) from error
        raise
    if late:
        raise TimeLimitError(message)


class _Limit:
    """The state that a block and the timer share."""

    def __init__(self, seconds: float) -> None:
        self.thread = threading.get_ident()
        self.native = threading.get_native_id()
        self.lock = threading.Lock()
        self.is_up = False
        self.ended = False
        # The children of a thread that ends pass to another one: nothing that was there is touched.
        self.before: Collection[int] = children_of_threads(all_threads())
        self.timer = threading.Timer(seconds, self.stop)
        self.timer.daemon = True

    def end(self) -> bool:
        """The block is left; nothing of it is touched any more. Returns whether its time was up."""
        self.timer.cancel()
        with self.lock:
            self.ended = True
            return self.is_up

    def stop(self) -> None:
        with self.lock:
            if self.ended:
                return
            self.is_up = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self.thread), ctypes.py_object(TimeLimitError)
            )
            threads = [self.native, *workers.thread_ids()]
            workers.drop_waiting_work()
        ending = Ending()
        # What is compiled in steps may start the next one before it hears of the end.
        while self._end_processes(threads, ending):
            time.sleep(_AGAIN_S)

    def _end_processes(self, threads: Collection[int], ending: Ending) -> bool:
        """Take a step towards their end; False if the block is left."""
        with self.lock:
            if not self.ended:
                started = children_of_threads(threads) - set(self.before)
                ending.end(started | workers.busy_pools())
                workers.give_up_dead_pools()
            return not self.ended
