"""Cold compiles against the number of layers and of distinct regions, regions compiled in parallel.

Seconds from asking for a compiled model to the end of its first training step, with the block stack of `_llama.py`
at dim 512, ffn 1536, one sequence of 256 tokens, where the device's own time is nothing. First 8, 24 and 96 equal
layers; then 16 layers whose MLPs have 1, 4 and 16 different widths (blocks that are all different can't be captured as
repeated ones). Each in a process and a cache folder of its own.
"""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks._outcome import Outcome, Row, Tables
from benchmarks.gpu._run import Run
from benchmarks.gpu._ways import WAYS

DEPTHS, KINDS, DEPTH_OF_KINDS = (8, 24, 96), (1, 4, 16), 16
OWN_WAYS = ("ours", "ours-blocks", "ours-whole-blocks", "blocks", "full", "pytorch")
SLOW = {"pytorch": 24, "full": 24}  # the deepest case that is worth its minutes


def main(run: Run) -> Outcome:
    depths: list[Row] = []
    kinds: list[Row] = []
    ways = run.wanted(*OWN_WAYS)
    for layers in filter(None, run.layers or DEPTHS):
        for way in ways:
            if layers <= SLOW.get(way, layers):
                depths += _case(run, way, layers, 1)
    for distinct in filter(None, run.distinct or KINDS):
        for way in ways:
            if WAYS[way].options.get("capture") == "blocks" and distinct * 2 > DEPTH_OF_KINDS:
                run.left_out.append(f"{WAYS[way].label}, {distinct} distinct: no block is repeated")
                continue
            kinds += _case(run, way, DEPTH_OF_KINDS, distinct)
    found = {"against layers": depths, "against distinct blocks": kinds}
    tables: Tables = {title: rows for title, rows in found.items() if rows}
    remark = f"{len(os.sched_getaffinity(0))} cores."
    return Outcome(tables, [], [remark, *run.remarks()])


def _case(run: Run, way: str, layers: int, distinct: int) -> list[Row]:
    label = f"compile time: {layers} layers, {distinct} distinct, {way}"
    found = run.fresh(
        "gpu.compile_time:measure",
        label,
        way=way,
        layers=layers,
        distinct=distinct,
        quick=run.quick,
    )
    row = {"layers": layers, "distinct": distinct, "way": WAYS[way].label}
    return [] if found is None else [{**row, **found}]


def measure(
    way: str, layers: int, distinct: int, device: str, quick: bool = False
) -> dict[str, Any]:
    """One cold start in this process."""
    from benchmarks.gpu import _timing
    from benchmarks.gpu._llama import Shape, build, training_step
    from benchmarks.gpu._ways import compiled, described

    chosen = WAYS[way]
    shape = Shape(layers, 512, 8, 1536, batch=1, sequence=256, distinct=distinct)
    if quick:
        shape = Shape(layers, 64, 4, 128, batch=1, sequence=32, distinct=distinct)
    model, x = build(shape, chosen.marks, device)
    parameters = list(model.parameters())
    training_step(model, parameters, x)
    _timing.synchronize(device)
    cpu, start = time.process_time(), time.perf_counter()
    function = compiled(chosen, model)
    training_step(function, parameters, x)
    _timing.synchronize(device)
    cold = time.perf_counter() - start
    return {
        "cold, s": cold,
        "CPU of the process, s": time.process_time() - cpu,
        **described(chosen, function),
    }


def plot(tables: Tables, figure: Any) -> None:
    subplots = figure.subplots(1, len(tables), squeeze=False)[0]
    # A way has one colour in both.
    ways = list(dict.fromkeys(row["way"] for rows in tables.values() for row in rows))
    for axes, (title, rows) in zip(subplots, tables.items(), strict=True):
        column = "layers" if title == "against layers" else "distinct"
        for number, way in enumerate(ways):
            line = sorted(
                (float(row[column]), float(row["cold, s"]))  # type: ignore[arg-type]
                for row in rows
                if row["way"] == way and row.get("cold, s") is not None
            )
            if line:
                axes.plot(*zip(*line, strict=True), "o-", color=f"C{number}", label=way)
        axes.set_xlabel(column)
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        axes.legend()
