"""Calling a compiled region costs little more than Inductor's own call.

Microseconds a region: a function of 64 regions of three pointwise operators on ten elements, with one
unmarked operator between two of them. From each way's time for the whole function the time of the same
function without the marked operators is taken off, in the same way of running it, and the rest is divided
by the number of regions. Medians over alternating batches; the tenth percentile beside them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.traceback import annotate

from benchmarks import _peers
from benchmarks._measure import ratio, say
from benchmarks._outcome import Outcome, Row, Tables, Target

REGIONS, QUICK_REGIONS = 64, 16
BATCHES, CALLS = 200, 5
WAYS = {
    "eager": "eager",
    "pytorch": "PyTorch's pass",
    "drop-in": "our drop-in pass",
    "backend": "our backend",
    "call": "Inductor's call alone",
}
MARK = "compile_with_inductor"


def region(x: Tensor) -> Tensor:
    return (x.sin() + 0.5).tanh()


def main(quick: bool) -> Outcome:
    regions = QUICK_REGIONS if quick else REGIONS
    x = torch.randn(10)
    say(f"call: compiling {regions} regions in each way")
    with torch.no_grad():
        functions = _functions(regions, x)
        expected = functions["eager"](x)
        for name, function in functions.items():
            if not name.endswith("between"):
                torch.testing.assert_close(function(x), expected, msg=lambda m, n=name: f"{n}: {m}")
        times = _times(functions, x, BATCHES // (4 if quick else 1))
    rows = [_row(way, times, regions) for way in WAYS]
    return Outcome(
        {f"microseconds a region, {regions} regions": rows},
        _targets(rows),
        [
            (
                "Inductor's call alone: `call([x])` of the generated module in straight-line Python, with "
                "neither guards nor a graph around it; the other ways pay for Dynamo's guards once a function."
            ),
            (
                "Our backend calls the operators between regions more directly than FX does; that is in its "
                "whole function and taken off from what a region costs."
            ),
        ],
    )


def _functions(regions: int, x: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """Each way's whole function, and for each way of running the operators between, those alone."""

    def whole(x: Tensor) -> Tensor:
        for _ in range(regions):
            with annotate({MARK: "region"}):
                x = (x.sin() + 0.5).tanh()
            x = torch.neg(x)
        return x

    def plain(x: Tensor) -> Tensor:
        # The annotation costs Python time where nothing traces it away.
        for _ in range(regions):
            x = torch.neg((x.sin() + 0.5).tanh())
        return x

    def between(x: Tensor) -> Tensor:
        for _ in range(regions):
            x = torch.neg(x)
        return x

    pytorch = _peers.backend_of(_peers.pass_of("pytorch"))
    drop_in = _peers.backend_of(_peers.pass_of("ours"))
    functions: dict[str, Callable[[Tensor], Any]] = {
        "eager": plain,
        "eager between": between,
        "pytorch": torch.compile(whole, backend=pytorch, fullgraph=True),
        "drop-in": torch.compile(whole, backend=drop_in, fullgraph=True),
        "backend": torch.compile(whole, backend="regional_inductor", fullgraph=True),
        # The eager operators under the same guards: as FX writes their calls, and as our backend does.
        "graph between": torch.compile(between, backend="aot_eager", fullgraph=True),
        "backend between": torch.compile(between, backend="regional_inductor", fullgraph=True),
        "call": _straight_line(regions, _peers.bare_calls(region, x)),
        "call between": _straight_line(regions, None),
    }
    for name, function in functions.items():
        say(f"call: {name}")
        function(x)
    return functions


def _straight_line(regions: int, call: Callable[[list[Any]], Any] | None) -> Callable[..., Any]:
    """The function as generated code would have it: one line for each call."""
    lines = ["def run(x):"]
    for _ in range(regions):
        if call is not None:
            lines += ["    out = call([x]); x = None", "    x = out[0]; out = None"]
        lines.append("    x = neg(x)")
    lines.append("    return x")
    namespace: dict[str, Any] = {"call": call, "neg": torch.ops.aten.neg.default}
    exec("\n".join(lines), namespace)
    run: Callable[..., Any] = namespace["run"]
    return run


