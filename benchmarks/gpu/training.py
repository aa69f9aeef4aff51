"""A bf16 Llama training step: cold start, step time and peak memory, against every other way to compile it.

Forward and backward of the block stack of `_llama.py` (dim 2048, 16 heads, ffn 5632, batch 4 x 2048 tokens),
without embedding and optimizer; norms, RoPE and SwiGLU are marked, or whole blocks. "cold, s" is the first step in
a new process with empty caches, after one eager step (CUDA's context and cuBLAS are there), imports of the
compiler included, and for the ways whose cold starts are close the median of three processes, one of each way in turn ("cold,
each"); "step, ms" the median of three rounds of ten steps; "peak, MiB" what tensors held at most in
those. Loss and some gradients are compared with eager's in each process. At 96 layers the batch is 1 x 2048, so
that eager's activations fit: compare cold starts there, nothing else.
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
    "pytorch",
    "blocks",
    "ours-blocks",
    "ours-whole",
    "ours-whole-blocks",
    "ours-whole-blocks-late",
    "aot_eager",
    "pytorch-mincut",
    "ours-auto",
)
LAYERS = (8, 24)
DEEP = 96  # cold starts only, and only of these
DEEP_WAYS = ("ours", "ours-blocks", "ours-whole-blocks", "blocks")
# Whose cold starts are so close that one process of each says little.
CLOSE = ("blocks", "ours-blocks", "ours-whole-blocks", "ours-whole-blocks-late")
CLOSE_AT = 24
ROUNDS = 3
# Of loss and gradients, relative to eager's in bfloat16: its last bit is 2 ** -8.
TOLERANCE = 0.03


def main(run: Run) -> Outcome:
    rows: list[Row] = []
    for layers in run.layers or LAYERS:
        for way in run.wanted(*(OWN_WAYS if layers < DEEP else DEEP_WAYS)):
            found = _in_a_process(run, way, layers)
            if found is not None:
                rows.append({"layers": layers, "way": WAYS[way].label, **found})
        if layers == CLOSE_AT and not run.quick:
            _again(run, rows)
    return Outcome({"training step": rows}, _targets(rows), run.remarks())


def _in_a_process(
    run: Run, way: str, layers: int, cold_only: bool = False
) -> dict[str, Any] | None:
    label = f"training: {layers} layers, {way}{', cold once more' if cold_only else ''}"
    arguments = {"way": way, "layers": layers, "quick": run.quick, "cold_only": cold_only}
    return run.fresh("gpu.training:measure", label, **arguments)


def _again(run: Run, rows: list[Row]) -> None:
    """More cold starts of the close ways; their rows get the medians."""
    own = {
        way: row
        for way in run.wanted(*CLOSE)
        for row in rows
        if (row["way"], row["layers"]) == (WAYS[way].label, CLOSE_AT) and "cold, s" in row
    }
    seconds: dict[str, list[float]] = {
        way: [float(str(row["cold, s"]))] for way, row in own.items()
    }
    for number in range(1, ROUNDS):
        for way in own if number % 2 == 0 else reversed(own):
            found = _in_a_process(run, way, CLOSE_AT, cold_only=True)
            if found is not None and "cold, s" in found:
                seconds[way].append(found["cold, s"])
    for way, row in own.items():
        row["cold, s"] = statistics.median(seconds[way])
        row["cold, each"] = ", ".join(f"{one:.2f}" for one in seconds[way])


def measure(
    way: str, layers: int, device: str, quick: bool = False, cold_only: bool = False
) -> dict[str, Any]:
    """One way in this process."""
    import gc

    from benchmarks.gpu import _timing
    from benchmarks.gpu._llama import Shape, build, training_step
    from benchmarks.gpu._ways import compiled, described

    chosen = WAYS[way]
    shape = Shape(layers, batch=1 if layers >= DEEP else 4)
    if quick:
        shape = Shape(layers, dim=128, heads=4, ffn=256, batch=2, sequence=64)
    model, x = build(shape, chosen.marks, device)
    parameters = list(model.parameters())
    expected = _kept(model, training_step(model, parameters, x))
    for parameter in parameters:
        parameter.grad = None
    gc.collect()
    _timing.synchronize(device)
    start = time.perf_counter()
    function = compiled(chosen, model)
    loss = training_step(function, parameters, x)
    _timing.synchronize(device)
    cold = time.perf_counter() - start
    difference = max(
        float((a - b).norm() / b.norm()) for a, b in zip(_kept(model, loss), expected, strict=True)
    )
    assert difference <= TOLERANCE, f"differs from eager by {difference:.2g} (relative)"
    if cold_only:
        return {"cold, s": cold}
    for _ in range(2):
        training_step(function, parameters, x)
    gc.collect()
    _timing.forget_peak(device)
    times = _timing.step_ms(
        lambda: training_step(function, parameters, x), device, steps=2 if quick else 10
    )
    return {
        "cold, s": cold,
        "step, ms": statistics.median(times),
        "fastest": min(times),
        "peak, MiB": _timing.peak_mib(device),
        "difference": difference,
        **described(chosen, function),
    }


def _kept(model: Any, loss: Any) -> list[Any]:
    """Loss and gradients of the first and the last block, on the CPU so that they count nowhere."""
    first, last = model.layers[0], model.layers[-1]
    chosen = (first.q, first.attention_norm, first.down, last.gate, last.mlp_norm, model.norm)
    return [loss.float().cpu(), *(module.weight.grad.float().cpu() for module in chosen)]


def _targets(rows: list[Row]) -> list[Target]:
    found = {(row["way"], row["layers"]): row for row in rows}

    def at(way: str, layers: int, column: str) -> float | None:
        value = found.get((WAYS[way].label, layers), {}).get(column)
        return float(value) if isinstance(value, (int, float)) else None

    def best(ways: tuple[str, ...], layers: int, column: str) -> float | None:
        values = [v for v in (at(way, layers, column) for way in ways) if v is not None]
        return min(values) if values else None

    parts, whole = ("ours-blocks", "ours"), ("ours-whole-blocks", "ours-whole")
    targets = [
        Target("24 layers, cold, same marks", best(parts, 24, "cold, s"), 12, "lower", "s"),
        Target(
            "96 layers against 24, cold, same marks",
            ratio(best(parts, 96, "cold, s"), best(parts, 24, "cold, s")),
            1.3,
            "lower",
            "x",
        ),
    ]
    for layers in sorted({int(row["layers"]) for row in rows if row["layers"] != DEEP}):  # type: ignore[arg-type]
        targets += [
            Target(
                f"{layers} layers, step, blocks marked, against torch.compile",
                ratio(best(whole, layers, "step, ms"), at("full", layers, "step, ms")),
                1.01,
                "lower",
                "x",
            ),
            Target(
                f"{layers} layers, cold, blocks marked, against block by block",
                ratio(best(whole, layers, "cold, s"), at("blocks", layers, "cold, s")),
                1.0,
                "lower",
                "x",
            ),
            Target(
                f"{layers} layers, step, same marks, against PyTorch's pass",
                ratio(best(parts, layers, "step, ms"), at("pytorch", layers, "step, ms")),
                1.0,
                "lower",
                "x",
            ),
            Target(
                f"{layers} layers, peak memory, same marks, against torch.compile",
                ratio(best(parts, layers, "peak, MiB"), at("full", layers, "peak, MiB")),
                1.0,
                "lower",
                "x",
            ),
        ]
    return targets


def plot(tables: Tables, figure: Any) -> None:
    rows = [row for row in tables["training step"] if "error" not in row]
    if not rows:
        return
    for axes, column in zip(
        figure.subplots(1, 3), ("cold, s", "step, ms", "peak, MiB"), strict=True
    ):
        labels = [f"{row['layers']}: {row['way']}" for row in rows]
        axes.barh(labels, [row.get(column) or 0 for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(column)
        if axes is not figure.axes[0]:
            axes.set_yticklabels([])
