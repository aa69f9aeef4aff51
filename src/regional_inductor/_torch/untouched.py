"""Whether a function of Inductor's is still its own."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

_Cached = type(functools.lru_cache(lambda: None))


def is_inductors(function: Any) -> bool:
    """False for what somebody has patched, or what this torch hasn't got.

    A method counts by its function, a function with `functools.lru_cache` by what it caches.
    """
    if isinstance(function, _Cached):
        function = function.__wrapped__
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    name = getattr(function, "__name__", "")
    folder = os.path.join(os.path.dirname(torch.__file__), "_inductor", "")
    return code is not None and code.co_name == name and code.co_filename.startswith(folder)
