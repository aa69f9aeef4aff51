"""The pass compiles each distinct region once, so its time hardly grows with the layers.

Seconds inside the graph pass, Dynamo and AOTAutograd not included, for the model of `_models.py` (float32,
hidden width 128, sequence 64, batch 2; per block a norm, the rotary embedding and SwiGLU are marked, the
same marks without ids for both passes). Both are used the same way, as both compilers of AOTAutograd. In training ours
compiles backward regions with the forward graph's, as `ri.compile` does, for which it is told of the backward graph; how long
the drop-in takes, which knows of none, stands apart. A cold run has a process and an empty Inductor cache of its own; a warm run is a new process on the cache that the
cold one left; "in process" is the pass over a copy of the same graph, once more in the warm process. The result is
compared with eager in every run. Ours, whose runs are short, is the median of two or three cold processes.
Processes are forked from one that has imported torch's compilers, compiled unrelated regions with both passes and
traced the model, at the point where AOTAutograd calls the pass: each goes on from there with the same graph, after a
full collection of garbage. Memory is that of other processes, which start from nothing and do all of it themselves, two
at a time, since nothing of theirs is timed.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks._measure import (
    fork_from_here,
    in_forked_process,
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
WAYS = ("ours", "pytorch")
LATE = "late"
# PyTorch's pass takes up to half a minute, where differences are tens of times; ours takes two seconds,
# of which the processes of one case differ by tenths, and the depths that are compared with one another
# differ by as little.
COLD = {"ours": 2, "pytorch": 1}
COMPARED = ("L=1", "L=32")
COMPARED_COLD = {"ours": 3, "pytorch": 1}
QUICK_COLD = {"ours": 1, "pytorch": 1}
DEEP = 16
AGAIN = 3  # runs of the pass in a process that has compiled the same before
AGAIN_SLOW = 1  # of PyTorch's from DEEP layers on, where one takes seconds
TOLERANCE = 1e-4


def main(quick: bool) -> Outcome:
    cases = QUICK_CASES if quick else CASES
    results = {
        name: _measure(
            name, *case, QUICK_COLD if quick else COMPARED_COLD if name in COMPARED else COLD
        )
        for name, case in cases.items()
    }
    _parts.update({name: found["ours"] for name, found in results.items()})
    rows = [_row(name, results[name]) for name in cases]
    tables = {
        "seconds inside the pass": rows,
        "ours, cold: seconds inside the pass, each process": _each(results),
    }
    late = [
        {"case": name, "with the forward graph's": row["cold, ours"], "after them": run.get("pass")}
        for row, (name, found) in zip(rows, results.items(), strict=True)
        for runs in found.get(LATE, ())
        for run in [runs["cold"]]
    ]
    if late:
        tables["ours, cold: backward regions compiled with the forward graph's, or after them"] = (
            late
        )
    memory: list[Row] = []
    if MEMORY_CASE in cases:
        memory = _memory(MEMORY_CASE, *CASES[MEMORY_CASE])
        tables[f"compile memory, {MEMORY_CASE}, cold"] = memory
    return Outcome(
        tables,
        _targets(rows, memory),
        [
            (
                f"Cold processes of PyTorch's pass: one; of ours as many as the second table shows, the median. One warm "
                f"process of each; `in process` is the median of {AGAIN} runs of the pass in it, of PyTorch's from {DEEP} "
                f"layers on {AGAIN_SLOW}."
            ),
            (
                "Memory: resident set after the first call, over the resident set after the warm-up compile, "
                "and its peak during the call. The pass's own share is the difference from aot_eager."
            ),
        ],
    )


def _measure(
    name: str, layers: int, distinct: bool, train: bool, cold: Mapping[str, int]
) -> dict[str, list[dict[str, dict[str, Any]]]]:
    """Each way's processes, in turn; the first cold one of each leaves its cache to a warm one."""
    found: dict[str, list[dict[str, dict[str, Any]]]] = {way: [] for way in WAYS}
    about_model = {"layers": layers, "distinct": distinct, "train": train}
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        forked: list[tuple[str, int, str]] = []
        for number in range(max(cold.values())):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                if number >= cold[way]:
                    continue
                found[way].append({})
                forked.append((way, number, "cold"))
                if number == 0:
                    forked.append((way, number, "warm"))
        if train:
            found[LATE] = [{}]
            forked.append((LATE, 0, "cold"))
        say(f"llama: {name}, {', '.join(f'{way} {start}' for way, _, start in forked)}")
        runs = [
            {"way": way, "cache": str(Path(folder, f"{way}-{number}")), "again": again}
            for way, number, start in forked
            for again in [_again(way, layers) if start == "warm" else 0]
        ]
        results = in_forked_process(
            "llama:measure_traced",
            cache=Path(folder, "trace"),
            timeout=3600,
            runs=runs,
            **about_model,
        )
    for place, (way, number, start) in enumerate(forked):
        # A trace that failed has an error instead of results.
        found[way][number][start] = results[place] if isinstance(results, list) else results
    return found


