"""A start, cold or warm, costs the same for sixty-four blocks as for four.

Seconds from asking for a compiled model to its first result: tracing, the forward pass and everything in
between, imports and an unrelated warm-up compile not included. Inference with the model of `_models.py`.
Each start is in a process of its own, forked from one that has made torch's imports and the warm-up compiles of all
ways; a cold one has an Inductor cache of its own, empty, a warm one what the cold one left there. The result is
compared with eager in every run. Counted besides, for the cold start: graphs that Dynamo captured, runs of AOTAutograd,
regions that were compiled, and seconds of CPU of the process and its compilers.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._measure import in_forked_process, median, ratio, say
from benchmarks._outcome import Outcome, Row, Tables, Target

WAYS = {
    "pytorch": "PyTorch's pass",
    "ours": "ours",
    "ours:model": "ours, whole capture",
    "ours:blocks": "ours, block capture",
    "aot_eager": "aot_eager",
    "full": "torch.compile",
    "nested": "nested_compile_region",
    "blocks": "block by block",
}
# Growth is ours to show.
GROWING, GROWTH = "ours:blocks", (4, 64)
LAYERS: dict[str, tuple[int, ...]] = {GROWING: GROWTH}
# What is compared and differs by less than one start varies, in turn.
REPEATED = (
    ((GROWING, 4, "cold"), (GROWING, 64, "cold")),
    (("ours", 32, "warm"), ("blocks", 32, "warm")),
)
REPEATS = 3
LAYERS_ELSE = (32,)
LEAVES_NOTHING = "aot_eager"  # on disk: a second start would be as cold as the first
QUICK_LAYERS: dict[str, tuple[int, ...]] = {"ours:blocks": (4,), "blocks": (4,)}
# Compared with eager to float32's rounding in 32 blocks.
TOLERANCE = 1e-4


def main(quick: bool) -> Outcome:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        for layers in (4,) if quick else (4, 32, 64):
            for way in WAYS:
                wanted = QUICK_LAYERS.get(way, ()) if quick else LAYERS.get(way, LAYERS_ELSE)
                if layers in wanted:
                    rows.append(_case(way, layers, Path(folder)))
        if not quick:
            rows = _with_medians(rows, Path(folder))
    return Outcome(
        {"seconds to the first result": rows},
        _targets(rows),
        [
            (
                "`ours` is `ri.compile(model)` with its defaults, which capture blocks where there are eight or "
                "more, as here; the other two fix what it captures. aot_eager has no warm start, since it leaves nothing on disk. "
                f"Medians of {REPEATS}, in turn, of block capture's cold starts and of the warm ones of ours and of block by block; "
                "one run of the others: differences of a tenth mean nothing there, the targets' ratios do."
            )
        ],
    )


def _start(way: str, layers: int, start: str, folder: Path, number: int = 0) -> dict[str, Any]:
    say(f"depth: {way}, {layers} layers, {start}{f', {number + 1}' if number else ''}")
    # A compiler's command line takes neither blanks nor colons in a path.
    parts = (way.replace(":", "-"), layers, *((number,) if number and start == "cold" else ()))
    cache = folder / "-".join(map(str, parts))
    found: dict[str, Any] = in_forked_process("depth:measure", cache=cache, way=way, layers=layers)
    return found


def _case(way: str, layers: int, folder: Path) -> Row:
    starts: dict[str, dict[str, Any]] = {}
    for start in ("cold",) if way == LEAVES_NOTHING else ("cold", "warm"):
        starts[start] = _start(way, layers, start, folder)
        _steps[way, layers, start] = starts[start].pop("steps", {})
    row: dict[str, Any] = {
        "layers": layers,
        "way": WAYS[way],
        "cold": starts["cold"].get("seconds"),
        "warm": starts["warm"].get("seconds") if "warm" in starts else None,
        "call, ms": [*starts.values()][-1].get("call ms"),
        **{
            name: starts["cold"].get(name)
            for name in ("graphs", "AOTAutograd", "compiled", "CPU, s")
        },
    }
    errors = [run["error"] for run in starts.values() if "error" in run]
    if errors:
        row["error"] = errors[0]
    return row


def _with_medians(rows: list[Row], folder: Path) -> list[Row]:
    """The rows, with medians of several starts where `REPEATED` says so."""
    changed: dict[tuple[object, object], dict[str, Any]] = {
        (row["way"], row["layers"]): dict(row) for row in rows
    }
    for compared in REPEATED:
        seconds = {case: [changed[WAYS[case[0]], case[1]][case[2]]] for case in compared}
        for number in range(1, REPEATS):
            for way, layers, start in compared if number % 2 == 0 else reversed(compared):
                found = _start(way, layers, start, folder, number)
                seconds[way, layers, start].append(found.get("seconds"))
        for (way, layers, start), each in seconds.items():
            changed[WAYS[way], layers][start] = median([one for one in each if one is not None])
    return [*changed.values()]


# The steps that took longest in each start of the last run of `main`, by way, layers and start.
_steps: dict[tuple[str, int, str], dict[str, float]] = {}


def measure(way: str, layers: int) -> dict[str, Any]:
    """One start in this process."""
    from benchmarks import _models, _peers

    kind = "ours" if way.startswith("ours") else way
    _peers.warm_up(kind if kind in _peers.WARM_UPS else "inductor")
    shape = _models.Shape(layers)
    model, x = _models.Llama(shape), _models.inputs(shape)
    expected = _models.run_once(model, x, train=False)
    _peers.forget_counts()
    _peers.forget_steps()
    gc.collect()  # else whichever way comes near the next full collection pays for what came before
    cpu, start = _peers.cpu_seconds(), time.perf_counter()
    compiled = _peers.compiled_model(way, model)
    actual = _models.run_once(compiled, x, train=False)
    seconds = time.perf_counter() - start
    steps = sorted(_peers.seconds_of_steps().items(), key=lambda item: -item[1])[:10]
    counts: dict[str, float] = {**_peers.counts(), "CPU, s": _peers.cpu_seconds() - cpu}
    if way.startswith("ours"):
        statuses = _peers.statuses_of_last_report()
        assert "eager" not in statuses, "a region stayed eager"
        counts["compiled"] = statuses.count("compiled")
    difference = float((actual - expected).abs().max() / expected.abs().max())
    assert difference <= TOLERANCE, f"differs from eager by {difference:.1e}"
    calls = []
    for _ in range(5):
        start = time.perf_counter()
        _models.run_once(compiled, x, train=False)
        calls.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "call ms": sorted(calls)[2] * 1e3,
        "steps": {"whole": seconds, **dict(steps)},
        **counts,
    }


def _targets(rows: list[Row]) -> list[Target]:
    found = {(row["way"], row["layers"]): row for row in rows}

    def at(way: str, layers: int, start: str) -> float | None:
        value = found.get((WAYS[way], layers), {}).get(start)
        return float(value) if isinstance(value, (int, float)) else None

    return [
        Target(
            "cold, ours, block capture, L=64 against L=4",
            ratio(at("ours:blocks", 64, "cold"), at("ours:blocks", 4, "cold")),
            1.15,
            "lower",
            "x",
            why="Both capture and compile one block; see where their time goes.",
        ),
        Target(
            "cold, L=32, ours against block by block",
            ratio(at("ours", 32, "cold"), at("blocks", 32, "cold")),
            1.0,
            "lower",
            "x",
            why="Both capture one block; ours the norm outside of the blocks as well. See where the time goes.",
        ),
        Target(
            "warm, L=32, ours against block by block",
            ratio(at("ours", 32, "warm"), at("blocks", 32, "warm")),
            1.2,
            "lower",
            "x",
            why="Both find AOTAutograd's result; ours captures the norm outside of the blocks as well. See where the time "
            "goes.",
        ),
    ]


def profile(missed: Sequence[str] | None, quick: bool) -> Tables:
    """Seconds that PyTorch's compilers and ours took down for their steps, one within another; costs no run after `main`."""
    ways, layers = (("ours:blocks", "blocks"), 4) if quick else (("ours", "blocks"), 32)
    kinds = [kind for kind in ("cold", "warm") if missed is None or any(kind in m for m in missed)]
    rows: list[Row] = []
    for way in ways:
        if (way, layers, "warm") not in _steps:
            with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
                _case(way, layers, Path(folder))
        rows += [
            {"way": WAYS[way], "start": start, "step": step, "seconds": seconds}
            for start in kinds
            for step, seconds in _steps[way, layers, start].items()
        ]
    return {f"steps of a start, {layers} layers": rows}


def plot(tables: Tables, figure: Any) -> None:
    rows = next(iter(tables.values()))
    for place, start in zip(figure.subplots(1, 2, sharey=True), ("cold", "warm"), strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            points = [
                (row["layers"], row[start])
                for row in rows
                if row["way"] == way and row[start] is not None
            ]
            if points:
                place.plot(*zip(*points, strict=True), "-o", label=way)
        place.set_title(start)
        place.set_xlabel("layers")
        place.set_yscale("log")
    figure.axes[0].set_ylabel("seconds to the first result")
    figure.axes[0].legend(fontsize="small")
