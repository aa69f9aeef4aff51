"""What torch's checkpoints run again in a backward pass.

A checkpoint that keeps no tensors pairs those that a function saves when it runs again with those that it saved
before by their order. A function that is compiled one time and isn't the other saves others: torch notices where
their number or their shapes differ, and computes wrong gradients where they don't.

Checked on torch 2.11.0 and 2.13.0, in `torch.utils.checkpoint`: `_CheckpointFrame`, made once for each checkpoint
without reentrant autograd, and `CheckpointFunction`, those with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch.utils.checkpoint

_Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
_installed: list[_Wrap] = []


def keep_wrapped(wrap: _Wrap) -> None:
    """From now on have checkpoints run `wrap(function)` again instead of the function; only the first call counts.

    Where torch makes its checkpoints in a way that isn't known, nothing changes.

    Args:
        wrap: Called in the thread that runs the checkpoint, before it does.
    """
    if _installed or not is_known():
        return
    _installed.append(wrap)
    frame, reentrant = _classes()
    before, forward = frame.__init__, reentrant.forward

    @functools.wraps(before)
    def made(self: Any, recompute_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        before(self, wrap(recompute_fn), *args, **kwargs)

    @functools.wraps(forward)
    def run(ctx: Any, run_function: Callable[..., Any], *args: Any) -> Any:
        return forward(ctx, wrap(run_function), *args)

    frame.__init__ = made
    reentrant.forward = staticmethod(run)


def is_known() -> bool:
    """Whether torch's checkpoints are made as in the versions that were checked."""
    try:
        frame, reentrant = _classes()
        made = list(inspect.signature(frame.__init__).parameters)
        run = list(inspect.signature(reentrant.forward).parameters)
    except (AttributeError, TypeError, ValueError):
        return False
    return made[:2] == ["self", "recompute_fn"] and run[:2] == ["ctx", "run_function"]


def _classes() -> tuple[Any, Any]:
    module: Any = torch.utils.checkpoint
    return module._CheckpointFrame, module.CheckpointFunction
