"""Runs cases compiled and eager, many in one graph, each in a region of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import regional_inductor as ri
from regional_inductor.exactness import unequal_bits

from .cases import CASES, Case


@dataclass
class Outcome:
    """What came of one case in one type.

    Attributes:
        name: The case.
        unequal: What differs from eager: ``"output 0"``, ``"gradient 1"``; or why it did not run.
        eager: Operators left eager.
        regions: How many compiled regions it has, forward and backward.
        kernels: How many kernels they run.
        by_capture: Whether eager also differs from the graph that torch captures, with no region in it.
    """

    name: str
    unequal: list[str] = field(default_factory=list)
    eager: list[str] = field(default_factory=list)
    regions: int = 0
    kernels: int = 0
    by_capture: bool = False

    @property
    def status(self) -> str:
        if not self.regions:
            return "left eager"
        return "in part" if self.eager else "compiled"


Batch = tuple[list[str], str, str]  # names of cases, a type, a device


def run_batch(batch: Batch) -> tuple[str, list[Outcome], float]:
    """A batch's type, outcomes and seconds; all of it can be sent to another process."""
    names, dtype, device = batch
    began = time.perf_counter()
    found = run([case for case in CASES if case.name in names], getattr(torch, dtype), device)
    return dtype, found, time.perf_counter() - began


def take_a_device(turns: Any) -> None:
    """Where there are several CUDA devices, processes take them in turn."""
    with turns.get_lock():
        turn = turns.value
        turns.value += 1
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(turn % torch.cuda.device_count())


def run(cases: Sequence[Case], dtype: torch.dtype, device: str) -> list[Outcome]:
    """Outcomes of some cases; they share a graph, so that their kernels are compiled together.

    A graph that fails is tried again case by case, so that only the case at fault says so.
    """
    try:
        return _together(cases, dtype, device, "regional_inductor")
    except Exception as error:  # noqa: BLE001 - what went wrong is the outcome
        if len(cases) == 1:
            first_line = (str(error).strip().splitlines() or [""])[0]
            return [Outcome(cases[0].name, [f"{type(error).__name__}: {first_line}"])]
    return [outcome for case in cases for outcome in run([case], dtype, device)]


def _together(
    cases: Sequence[Case], dtype: torch.dtype, device: str, backend: str
) -> list[Outcome]:
    inputs = [case.inputs(dtype, device) for case in cases]
    expected = _results(cases, _eager_function(cases), inputs)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ri.RegionWarning)
        if backend == "regional_inductor":
            compiled: Any = ri.compile(_marked_function(cases), capture="model")
        else:
            compiled = torch.compile(_eager_function(cases), backend=backend)
        actual = _results(cases, compiled, inputs)
    outcomes = []
    for case, a, b in zip(cases, actual, expected, strict=True):
        outcome = Outcome(case.name)
        outcome.unequal = [name for name in b if not _equal(a[name], b[name])]
        outcomes.append(outcome)
    if backend == "regional_inductor":
        _describe(outcomes, compiled.report)
        for case, outcome in zip(cases, outcomes, strict=True):
            if outcome.unequal:
                (bare,) = _together([case], dtype, device, "aot_eager")
                outcome.by_capture = bare.unequal == outcome.unequal
    return outcomes


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = (a.dtype, a.shape) == (b.dtype, b.shape)
    return same and not bool(unequal_bits(a, b).any())


def _eager_function(cases: Sequence[Case]) -> Any:
    def everything(inputs: Any) -> Any:
        return [
            [_listed(case.run(*arguments)) for arguments in given]
            for case, given in zip(cases, inputs, strict=True)
        ]

    return everything


def _marked_function(cases: Sequence[Case]) -> Any:
    def everything(inputs: Any) -> Any:
        results = []
        for case, given in zip(cases, inputs, strict=True):
            with ri.region(case.name, numerics="eager"):
                results.append([_listed(case.run(*arguments)) for arguments in given])
        return results

    return everything


def _listed(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _results(
    cases: Sequence[Case], function: Any, inputs: Sequence[Any]
) -> list[dict[str, torch.Tensor]]:
    """Outputs and gradients of each case, by name."""
    torch.manual_seed(0)
    fresh = [
        [_leaves(arguments, case.gradients) for arguments in given]
        for case, given in zip(cases, inputs, strict=True)
    ]
    outputs = function(fresh)
    flat: list[torch.Tensor] = []
    results: list[dict[str, torch.Tensor]] = []
    for case, produced in zip(cases, outputs, strict=True):
        found = {}
        for layout, tensors in enumerate(produced):
            for number, tensor in enumerate(tensors):
                found[f"output {number} of layout {layout}"] = tensor.detach()
                if case.gradients and tensor.requires_grad:
                    flat.append(tensor)
        results.append(found)
    if flat:
        generator = torch.Generator().manual_seed(7)
        # In the layout of what they belong to: a capture would lay others out anew, and where an
        # element stands decides which code computes it.
        weights = [
            torch.empty_like(t).copy_(torch.randn(t.shape, generator=generator)) for t in flat
        ]
        torch.autograd.backward(flat, weights)
    for found, given in zip(results, fresh, strict=True):
        for layout, arguments in enumerate(given):
            for number, tensor in enumerate(arguments):
                if tensor.grad is not None:
                    found[f"gradient {number} of layout {layout}"] = tensor.grad
    return results


def _leaves(tensors: Sequence[torch.Tensor], gradients: bool) -> tuple[torch.Tensor, ...]:
    """The same values as leaves; what is broadcast gets no gradient, which would be a sum."""
    whole = max(tensor.dim() for tensor in tensors)
    return tuple(_leaf(t, gradients and t.dim() == whole) for t in tensors)


def _leaf(tensor: torch.Tensor, gradients: bool) -> torch.Tensor:
    """The same values in the same layout, as a leaf."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor).requires_grad_(gradients and tensor.dtype.is_floating_point)


def _describe(outcomes: Sequence[Outcome], report: Any) -> None:
    by_name = {outcome.name: outcome for outcome in outcomes}
    for region in report.regions:
        outcome = by_name.get(region.name.rsplit("#", 1)[0])
        if outcome is None:
            continue
        if region.status == "eager":
            outcome.eager.append(region.reason)
        else:
            outcome.regions += 1
            outcome.kernels += len(region.kernels or ())
    for finding in report.findings:
        if finding.kind == "fallback" and finding.region in by_name:
            operator = finding.message.split("`")[1] if "`" in finding.message else finding.message
            left = by_name[finding.region].eager
            if operator not in left:
                left.append(operator)
