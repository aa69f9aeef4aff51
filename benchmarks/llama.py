"""The pass compiles each distinct region once, so its time hardly grows with the layers.

Seconds inside the graph pass, Dynamo and AOTAutograd not included, for the model of `_models.py` (float32,
hidden width 128, sequence 64, batch 2; per block a norm, the rotary embedding and SwiGLU are marked, the
same marks without ids for both passes). Both are used the same way, as both compilers of AOTAutograd. A
cold run has a process and an Inductor cache of its own, and one unrelated region compiled before; a warm
run is a new process on the cache that the cold one left; "in process" is the pass over a copy of the same
graph, once more in the warm process. The result is compared with eager in every run.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks._measure import (
    in_fresh_process,
    median,
    peak_mb,
    ratio,
    reset_peak,
    resident_mb,
    say,
)
from benchmarks._outcome import Outcome, Row, Tables, Target

# label: (layers, each MLP of another width, training)
CASES: dict[str, tuple[int, bool, bool]] = {
    "L=1": (1, False, False),
    "L=4": (4, False, False),
    "L=16": (16, False, False),
    "L=32": (32, False, False),
    "8 distinct": (8, True, False),
    "L=16 train": (16, False, True),
}
QUICK_CASES = {"L=4": CASES["L=4"]}
MEMORY_CASE = "L=32"
WAYS = ("pytorch", "ours")
AGAIN = 3  # runs of the pass in a process that has compiled the same before
TOLERANCE = 1e-4


def main(quick: bool) -> Outcome:
    cases = QUICK_CASES if quick else CASES
    # The large cases of PyTorch's pass take half a minute each; differences there are tens of times.
    repeats = {name: 2 if case[0] == 4 and not quick else 1 for name, case in cases.items()}
    results: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: _measure(name, *case, repeats[name]) for name, case in cases.items()
    }
    rows = [_row(name, results[name]) for name in cases]
    memory_case = MEMORY_CASE if MEMORY_CASE in cases else "L=4"
    memory = _memory(memory_case, *CASES[memory_case], results[memory_case])
    return Outcome(
        {"seconds inside the pass": rows, f"compile memory, {memory_case}, cold": memory},
        _targets(rows, memory if memory_case == MEMORY_CASE else []),
        [
            (
                "Two cold and two warm runs of each pass at four layers, one of each elsewhere; "
                f"`in process` is the median of {AGAIN} runs of the pass in each warm process."
            ),
            (
                "Memory: resident set after the first call, over the resident set after the warm-up compile, "
                "and its peak during the call. The pass's own share is the difference from aot_eager."
            ),
        ],
    )


def _measure(
    name: str, layers: int, distinct: bool, train: bool, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(repeats):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
                arguments = {"way": way, "layers": layers, "distinct": distinct, "train": train}
                say(f"llama: {name}, {way}, cold")
                cold = in_fresh_process("llama:measure", cache=Path(folder), **arguments)
                say(f"llama: {name}, {way}, warm")
                warm = in_fresh_process(
                    "llama:measure", cache=Path(folder), again=AGAIN, **arguments
                )
            found[way].append({"cold": cold, "warm": warm})
    return found


def measure(way: str, layers: int, distinct: bool, train: bool, again: int = 0) -> dict[str, Any]:
    """One process: warms up, compiles the model once, compares it with eager."""
    import torch

    from benchmarks import _models, _peers

    def backend(again: int) -> tuple[Any, _peers.TimedPass | None]:
        if way == "aot_eager":
            return "aot_eager", None
        timed = _peers.TimedPass(way, again)
        return _peers.backend_of(timed), timed

    x = torch.randn(7, 5, requires_grad=train)
    warmed = torch.compile(_models.unrelated, backend=backend(0)[0])(x)
    if train:
        warmed.sum().backward()
    _peers.forget_everything()
    shape = _models.Shape(layers, distinct)
    model, x = _models.Llama(shape), _models.inputs(shape, train)
    chosen, timed = backend(again)
    gc.collect()
    before = resident_mb()
    reset_peak()
    start = time.perf_counter()
    compiled = torch.compile(model, backend=chosen, fullgraph=True)
    actual = _models.run_once(compiled, x, train).clone()
    whole = time.perf_counter() - start
    after, peak = resident_mb() - before, peak_mb() - before
    with nullcontext() if train else torch.no_grad():
        expected = _models.run_once(model, x, train)
    difference = float((actual - expected).abs().max() / expected.abs().max())
    assert difference <= TOLERANCE, f"differs from eager by {difference:.1e}"
    return {
        "pass": sum(timed.first) if timed else None,
        "cpu": sum(timed.cpu) if timed else None,
        "in process": [sum(taken) for taken in timed.repeated] if timed else [],
        "whole": whole,
        "mb": after,
        "peak mb": peak,
        "difference": difference,
    }


_WHY_COLD = (
    "ours hardly grows with depth: three fifths of it are one run of the C++ compiler for all regions, the rest mostly "
    "what Inductor does for three regions (the parts below). PyTorch's pass pays for n layers, and that in Python, so "
    "the ratio hangs on how fast the machine runs either; one run each"
)


def profile(missed: Sequence[str] | None, quick: bool) -> Tables:
    """Where a cold compile goes: seconds of stages and of regions' steps, and of processors."""
    rows: list[Row] = []
    for layers, train in ((4, False),) if quick else ((16, False), (32, False), (16, True)):
        with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
            found = in_fresh_process("llama:parts", cache=Path(folder), layers=layers, train=train)
        for part, seconds in found.items():
            rows.append({"layers": layers, "train": train, "part": part, "seconds": seconds})
    return {"parts of a cold compile": rows}


