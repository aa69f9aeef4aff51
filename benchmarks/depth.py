"""A start, cold or warm, costs the same for sixty-four blocks as for four.

Seconds from asking for a compiled model to its first result: tracing, the forward pass and everything in
between, imports and an unrelated warm-up compile not included. Inference with the model of `_models.py`.
Each start is in a process of its own; a cold one has an Inductor cache of its own, a warm one what the
cold one left there. The result is compared with eager in every run.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import in_fresh_process, ratio, say
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
# Ours and what it is measured against go deeper; the others' growth is seen at 32.
LAYERS: dict[str, tuple[int, ...]] = {
    "ours": (4, 32, 64),
    "ours:model": (32,),
    "ours:blocks": (32,),
    "nested": (4, 32, 64),
    "blocks": (4, 32, 64),
}
LAYERS_ELSE = (4, 32)
QUICK_LAYERS: dict[str, tuple[int, ...]] = {
    "ours": (4,),
    "blocks": (4,),
    "pytorch": (4,),
}
# Compared with eager to float32's rounding in 32 blocks.
TOLERANCE = 1e-4


def main(quick: bool) -> Outcome:
    rows: list[Row] = []
    ways = [way for way in WAYS if way not in _not_built()]
    for layers in (4,) if quick else (4, 32, 64):
        for way in ways:
            wanted = QUICK_LAYERS.get(way, ()) if quick else LAYERS.get(way, LAYERS_ELSE)
            if layers in wanted:
                rows.append(_case(way, layers))
    return Outcome(
        {"seconds to the first result": rows},
        _targets(rows),
        [
            (
                "`ours` is `ri.compile(model)` with its defaults; the other two fix what it captures. "
                "One run each: differences of a tenth mean nothing, the targets' ratios do."
            )
        ],
    )


def _not_built() -> set[str]:
    """Captures that `ri.compile` doesn't offer (yet)."""
    import regional_inductor as ri

    offered = str(inspect.signature(ri.compile).parameters["capture"].annotation)
    return {way for way in WAYS if way.startswith("ours:") and way.split(":")[1] not in offered}


def _case(way: str, layers: int) -> Row:
    starts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        for start in ("cold", "warm"):
            say(f"depth: {way}, {layers} layers, {start}")
            starts[start] = in_fresh_process(
                "depth:measure", cache=Path(folder), way=way, layers=layers
            )
    row: dict[str, Any] = {
        "layers": layers,
        "way": WAYS[way],
        "cold": starts["cold"].get("seconds"),
        "warm": starts["warm"].get("seconds"),
        "call, ms": starts["warm"].get("call ms"),
    }
    errors = [run["error"] for run in starts.values() if "error" in run]
    if errors:
        row["error"] = errors[0]
    return row


def measure(way: str, layers: int) -> dict[str, float]:
    """One start in this process."""
    import torch

    from benchmarks import _models, _peers

    warm_up = {"pytorch": _peers.backend_of(_peers.pass_of("pytorch"))}
    backend: Any = warm_up.get(way, "regional_inductor" if way.startswith("ours") else "inductor")
    torch.compile(_models.unrelated, backend=backend)(torch.randn(7, 5))
    _peers.forget_everything()
    shape = _models.Shape(layers)
    model, x = _models.Llama(shape), _models.inputs(shape)
    expected = _models.run_once(model, x, train=False)
    start = time.perf_counter()
    compiled = _peers.compiled_model(way, model)
    actual = _models.run_once(compiled, x, train=False)
    seconds = time.perf_counter() - start
    difference = float((actual - expected).abs().max() / expected.abs().max())
    assert difference <= TOLERANCE, f"differs from eager by {difference:.1e}"
    calls = []
    for _ in range(5):
        start = time.perf_counter()
        _models.run_once(compiled, x, train=False)
        calls.append(time.perf_counter() - start)
    return {"seconds": seconds, "call ms": sorted(calls)[2] * 1e3}


def _targets(rows: list[Row]) -> list[Target]:
    found = {(row["way"], row["layers"]): row for row in rows}

    def at(way: str, layers: int, start: str) -> float | None:
        value = found.get((WAYS[way], layers), {}).get(start)
        return float(value) if isinstance(value, (int, float)) else None

    return [
        Target(
            "cold, ours, L=64 against L=4",
            ratio(at("ours", 64, "cold"), at("ours", 4, "cold")),
            1.15,
            "lower",
            "x",
        ),
        Target(
            "cold, L=32, ours against block by block",
            ratio(at("ours", 32, "cold"), at("blocks", 32, "cold")),
            1.0,
            "lower",
            "x",
        ),
        Target(
            "warm, L=32, ours against block by block",
            ratio(at("ours", 32, "warm"), at("blocks", 32, "warm")),
            1.2,
            "lower",
            "x",
        ),
    ]


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
