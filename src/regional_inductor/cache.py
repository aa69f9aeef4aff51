"""Storage of compiled regions by key: those that this process compiled, the least recently used go."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

MEMORY_LIMIT = 4096
"""How many compiled regions a process keeps for later compiles."""


class Memory:
    """Compiled regions of one process; graphs that hold one keep it when it is dropped here."""

    def __init__(self, limit: int = MEMORY_LIMIT) -> None:
        self.limit = limit
        self._regions: OrderedDict[str, Callable[..., Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Callable[..., Any] | None:
        """The compiled region with this key, or None."""
        with self._lock:
            found = self._regions.get(key)
            if found is not None:
                self._regions.move_to_end(key)
            return found

    def put(self, key: str, compiled: Callable[..., Any]) -> None:
        """Keep a compiled region, and drop those not used for longest beyond the limit."""
        with self._lock:
            self._regions[key] = compiled
            self._regions.move_to_end(key)
            while len(self._regions) > self.limit:
                self._regions.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._regions.clear()


memory = Memory()