def _times(
    functions: dict[str, Callable[[Tensor], Any]], x: Tensor, batches: int
) -> dict[str, list[float]]:
    """Microseconds a call of each function, batch by batch in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(batches):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                function(x)
            times[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return times


def _row(way: str, times: dict[str, list[float]], regions: int) -> Row:
    between = f"{way} between" if f"{way} between" in times else "graph between"

    def net(pick: Callable[[list[float]], float]) -> float:
        return (pick(times[way]) - pick(times[between])) / regions

    return {
        "way": WAYS[way],
        "a region, us": net(statistics.median),
        "tenth percentile": net(_tenth_percentile),
        "whole function": statistics.median(times[way]),
        "without the regions": statistics.median(times[between]),
    }


def _tenth_percentile(values: list[float]) -> float:
    return sorted(values)[len(values) // 10]


def _targets(rows: list[Row]) -> list[Target]:
    net = {row["way"]: float(row["a region, us"]) for row in rows}  # type: ignore[arg-type]
    return [
        Target(
            "our backend against Inductor's call alone",
            ratio(net[WAYS["backend"]], net[WAYS["call"]]),
            1.2,
            "lower",
            "x",
            why="A region is one Python function around Inductor's call, which names it in errors and profiles.",
        ),
        Target(
            "our drop-in pass against PyTorch's",
            ratio(net[WAYS["drop-in"]], net[WAYS["pytorch"]]),
            0.25,
            "lower",
            "x",
            why="Over our backend's call it pays for one check of all arguments, in C, since nothing has checked them "
            "before; two thirds of both calls are Inductor's own, and most of that its comparison of sizes and "
            "strides: see the parts.",
        ),
        Target(
            "our backend against PyTorch's pass",
            ratio(net[WAYS["pytorch"]], net[WAYS["backend"]]),
            5.5,
            "higher",
            "x",
            why="Inductor's own call, which is in both, is most of ours: see the parts.",
        ),
    ]


def profile(missed: Sequence[str] | None, quick: bool) -> Tables:
    """What one call of a region is made of: each part by itself, the fastest of many batches."""
    x = torch.randn(10)
    _peers.forget_everything()  # or the run before this has compiled it already
    with torch.no_grad():
        call = _peers.bare_calls(region, x)
        kernel = next(v for k, v in call.__globals__.items() if k.startswith("cpp_fused"))
        kernel = getattr(kernel, "kernel", kernel)
        empty, check_sizes = _peers.parts_of_calls()
        out = torch.empty(10)
        drop_in = _region_of_drop_in(x)
        parts: dict[str, Callable[[], Any]] = {
            "nothing": lambda: None,
            "kernel": lambda: kernel(x, out),
            "its output's memory": lambda: empty((10,), (1,), torch.float32),
            "Inductor's check of sizes and strides": lambda: check_sizes(x, (10,), (1,)),
            "Inductor's call, all three": lambda: call([x]),
            "our drop-in pass's check of kinds": lambda: drop_in.__globals__["check"](x),
            "our drop-in pass's region": lambda: drop_in(x),
        }
        best = dict.fromkeys(parts, float("inf"))
        for _ in range(100 if quick else 300):
            for name, part in parts.items():
                start = time.perf_counter()
                for _ in range(100):
                    part()
                best[name] = min(best[name], (time.perf_counter() - start) / 100 * 1e6)
    nothing = best.pop("nothing")
    return {
        "one region's call, us": [
            {"part": name, "fastest, us": taken - nothing} for name, taken in best.items()
        ]
    }


def _region_of_drop_in(x: Tensor) -> Any:
    """The function that the drop-in pass puts into a graph for a region, called before."""
    found: list[Any] = []

    def spy(gm: torch.fx.GraphModule, *inputs: Any) -> Any:
        done = _peers.pass_of("ours")(gm, *inputs)
        calls = [node.target for node in done.graph.nodes if hasattr(node.target, "__wrapped__")]
        found.extend(call for call in calls if call.__module__ == "regional_inductor")
        return done

    def marked(x: Tensor) -> Tensor:
        with annotate({MARK: "region"}):
            return region(x)

    run = torch.compile(marked, backend=_peers.backend_of(spy), fullgraph=True)
    for _ in range(3):
        run(x)
    (function,) = found
    return function


def plot(tables: dict[str, list[Row]], figure: Any) -> None:
    rows = next(iter(tables.values()))
    axes = figure.subplots()
    axes.barh([str(row["way"]) for row in rows], [row["a region, us"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("microseconds a region, net")