def _again(way: str, layers: int) -> int:
    return AGAIN_SLOW if way == "pytorch" and layers >= DEEP else AGAIN


def measure(way: str, layers: int, distinct: bool, train: bool) -> dict[str, Any]:
    """A process of its own, whose memory counts: warms up, compiles the model once, compares it with eager."""
    from benchmarks import _models, _peers

    _peers.warm_up({"ours": "drop-in"}.get(way, way), train)
    shape = _models.Shape(layers, distinct)
    model, x = _models.Llama(shape), _models.inputs(shape, train)
    timed = None if way == "aot_eager" else _peers.TimedPass(way)
    gc.collect()
    before = resident_mb()
    reset_peak()
    backend = "aot_eager" if timed is None else _peers.backend_of(timed)
    actual = _first_result(model, x, train, backend)
    memory = {"mb": resident_mb() - before, "peak mb": peak_mb() - before}
    _assert_as_eager(actual, model, x, train)
    return {**(_seconds(timed) if timed else {}), **memory}


class _TracedError(BaseException):
    """Everything has been run from the graph on; not an Exception, which Dynamo would handle."""


def measure_traced(
    layers: int, distinct: bool, train: bool, runs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]] | dict[str, Any]:
    """A process that traces the model once, and forks one for each run where the pass is called.

    Args:
        layers: Of the model.
        distinct: Whether each MLP has another width.
        train: Whether there is a backward pass, whose graph is compiled in the forked process too.
        runs: `way`, `cache`, a folder, and `again`, how often the pass is run over copies of the graph, of each.

    Returns:
        What each run found. A forked process comes back from here too, with what it found.
    """
    from benchmarks import _models, _peers

    found: list[dict[str, Any]] = []
    timed: list[_peers.TimedPass] = []
    early = _peers.EarlyPass() if train else None

    def pass_or_fork(gm: Any, inputs: Any) -> Any:
        if not timed:  # else this is a backward graph, in a forked process
            for run in runs:
                done = fork_from_here(run["cache"])
                if done is None:
                    own = early if run["way"] == "ours" else None
                    way = "ours" if run["way"] == LATE else run["way"]
                    timed.append(_peers.TimedPass(way, run["again"], own))
                    _peers.keep_link_stubs()
                    gc.collect()  # which also copies the pages that the processes share
                    break
                found.append(done)
            else:
                raise _TracedError
        return timed[0](gm, inputs)

    shape = _models.Shape(layers, distinct)
    model, x = _models.Llama(shape), _models.inputs(shape, train)
    try:
        backend = _peers.backend_of(pass_or_fork, None if early is None else early.partition)
        actual = _first_result(model, x, train, backend)
    except _TracedError:
        return found
    _assert_as_eager(actual, model, x, train)
    return _seconds(timed[0])


def _first_result(model: Any, x: Any, train: bool, backend: Any) -> Any:
    import torch

    from benchmarks import _models

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    return _models.run_once(compiled, x, train).clone()


def _assert_as_eager(actual: Any, model: Any, x: Any, train: bool) -> None:
    import torch

    from benchmarks import _models

    with nullcontext() if train else torch.no_grad():
        expected = _models.run_once(model, x, train)
    difference = float((actual - expected).abs().max() / expected.abs().max())
    assert difference <= TOLERANCE, f"differs from eager by {difference:.1e}"


def _seconds(timed: Any) -> dict[str, Any]:
    return {
        "pass": sum(timed.first),
        "cpu": sum(timed.cpu),
        "in process": [sum(taken) for taken in timed.repeated],
        "parts": timed.parts,
    }


