"""Partition, outline and code generation take time and memory in proportion to the graph.

Graphs of seven families (`_graphs.py`), about half of each marked. "partition" is that stage of the same run;
"everything" is `outline_regions` under `merge="all"`, which collects marks, partitions, outlines and
generates all code, against the function of PyTorch's pass that does the same. PyTorch's is run once, up to
1,000 nodes, in one family up to 3,000; ours goes on to 100,000. Graphs of 100,000 nodes have a process of their own,
forked from one that has made all imports; two are built at a time, and nothing else runs while one is partitioned.
"""

from __future__ import annotations

import contextlib
import cProfile
import functools
import gc
import multiprocessing
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import _graphs, _peers
from benchmarks._measure import (
    alternate,
    exponent,
    in_forked_process,
    in_fresh_process,
    median,
    peak_mb,
    ratio,
    reset_peak,
    resident_mb,
    say,
    seconds_of,
)
from benchmarks._outcome import Outcome, Row, Tables, Target

SIZES = (300, 1000, 3000, 10_000, 100_000)
FITTED_FROM = 3000
LARGE = 100_000  # from here on each graph has a process of its own
QUICK_SIZES = (300, 1000)
RANDOM_GRAPHS = 300
# The family that is taken to the largest size with hidden order too, which takes longest there; the others to the one before it.
ORDERED_TO_THE_END = ("random",)
# Largest size for PyTorch's pass. At 3,000 nodes it takes from a quarter of a minute to many minutes.
PYTORCH_UP_TO = {"blocks": 3000}
PYTORCH_UP_TO_ELSE = 1000
QUICK_PYTORCH_UP_TO = {"blocks": 1000}
QUICK_PYTORCH_UP_TO_ELSE = 300


def main(quick: bool) -> Outcome:
    prepare()
    times = _times(quick)
    # At once: nothing is timed, and what is resident in one process doesn't depend on another.
    with ThreadPoolExecutor(2) as pool:
        memories = _memory(quick, pool)
        cyclic = _cyclic_ids(20 if quick else RANDOM_GRAPHS)
        memory = memories()
    growth = _growth(times)
    return Outcome(
        {
            "seconds, PyTorch's pass and ours": times,
            "growth: the exponent e in seconds = c * nodes ** e": growth,
            "memory over the graph at its peak": memory,
            "random graphs with two ids": [cyclic],
        },
        _targets(times, growth, memory, cyclic),
        [
            (
                "`options`: sixteen sets of options in turn. PyTorch's pass merges regions whatever their "
                "options are and applies the first one's, so its count there is no bound for ours."
            ),
            (
                "Rows with `hidden order` have mutation, aliasing, draws, asserts and collectives among the "
                "unmarked nodes; PyTorch's pass knows nothing of them, so it is not run."
            ),
        ],
    )


# --- time ------------------------------------------------------------------------------------------


def prepare() -> None:
    """What is imported on the way (Inductor, for one) is not partitioning."""
    _peers.outlining_of("ours")(_graphs.build("options", 100))
    _peers.outlining_of("pytorch")(_graphs.build("chain", 50))


def _times(quick: bool) -> list[Row]:
    rows: list[Row] = []
    large: list[tuple[int, dict[str, Any]]] = []  # where the row belongs, and what it is of
    sizes = QUICK_SIZES if quick else SIZES

    def add(**case: Any) -> None:
        if case["size"] >= LARGE:
            large.append((len(rows) + len(large), case))
        else:
            rows.append(_case(**case))

    for family in _graphs.FAMILIES:
        limit = (
            QUICK_PYTORCH_UP_TO.get(family, QUICK_PYTORCH_UP_TO_ELSE)
            if quick
            else PYTORCH_UP_TO.get(family, PYTORCH_UP_TO_ELSE)
        )
        for size in sizes:
            repeats = 1 if size > 1000 or quick else 3
            add(family=family, size=size, repeats=repeats, with_pytorch=size <= limit)
        largest = sizes[-1] if family in ORDERED_TO_THE_END else sizes[-2]
        add(family=family, size=largest, ordered=True)
    found = _large_cases([case for _, case in large])
    for (place, _), row in zip(large, found, strict=True):
        rows.insert(place, row)
    return rows


