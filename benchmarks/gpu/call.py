"""Calling a compiled region on the device costs little more than Inductor's own call.

Microseconds a region: a function of 64 regions of three pointwise operators on [64, 64] bfloat16, with a matmul
between two of them, no gradients. The figures hold everything, matmuls and guards included, as the host sees it
(it is slower than the device here); "the matmuls alone" is the same function without regions. All ways in one
process, round by round in turn, every second round backwards; medians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks._measure import alternate, median
from benchmarks._outcome import Outcome, Row, Tables
from benchmarks.gpu._run import Run

REGIONS = 64
LABELS = {
    "eager": "eager",
    "pytorch": "PyTorch's pass",
    "full": "torch.compile",
    "ours": "ours",
    "drop-in": "our drop-in pass",
    "matmuls": "the matmuls alone, aot_eager",
}


def main(run: Run) -> Outcome:
    found = run.fresh("gpu.call:measure", "call: 64 regions", quick=run.quick)
    if found is None:
        return Outcome({}, [], run.remarks())
    if "error" in found:
        return Outcome({"microseconds a region": [found]}, [], run.remarks())
    rows: list[Row] = [{"way": LABELS[w], **figures} for w, figures in found["ways"].items()]
    remark = f"{found['regions']} regions on {found['device']}."
    return Outcome({"microseconds a region": rows}, [], [remark, *run.remarks()])


def measure(device: str, quick: bool = False) -> dict[str, Any]:
    """All ways in this process."""
    import torch

    from benchmarks.gpu import _timing

    regions = 8 if quick else REGIONS
    with torch.no_grad(), torch.device(device):
        x = torch.randn(64, 64, dtype=torch.bfloat16)
        weight = torch.eye(64, dtype=torch.bfloat16)
        functions = _functions(regions, weight)
        expected = functions["eager"](x)
        for name, function in functions.items():
            for _ in range(3):
                found = function(x)
            if name != "matmuls":
                torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
        times = alternate(
            {
                name: lambda f=function: _timing.step_ms(lambda: f(x), device, 5, rounds=1)[0]
                for name, function in functions.items()
            },
            4 if quick else 40,
        )
    return {
        "ways": {
            name: {
                "us": (median(values) or 0) * 1e3 / regions,
                "fastest": min(values) * 1e3 / regions,
            }
            for name, values in times.items()
        },
        "regions": regions,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
    }


def _functions(regions: int, weight: Any) -> dict[str, Callable[[Any], Any]]:
    import torch
    from torch.fx.traceback import annotate

    import regional_inductor as ri
    from benchmarks.gpu._llama import KEY
    from benchmarks.gpu._ways import WAYS, compiled

    def marked(x: Any) -> Any:
        for _ in range(regions):
            with annotate({KEY: "region"}):
                x = (x.sin() + 0.5).tanh()
            x = x @ weight
        return x

    def plain(x: Any) -> Any:
        for _ in range(regions):
            x = (x.sin() + 0.5).tanh()
            x = x @ weight
        return x

    def matmuls(x: Any) -> Any:
        for _ in range(regions):
            x = x @ weight
        return x

    from torch._dynamo.backends.common import aot_autograd

    drop_in = aot_autograd(fw_compiler=ri.regional_inductor, bw_compiler=ri.regional_inductor)
    return {
        "eager": plain,
        "pytorch": compiled(WAYS["pytorch"], marked),
        "full": compiled(WAYS["full"], plain),
        "ours": compiled(WAYS["ours"], marked),
        "drop-in": torch.compile(marked, backend=drop_in, fullgraph=True),
        "matmuls": compiled(WAYS["aot_eager"], matmuls),
    }


def plot(tables: Tables, figure: Any) -> None:
    rows = tables.get("microseconds a region", [])
    axes = figure.subplots()
    axes.barh([str(row.get("way")) for row in rows], [row.get("us") or 0 for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("microseconds a region, matmul included")
