"""Ending the processes that a thread has started, with what these have started in turn.

Linux only: which thread started a process is read from /proc.  Elsewhere nothing is found, and
nothing is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

# Compilers and linkers remove what they have half written when they are asked to end.
_GRACE_S = 0.3


def children_of_threads(threads: Iterable[int]) -> set[int]:
    """The processes that threads of this process have started and that haven't been waited for.

    Args:
        threads: Native ids, as `threading.get_native_id` gives them.
    """
    return {child for thread in threads for child in _read(f"/proc/self/task/{thread}/children")}


def all_threads() -> list[int]:
    """Native ids of all threads of this process, whoever made them."""
    try:
        return [int(thread) for thread in os.listdir("/proc/self/task")]
    except OSError:
        return []


def descendants(processes: Iterable[int]) -> list[int]:
    """Processes with all that they have started."""
    found: dict[int, None] = {}
    waiting = list(processes)
    while waiting:
        process = waiting.pop()
        if process in found:
            continue
        found[process] = None
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                waiting += _read(f"/proc/{process}/task/{thread}/children")
    return list(found)


class Ending:
    """Ends processes: asks first, and after a moment doesn't ask any more."""

    def __init__(self) -> None:
        self._asked: dict[tuple[int, str], float] = {}

    def end(self, processes: Iterable[int]) -> None:
        """Take the next step towards the end of some processes and all that they started.

        To be called again and again until they are gone.
        """
        now = time.monotonic()
        # A compiler's driver that is gone no longer tells what it had started.
        for process in descendants([*processes, *(known for known, _ in self._asked)]):
            born = _birth(process)
            if not born:
                continue
            # A number may be another process by now, which its time of birth tells.
            if any(known == process and born != when for known, when in self._asked):
                continue
            asked = self._asked.setdefault((process, born), now)
            if asked == now or now - asked > _GRACE_S:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGTERM if asked == now else signal.SIGKILL)


def _birth(process: int) -> str:
    """When a process was started, in ticks; "" if it is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _read(path: str) -> list[int]:
    try:
        with open(path) as file:
            return [int(child) for child in file.read().split()]
    except OSError:  # it ended meanwhile, or this isn't Linux
        return []
