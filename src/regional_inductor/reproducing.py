"""What the scripts of a bisection run: regions compiled by themselves, next to eager."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.fx
from torch.fx.experimental.proxy_tensor import make_fx

from ._torch.reference import NoReferenceError, in_float64
from .backend import regional_inductor
from .comparison import Comparison, Tolerances, compare
from .node_marks import mark_nodes

_TIMED_RUNS = 20


@dataclass(frozen=True)
class Strided:
    """An input: a view of one of the storages.

    Attributes:
        storage: Which one.
        shape: Its sizes.
        stride: Its strides, in elements.
        offset: Where it begins, in elements.
        dtype: Its dtype, if it isn't the storage's.
        requires_grad: Whether it asks for a gradient.
    """

    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    dtype: torch.dtype | None = None
    requires_grad: bool = False

    def of(self, storages: Sequence[torch.Tensor]) -> torch.Tensor:
        base = storages[self.storage]
        if self.dtype is not None:
            base = base.view(self.dtype)
        view = base.as_strided(self.shape, self.stride, self.offset)
        return view.detach().requires_grad_(self.requires_grad)


def random_inputs(
    storages: Sequence[tuple[torch.dtype, int, str]], inputs: Sequence[Any]
) -> list[Any]:
    """The same random inputs each time; integers are 0 or 1, which most indices allow.

    Args:
        storages: Dtype, elements and device of each.
        inputs: Views of them, and numbers.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for dtype, elements, where in storages:
        if dtype.is_floating_point or dtype.is_complex:
            kind = torch.complex64 if dtype.is_complex else torch.float32
            values = torch.randn(elements, generator=generator, dtype=kind)
        else:
            values = torch.randint(0, 2, (elements,), generator=generator)
        made.append(values.to(dtype).to(where))
    return [value.of(made) if isinstance(value, Strided) else value for value in inputs]


def main(regions: Callable[[], Sequence[Mapping[str, Any]]], script: str) -> int:
    """Run all regions of a script.

    Args:
        regions: Gives for each its module, storages, inputs, options, numerics, way of lowering, whether
            sizes are symbolic and whether it requires gradients.
        script: The script's path, whose neighbour `.pt` may hold inputs.

    Returns:
        The exit code: 1 if a region differs from eager or fails.
    """
    parser = argparse.ArgumentParser(description="Compares regions with eager.")
    parser.add_argument(
        "--slower-than",
        type=float,
        metavar="TIMES",
        help="exit code 1 too where the compiled region takes more than this many times eager's time",
    )
    parser.add_argument(
        "--bitwise", action="store_true", help="exit code 1 too where any bit differs"
    )
    arguments = parser.parse_args()
    saved = Path(script).with_suffix(".pt")
    kept = torch.load(saved, weights_only=True) if saved.exists() else None
    failed = False
    for index, region in enumerate(regions()):
        inputs = random_inputs(region["storages"], region["inputs"])
        if kept is not None:
            inputs = kept[index]
        print(f"region {index}: {region['region'].__doc__ or ''}")
        failed |= not _is_fine(region, inputs, arguments.bitwise, arguments.slower_than)
    return int(failed)


def _is_fine(
    region: Mapping[str, Any], inputs: list[Any], bitwise: bool, slower_than: float | None
) -> bool:
    with torch.set_grad_enabled(region["grad"]):
        try:
            eager, compiled = _both(region, inputs)
            torch.manual_seed(0)
            actual = compiled(*_copies(inputs))
        except Exception:  # noqa: BLE001 - whatever it raises is what was looked for
            traceback.print_exc()
            return False
        fine = _compare(eager, actual, inputs, bitwise)
        if slower_than is not None:
            ours, theirs = _seconds(compiled, eager, inputs)
            print(f"  {ours * 1e6:.1f} us compiled, {theirs * 1e6:.1f} us eager")
            fine &= ours <= slower_than * theirs
    return fine


def _both(
    region: Mapping[str, Any], inputs: list[Any]
) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    mode: Literal["symbolic", "fake"] = "symbolic" if region["dynamic"] else "fake"

    def captured() -> torch.fx.GraphModule:
        return make_fx(region["region"], tracing_mode=mode)(*_copies(inputs))

    compiled = captured()
    mark_nodes(
        compiled,
        lambda node: node.op == "call_function",
        options=region["options"],
        numerics=region["numerics"],
    )
    compiled = regional_inductor(
        compiled, lowering=region["lowering"], region_backend=region["region_backend"]
    )
    return captured(), compiled


def _compare(eager: torch.fx.GraphModule, actual: Any, inputs: list[Any], bitwise: bool) -> bool:
    torch.manual_seed(0)
    try:
        reference: tuple[Any, ...] | None = in_float64(eager, _copies(inputs))
    except NoReferenceError:
        reference = None
    torch.manual_seed(0)
    expected = eager(*_copies(inputs))
    fine = True
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        if not isinstance(theirs, torch.Tensor):
            fine &= ours == theirs
            continue
        exact = (
            None if reference is None or not theirs.dtype.is_floating_point else reference[index]
        )
        found = compare(f"output {index}", ours, theirs, Tolerances({}), reference=exact)
        fine &= found.bitwise if bitwise else found.ok
        print(f"  {_line(found)}")
    return fine


def _line(found: Comparison) -> str:
    if found.problem:
        return f"{found.what}: {found.problem}"
    verdict = "bitwise equal" if found.bitwise else "close" if found.ok else "DIFFERENT"
    return (
        f"{found.what}: {verdict}; {found.beyond} of {found.elements} beyond the tolerance, "
        f"{found.nonfinite} NaN or infinite in one only, max abs {found.max_abs:.3g}, "
        f"max rel {found.max_rel:.3g}"
    )


def _seconds(
    compiled: Callable[..., Any], eager: Callable[..., Any], inputs: list[Any]
) -> tuple[float, float]:
    """The least time of a call of each, taken in turns."""
    least = [float("inf"), float("inf")]
    for _ in range(_TIMED_RUNS):
        for index, call in enumerate((compiled, eager)):
            given = _copies(inputs)
            _wait_for_devices(given)
            started = time.perf_counter()
            call(*given)
            _wait_for_devices(given)
            least[index] = min(least[index], time.perf_counter() - started)
    return least[0], least[1]


def _wait_for_devices(values: Sequence[Any]) -> None:
    if any(isinstance(value, torch.Tensor) and value.is_cuda for value in values):
        torch.cuda.synchronize()


def _copies(inputs: Sequence[Any]) -> list[Any]:
    """Inputs of the same shapes, strides and aliases that nobody else writes to."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies: list[Any] = []
    for value in inputs:
        if not isinstance(value, torch.Tensor):
            copies.append(value)
            continue
        storage = value.untyped_storage()
        known = storages.setdefault(storage.data_ptr(), storage.clone())  # type: ignore[no-untyped-call]
        copy = torch.empty(0, dtype=value.dtype, device=value.device).set_(
            known, value.storage_offset(), value.shape, value.stride()
        )
        copies.append(copy.requires_grad_(value.requires_grad))
    return copies
