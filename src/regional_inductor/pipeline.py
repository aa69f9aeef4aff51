"""The stages, in order, and what runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.fx

from . import invariants
from .garbage import only_new_garbage, paused_collection
from .regions import Compiled, Outlined, Partitioned, Settings, Stitched
from .stages.collect import collect
from .stages.compile import compile
from .stages.outline import outline
from .stages.partition import partition
from .stages.stitch import stitch

STAGES: tuple[Callable[..., Any], ...] = (collect, partition, outline, compile, stitch)

Observer = Callable[[str, Any, float], None]


@dataclass
class Trace:
    """What each stage produced and how long it took, for reports and tests."""

    products: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    """When each stage began, on the clock of `time.perf_counter`."""

    def __call__(self, stage: str, product: Any, seconds: float) -> None:
        self.products[stage] = product
        self.seconds[stage] = seconds
        self.started[stage] = time.perf_counter() - seconds


def run(
    module: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    settings: Settings,
    *,
    start: Any = None,
    stages: Sequence[Callable[..., Any]] = STAGES,
    stop_after: str | None = None,
    observer: Observer | None = None,
) -> Any:
    """Run stages over a graph.

    Args:
        module: The graph to work on.
        example_inputs: Its arguments, if it carries no fake values.
        settings: What was asked for.
        start: The product to start from, when the first stages ran before.
        stages: Which stages, in order.
        stop_after: Name of the last stage to run; its product is returned.
        observer: Called after each stage with its name, its product and the seconds it took.

    Returns:
        The product of the last stage that ran.
    """
    product = start
    for stage in stages:
        started = time.perf_counter()
        with only_new_garbage() if stage.__name__ == "compile" else paused_collection():
            if stage is collect:
                product = collect(module, example_inputs, settings)
            else:
                product = stage(product, settings)
        seconds = time.perf_counter() - started
        if invariants.enabled():
            invariants.check(product, settings)
        if observer is not None:
            with paused_collection():  # what has piled up meanwhile is no part of a report
                observer(stage.__name__, product, seconds)
        if stage.__name__ == stop_after:
            break
    return product


__all__ = [
    "STAGES",
    "Compiled",
    "Outlined",
    "Partitioned",
    "Settings",
    "Stitched",
    "Trace",
    "run",
]
