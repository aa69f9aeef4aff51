"""Times on a CUDA device, in milliseconds; on a CPU the wall clock, for trying scripts out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def step_ms(function: Callable[[], Any], device: str, steps: int, rounds: int = 3) -> list[float]:
    """Milliseconds a call, one figure a round of several calls between two synchronisations.

    The wall clock, not events: what a launch-bound model waits for is the host.
    """
    figures = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(steps):
            function()
        synchronize(device)
        figures.append((time.perf_counter() - start) / steps * 1e3)
    return figures


def peak_mib(device: str) -> float | None:
    """The most that tensors have held since the last call of `forget_peak`, in MiB."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def forget_peak(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