_WHY_COLD = (
    "ours hardly grows with depth: about three fifths of it are one run of the C++ compiler for all regions (in training "
    "of both graphs), the rest mostly what Inductor does in Python for three regions (the parts below). "
    "57 % of the compiler's run are there without any kernel: it makes 1,800 functions, mostly of templates, that the "
    "precompiled header mentions, in every unit anew, and links; 43 % are the kernels. PyTorch's pass pays for n layers, and "
    "that in Python, so the ratio hangs on how fast the machine runs either; decision 26 has what was tried"
)
_WHY_DEPTH = (
    "What grows with depth is the graph: collecting, partitioning, outlining and stitching 97 regions and their keys "
    "take 0.15 to 0.2 s more than four do, half of it copies of FX nodes (the parts below); the rest is how far processes "
    "of one case are apart"
)

_WHY_WARM = (
    "In a new process ours takes half as long again as once more in the same process, and PyTorch's doesn't: the stages of "
    "a first run (the parts below), most of it loading three regions and outlining 97"
)


# What the processes of the last run of `main` reported of their parts, by case.
_parts: dict[str, list[dict[str, dict[str, Any]]]] = {}


def profile(missed: Sequence[str] | None, quick: bool) -> Tables:
    """Where ours cold goes: seconds of stages and of regions' steps, and of processors; costs no run after `main`."""
    cases = ("L=4",) if quick else ("L=1", "L=16", "L=32", "L=16 train")
    for name in cases:
        if name not in _parts:
            layers, distinct, train = CASES[name]
            with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
                (run,) = in_forked_process(
                    "llama:measure_traced",
                    cache=Path(folder, "trace"),
                    layers=layers,
                    distinct=distinct,
                    train=train,
                    runs=[{"way": "ours", "cache": str(Path(folder, "cache")), "again": 0}],
                )
            _parts[name] = [{"cold": run}]
    tables = {"parts of a cold compile, ours, seconds, medians": _parts_of("cold", cases)}
    if any("warm disk" in figure for figure in missed or ()):
        tables["parts of a warm start, ours, seconds, medians"] = _parts_of("warm", cases)
    return tables


def _parts_of(start: str, cases: Sequence[str]) -> list[Row]:
    runs = {
        name: [run[start] for run in _parts[name] if "parts" in run.get(start, {})]
        for name in cases
    }
    rows: list[Row] = []
    for part in dict.fromkeys(
        part for name in cases for run in runs[name] for part in run["parts"]
    ):
        found = {
            name: median([run["parts"][part] for run in runs[name] if part in run["parts"]])
            for name in cases
        }
        rows.append({"part": part, **found})
    return rows


def _each(results: dict[str, dict[str, list[dict[str, dict[str, Any]]]]]) -> list[Row]:
    """How far the processes of one case are apart."""
    rows: list[Row] = []
    for name, found in results.items():
        taken = sorted(r["cold"]["pass"] for r in found["ours"] if "pass" in r["cold"])
        rows.append({"case": name, **{str(n): seconds for n, seconds in enumerate(taken, 1)}})
    return rows


def _row(name: str, results: dict[str, list[dict[str, Any]]]) -> Row:
    row: dict[str, Any] = {"case": name}
    errors = []
    for start in ("cold", "warm", "in process"):
        medians = {}
        for way in WAYS:
            kind = "cold" if start == "cold" else "warm"
            runs = [r[kind] for r in results[way] if kind in r]
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


def _memory(name: str, layers: int, distinct: bool, train: bool) -> list[Row]:
    about_model = {"layers": layers, "distinct": distinct, "train": train}
    say(f"llama: {name}, memory")

    def of_process(way: str) -> dict[str, Any]:
        # What is forked shares its memory with its parent, and nobody counts that right.
        with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
            return in_fresh_process(
                "llama:measure", cache=Path(folder, "cache"), probed=True, way=way, **about_model
            )

    with ThreadPoolExecutor(2) as pool:
        longest_first = ("pytorch", "ours", "aot_eager")
        found = dict(zip(longest_first, pool.map(of_process, longest_first), strict=True))
    base = found["aot_eager"]
    rows: list[Row] = []
    for way in ("aot_eager", *WAYS):
        run = found[way]
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
                why=_WHY_WARM if start == "warm disk" else "",
            )
            for start in ("warm disk", "in process")
        ),
        Target(
            "cold, ours, L=32 against L=1",
            ratio(at("L=32", "cold, ours"), at("L=1", "cold, ours")),
            1.1,
            "lower",
            "x",
            why=_WHY_DEPTH,
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
