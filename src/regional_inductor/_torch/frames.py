"""What this thread is in the middle of, by the frames of its stack."""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any


def is_within(function: Any) -> bool:
    """Whether this thread is in a call of a function.

    Wrappers don't count: those that `torch._dynamo.disable` makes share one code object, and Dynamo puts
    one around FX's tracer.
    """
    code = inspect.unwrap(function).__code__
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