def _large_cases(cases: Sequence[dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        for number in range(0, len(cases), 2):
            pair = cases[number : number + 2]
            names = [f"{case['family']} {case['size']}" for case in pair]
            say(f"partition: {', '.join(names)}, one after the other")
            found = in_forked_process(
                "partition:in_turn",
                cache=Path(folder, "cache"),
                prepare="partition:prepare",
                cases=pair,
            )
            if "error" in found:
                raise RuntimeError(f"partition: {found['error']}")
            rows += found["rows"]
    return rows


def in_turn(cases: Sequence[dict[str, Any]]) -> dict[str, list[Row]]:
    """Cases in a process each, which build their graphs at once; then one after the other is measured."""
    context = multiprocessing.get_context("fork")
    built, turn = context.Barrier(len(cases)), context.Lock()
    ends = [context.Pipe(duplex=False) for _ in cases]
    processes = [
        context.Process(target=_in_its_turn, args=(case, built, turn, end))
        for case, (_, end) in zip(cases, ends, strict=True)
    ]
    for process, (_, end) in zip(processes, ends, strict=True):
        process.start()
        end.close()  # the process has its own; with none left, what has failed is seen here
    rows = [start.recv() for start, _ in ends]
    for process in processes:
        process.join()
    return {"rows": rows}


def _in_its_turn(case: dict[str, Any], built: Any, turn: Any, answer: Any) -> None:
    def wait() -> None:
        built.wait()
        turn.acquire()

    try:
        answer.send(_case(**case, before=wait))
        turn.release()
    except BaseException:
        built.abort()
        raise


def _case(
    family: str,
    size: int,
    repeats: int = 1,
    *,
    ordered: bool = False,
    with_pytorch: bool = False,
    before: Callable[[], None] = lambda: None,
) -> Row:
    """One row of the table; `before` is called once each graph has been built."""
    say(f"partition: {family} {size}{' with hidden order' if ordered else ''}")
    regions: dict[str, int] = {}

    stage: list[float] = []

    def outlining(way: str) -> float:
        gc.disable()  # it would take half of the time to build a graph, which isn't measured
        gm = _graphs.build(family, size, ordered=ordered)
        gc.enable()
        before()
        outline = _peers.outlining_of(way)
        gc.collect()
        with stages_noted() as seconds_of:
            start = time.perf_counter()
            outlined = outline(gm)
            if way == "pytorch":
                outlined.recompile()
            seconds = time.perf_counter() - start
        if way == "ours":
            stage.append(seconds_of["partition"])
        regions[way] = _peers.marked_regions(outlined)
        return seconds

    ways: dict[str, Any] = {"ours": lambda: outlining("ours")}
    if with_pytorch:
        ways["pytorch"] = lambda: outlining("pytorch")
    found = alternate(ways, 1)
    found["ours"] += alternate({"ours": ways["ours"]}, repeats - 1)["ours"]
    pytorch = median(found.get("pytorch", []))
    mine = median(found["ours"])
    return {
        "family": family,
        "hidden order": "yes" if ordered else "",
        "nodes": size,
        "PyTorch's": pytorch,
        "ours": mine,
        "ratio": ratio(pytorch, mine),
        "partition alone": median(stage),
        "PyTorch's regions": regions.get("pytorch"),
        "our regions": regions["ours"],
    }


@contextlib.contextmanager
def stages_noted() -> Iterator[dict[str, float]]:
    """Seconds in each of our stages that runs in the block, by name."""
    from regional_inductor import pipeline

    trace = pipeline.Trace()
    noted = functools.partial(pipeline.run, observer=trace)
    with unittest.mock.patch.object(pipeline, "run", noted):
        yield trace.seconds


def _growth(times: list[Row]) -> list[Row]:
    rows: list[Row] = []
    for family in _graphs.FAMILIES:
        of_family = [r for r in times if r["family"] == family and not r["hidden order"]]
        large = [r for r in of_family if r["nodes"] >= FITTED_FROM]
        slow = [r for r in of_family if r["PyTorch's"] is not None]
        rows.append(
            {
                "family": family,
                "PyTorch's": _fit(slow, "PyTorch's"),
                "PyTorch's up to": slow[-1]["nodes"] if slow else None,
                "ours, everything": _fit(large, "ours"),
                "ours, partition alone": _fit(large, "partition alone"),
                "ours from": FITTED_FROM,
                "ours up to": of_family[-1]["nodes"],
            }
        )
    return rows


def _fit(rows: list[Row], column: str) -> float | None:
    return exponent([r["nodes"] for r in rows], [r[column] for r in rows])  # type: ignore[misc]


# --- memory ----------------------------------------------------------------------------------------


def _memory(quick: bool, pool: Executor) -> Callable[[], list[Row]]:
    """Has processes measure it in the background; gives a function that waits for the table."""
    families = ("blocks",) if quick else ("blocks", "chain", "ids")
    size = 3000 if quick else 10_000
    say(f"partition: memory of {', '.join(families)}, {size}")

    def started(way: str, family: str) -> Future[dict[str, Any]]:
        about = {"way": way, "family": family, "size": size}
        return pool.submit(in_fresh_process, "partition:peak_over_graph", **about)

    view = started("view", "blocks")  # the longest
    ours = {family: started("ours", family) for family in families}

    def row(family: str, found: dict[str, Any]) -> Row:
        return {
            "family": family,
            "nodes": size,
            "PyTorch's dependency view alone, MB": view.result().get("mb")
            if family == "blocks"
            else None,
            "ours, everything, MB": found.get("mb"),
            **({"error": found["error"]} if "error" in found else {}),
        }

    return lambda: [row(family, found.result()) for family, found in ours.items()]


def peak_over_graph(way: str, family: str, size: int) -> dict[str, float]:
    """The most memory over what the process took once the graph was built. In a fresh process."""
    outline = _peers.dependency_view if way == "view" else _peers.outlining_of("ours")
    outline(_graphs.build(family, 100))
    gm = _graphs.build(family, size)
    gm.recompile()  # a graph's code is part of what there is before
    gc.collect()
    before = resident_mb()
    reset_peak()
    kept = outline(gm)
    mb = peak_mb() - before
    del kept
    return {"mb": mb}


# --- jointly cyclic ids ----------------------------------------------------------------------------


def _cyclic_ids(count: int) -> Row:
    """How often each pass fails where ids may be jointly cyclic, and regions where both succeed."""
    say(f"partition: {count} random graphs with two ids")
    failed = {"pytorch": 0, "ours": 0}
    regions = {"pytorch": 0, "ours": 0}
    more = 0
    for seed in range(count):
        found: dict[str, int] = {}
        for way in failed:
            gm = _graphs.random_ids(seed)
            try:
                found[way] = _peers.marked_regions(_peers.outlining_of(way)(gm))
            except (AssertionError, RuntimeError):
                failed[way] += 1
        if len(found) == 2:
            for way, number in found.items():
                regions[way] += number
            more += found["ours"] > found["pytorch"]
    return {
        "graphs": count,
        "PyTorch's failures": failed["pytorch"],
        "our failures": failed["ours"],
        "PyTorch's regions where both succeed": regions["pytorch"],
        "our regions there": regions["ours"],
        "graphs with more regions": more,
    }


# --- targets ---------------------------------------------------------------------------------------


def _targets(times: list[Row], growth: list[Row], memory: list[Row], cyclic: Row) -> list[Target]:
    at_largest = [r for r in times if r["nodes"] == SIZES[-1]]
    at_one_thousand = [r for r in times if r["nodes"] == 1000 and r["ratio"] is not None]
    at_three_thousand = [r for r in times if r["nodes"] == 3000 and r["ratio"] is not None]
    large = [r for r in growth if r["ours up to"] == SIZES[-1]]
    counted = [r for r in times if r["PyTorch's regions"] is not None and r["family"] != "options"]
    memory_there = [r for r in memory if r["nodes"] == 10_000]

    def worst(rows: list[Row], column: str, pick: Any = max) -> float | None:
        values = [r[column] for r in rows]
        if not values or None in values:
            return None
        return float(pick(values))

    surplus = [r["our regions"] - r["PyTorch's regions"] for r in counted]  # type: ignore[operator]
    return [
        Target(
            "partition alone, 100,000 nodes, slowest family",
            worst(at_largest, "partition alone"),
            0.5,
            "lower",
            "s",
            why="Hidden order adds edges, and a family takes longer with it (the rows of the table). Where regions of "
            "different marks are jointly cyclic (options, ids), the graph is sorted twice and the cyclic part is "
            "scheduled again; see the seconds by stage.",
        ),
        Target(
            "everything, 100,000 nodes, slowest family",
            worst(at_largest, "ours"),
            8,
            "lower",
            "s",
            why="Deciding is the smaller part. The rest is FX's: a node for each node, a module for each region, and "
            "Python's own compile of the graph's text; see the seconds by stage.",
        ),
        Target(
            "exponent of everything, 3,000 to 100,000, largest",
            worst(large, "ours, everything"),
            1.1,
            "lower",
            why="Calls are in proportion to the nodes (tests/counters counts them); which of them take longer in large "
            "graphs is not known.",
        ),
        Target(
            "memory over the graph, 10,000 nodes, largest",
            worst(memory_there, "ours, everything, MB"),
            100,
            "lower",
            "MB",
        ),
        Target(
            "against PyTorch's, 1,000 nodes, slowest family",
            worst(at_one_thousand, "ratio", min),
            12,
            "higher",
            "x",
            why="PyTorch's time grows with its regions, of which the family `wide` has two at any size (the table).",
        ),
        Target(
            "against PyTorch's, 3,000 nodes, slowest family run",
            worst(at_three_thousand, "ratio", min),
            100,
            "higher",
            "x",
        ),
        Target(
            "regions more than PyTorch's, any family", float(max(surplus, default=0)), 0, "lower"
        ),
        Target("failures on random graphs with ids", float(cyclic["our failures"]), 0, "lower"),  # type: ignore[arg-type]
        Target(
            "of them with more regions than PyTorch's",
            float(cyclic["graphs with more regions"]),  # type: ignore[arg-type]
            0,
            "lower",
        ),
    ]


def profile(missed: Sequence[str] | None, quick: bool) -> Tables:
    """Seconds by stage in two families, and of outlining the functions that take most."""
    from regional_inductor import pipeline
    from regional_inductor.backend import outline_regions, read_settings

    settings = read_settings({}, merge="all", on_error="raise")
    size = 3000 if quick else 10_000
    stages: list[Row] = []
    for family in ("blocks", "options"):
        gm = _graphs.build(family, size)
        trace = pipeline.Trace()
        gc.collect()
        pipeline.run(gm, (), settings, stop_after="outline", observer=trace)
        whole = seconds_of(lambda gm=gm: outline_regions(gm))
        taken = {stage: trace.seconds[stage] for stage in ("collect", "partition", "outline")}
        rest = whole - sum(taken.values())
        stages.append(
            {"family": family, "nodes": size, **taken, "code of the graph": rest, "all": whole}
        )
    gm = _graphs.build("blocks", size)
    profiler = cProfile.Profile()
    profiler.runcall(outline_regions, gm)
    entries = sorted(profiler.getstats(), key=lambda entry: -entry.inlinetime)
    functions: list[Row] = [
        {
            "function": _name_of(entry.code),
            "calls": entry.callcount,
            "seconds, what it calls excluded": entry.inlinetime,
        }
        for entry in entries[:12]
    ]
    return {
        "seconds by stage": stages,
        f"functions, blocks, {size} nodes, slowed down by the profiler": functions,
    }


def _name_of(code: Any) -> str:
    if isinstance(code, str):
        return code
    return f"{Path(code.co_filename).stem}.{code.co_qualname if sys.version_info >= (3, 11) else code.co_name}"


def plot(tables: Tables, figure: Any) -> None:
    axes = figure.subplots()
    rows = next(iter(tables.values()))
    for number, family in enumerate(_graphs.FAMILIES):
        of_family = [r for r in rows if r["family"] == family and not r["hidden order"]]
        for way, style in (("ours", "-o"), ("PyTorch's", "--s")):
            points = [(r["nodes"], r[way]) for r in of_family if r[way] is not None]
            axes.loglog(
                *zip(*points, strict=True),
                style,
                color=f"C{number}",
                markersize=3,
                label=family if way == "ours" else None,
            )
    axes.set_xlabel("nodes")
    axes.set_ylabel("seconds, everything")
    axes.set_title("solid: ours; dashed: PyTorch's pass")
    axes.legend()
