"""One token through sixteen blocks: what launches cost, and what CUDA graphs take away.

The block stack of `_llama.py` with dim 1024, 16 heads, ffn 2816, one token, no gradients: every kernel is shorter
than its launch. Milliseconds a call, the median of five rounds of fifty calls; each way in a process of its own.
The result is compared with eager in each.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks._measure import ratio
from benchmarks._outcome import Outcome, Row, Tables, Target
from benchmarks.gpu._run import Run
from benchmarks.gpu._ways import WAYS

OWN_WAYS = (
    "eager",
    "full",
    "ours",
    "ours-whole",
    "ours-graph",
    "ours-whole-graph",
    "ours-cudagraphs",
    "reduce-overhead",
    "pytorch",
    "pytorch-cudagraphs",
)
LAYERS = (16,)
TOLERANCE = 0.03


def main(run: Run) -> Outcome:
    rows: list[Row] = []
    for layers in run.layers or LAYERS:
        for way in run.wanted(*OWN_WAYS):
            found = run.fresh(
                "gpu.launch:measure",
                f"launch: {layers} layers, {way}",
                way=way,
                layers=layers,
                quick=run.quick,
            )
            if found is not None:
                rows.append({"layers": layers, "way": WAYS[way].label, **found})
    return Outcome({"one token": rows}, _targets(rows), run.remarks())


def measure(way: str, layers: int, device: str, quick: bool = False) -> dict[str, Any]:
    """One way in this process."""
    import torch

    from benchmarks.gpu import _timing
    from benchmarks.gpu._llama import Shape, build
    from benchmarks.gpu._ways import compiled, described

    chosen = WAYS[way]
    shape = Shape(layers, dim=1024, ffn=2816, batch=1, sequence=1)
    if quick:
        shape = Shape(layers, dim=128, heads=4, ffn=256, batch=1, sequence=1)
    model, x = build(shape, chosen.marks, device)
    others = [torch.randn_like(x) for _ in range(3)]
    with torch.no_grad():
        expected = [model(one).float().cpu() for one in (x, *others)]
        start = time.perf_counter()
        function = compiled(chosen, model)
        function(x)
        _timing.synchronize(device)
        cold = time.perf_counter() - start
        for _ in range(5):  # CUDA graphs warm up, record, and replay from the third call on
            function(x)
        difference = 0.0
        for one, right in zip((x, *others), expected, strict=True):
            found = function(one).float().cpu()
            difference = max(difference, float((found - right).norm() / right.norm()))
        assert difference <= TOLERANCE, f"differs from eager by {difference:.2g} (relative)"
        times = _timing.step_ms(lambda: function(x), device, 5 if quick else 50, rounds=5)
    return {
        "call, ms": statistics.median(times),
        "fastest": min(times),
        "cold, s": cold,
        "difference": difference,
        **described(chosen, function),
    }


def _targets(rows: list[Row]) -> list[Target]:
    found = {row["way"]: row for row in rows}

    def at(way: str) -> float | None:
        value = found.get(WAYS[way].label, {}).get("call, ms")
        return float(value) if isinstance(value, (int, float)) else None

    return [
        Target(
            "same marks, against PyTorch's pass",
            ratio(at("ours"), at("pytorch")),
            0.65,
            "lower",
            "x",
        ),
        Target(
            "blocks marked, against torch.compile",
            ratio(at("ours-whole"), at("full")),
            1.0,
            "lower",
            "x",
        ),
        Target("captured as a whole, same marks", at("ours-graph"), 1.0, "lower", "ms"),
    ]


def plot(tables: Tables, figure: Any) -> None:
    rows = [row for row in tables["one token"] if "error" not in row]
    axes = figure.subplots()
    axes.barh([str(row["way"]) for row in rows], [row.get("call, ms") or 0 for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a call")