def parts(layers: int, train: bool) -> dict[str, float]:
    """One cold compile in this process, by what its report says."""
    import regional_inductor as ri

    taken = measure("ours", layers, distinct=False, train=train)
    report = ri.last_report()
    assert report is not None
    found = {
        "the pass, wall": taken["pass"],
        "the pass, processors, compilers included": taken["cpu"],
    }
    for graph in report.graphs:
        for stage, seconds in graph.seconds.items():
            found[f"stage {stage}"] = found.get(f"stage {stage}", 0.0) + seconds
    compiled = [region for region in report.regions if region.status == "compiled"]
    for number, region in enumerate(compiled, 1):
        for step, seconds in region.steps.items():
            found[f"region {number} of {len(region.ops)} operators, {region.direction}, {step}"] = (
                seconds
            )
    return found


def _row(name: str, results: dict[str, list[dict[str, Any]]]) -> Row:
    row: dict[str, Any] = {"case": name}
    errors = []
    for start in ("cold", "warm", "in process"):
        medians = {}
        for way in WAYS:
            runs = [r["cold" if start == "cold" else "warm"] for r in results[way]]
            errors += [f"{way}: {run['error']}" for run in runs if "error" in run]
            if start == "in process":
                taken = [t for run in runs for t in run.get("in process", [])]
            else:
                taken = [run["pass"] for run in runs if "pass" in run]
            medians[way] = median(taken)
        label = {"warm": "warm disk"}.get(start, start)
        row[f"{label}, PyTorch's"] = medians["pytorch"]
        row[f"{label}, ours"] = medians["ours"]
        row[f"{label}, ratio"] = ratio(medians["pytorch"], medians["ours"])
    if errors:
        row["error"] = errors[0]
    return row


def _memory(
    name: str, layers: int, distinct: bool, train: bool, results: dict[str, list[dict[str, Any]]]
) -> list[Row]:
    say(f"llama: {name}, aot_eager")
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        base = in_fresh_process(
            "llama:measure",
            cache=Path(folder),
            way="aot_eager",
            layers=layers,
            distinct=distinct,
            train=train,
        )
    found = {way: results[way][0]["cold"] for way in WAYS}
    rows: list[Row] = []
    for way, run in {"aot_eager": base, **found}.items():
        over = {
            key: run[key] - base[key] if key in run and key in base else None
            for key in ("mb", "peak mb")
        }
        rows.append(
            {
                "way": {"pytorch": "PyTorch's pass"}.get(way, way),
                "after, MB": run.get("mb"),
                "peak, MB": run.get("peak mb"),
                "after, over aot_eager, MB": over["mb"],
                "peak, over aot_eager, MB": over["peak mb"],
            }
        )
    return rows


def _targets(rows: list[Row], memory: list[Row]) -> list[Target]:
    by_case = {row["case"]: row for row in rows}

    def at(case: str, column: str) -> float | None:
        value = by_case.get(case, {}).get(column)
        return float(value) if isinstance(value, (int, float)) else None

    ours = next((row for row in memory if row["way"] == "ours"), {})
    over = ours.get("after, over aot_eager, MB")
    return [
        *(
            Target(
                f"cold, {case}, against PyTorch's",
                at(case, "cold, ratio"),
                bound,
                "higher",
                "x",
                why=_WHY_COLD,
            )
            for case, bound in (
                ("L=4", 3),
                ("L=16", 7),
                ("L=16 train", 7),
                ("L=32", 12),
                ("8 distinct", 5),
            )
        ),
        *(
            Target(
                f"{start}, L=32, against PyTorch's",
                at("L=32", f"{start}, ratio"),
                20,
                "higher",
                "x",
            )
            for start in ("warm disk", "in process")
        ),
        Target(
            "cold, ours, L=32 against L=1",
            ratio(at("L=32", "cold, ours"), at("L=1", "cold, ours")),
            1.1,
            "lower",
            "x",
        ),
        Target(
            "compile memory over aot_eager, L=32",
            float(over) if isinstance(over, (int, float)) else None,
            10,
            "lower",
            "MB",
        ),
    ]


def plot(tables: Tables, figure: Any) -> None:
    rows = next(iter(tables.values()))
    axes = figure.subplots()
    places = range(len(rows))
    for number, (label, shade) in enumerate(
        (f"{start}, {way}", colour)
        for start, colours in (
            ("cold", ("C0", "C1")),
            ("warm disk", ("C2", "C3")),
            ("in process", ("C4", "C5")),
        )
        for way, colour in zip(("PyTorch's", "ours"), colours, strict=True)
    ):
        heights = [row[label] or 0 for row in rows]
        axes.bar([p + 0.13 * number for p in places], heights, 0.13, label=label, color=shade)
    axes.set_yscale("log")
    axes.set_xticks([p + 0.32 for p in places], [str(row["case"]) for row in rows])
    axes.set_ylabel("seconds inside the pass")
    axes.legend()
