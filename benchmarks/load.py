"""Loading what was saved takes the imports that it needs, and little more.

A model of 16 blocks with 49 regions (quick form: 4 with 13), saved once; each figure is from a process of its own,
forked from one that has imported torch, with empty caches and no C++ compiler on its path, medians of wall time and
CPU time. `regions` is one captured graph and all its compiled regions, from `import torch` on: it needs neither Dynamo
nor Inductor. `whole function` is `ri.load`, after Dynamo and AOTAutograd have been imported, and what the first call
takes over later ones; beside it what these imports take. Equal blocks have four distinct regions; with blocks of
different widths most are distinct.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._measure import (
    COMPILERS,
    TORCH,
    in_forked_process,
    median,
    say,
)
from benchmarks._outcome import Outcome, Row, Target

LAYERS, QUICK_LAYERS = 16, 4
BLOCKS = {False: "equal", True: "different widths"}
REGIONS, FUNCTION = "regions", "function"  # what is called in processes of their own
REPEATS = {FUNCTION: 3, REGIONS: 5}  # the former takes seconds of imports besides


def main(quick: bool) -> Outcome:
    repeats = dict.fromkeys(REPEATS, 1) if quick else REPEATS
    regions: list[Row] = []
    functions: list[Row] = []
    layers = QUICK_LAYERS if quick else LAYERS
    kinds = (False,) if quick else (False, True)
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        paths = {distinct: str(Path(folder, f"{BLOCKS[distinct]}.ri")) for distinct in kinds}
        say(f"load: saving, blocks {' and '.join(BLOCKS[distinct] for distinct in kinds)}")
        models = [(path, layers, distinct) for distinct, path in paths.items()]
        prepared = _in_process("prepare_at_once", Path(folder, "cache"), models=models)
        for distinct, saved in zip(kinds, prepared["saved"], strict=True):
            path, blocks = paths[distinct], BLOCKS[distinct]
            about_model = {"layers": layers, "distinct": distinct}
            found: dict[str, list[dict[str, Any]]] = {REGIONS: [], FUNCTION: []}
            for number in range(max(repeats.values())):
                for what, arguments in ((FUNCTION, about_model), (REGIONS, {})):
                    if number >= repeats[what]:
                        continue
                    say(f"load: {what}")
                    cache = Path(folder, f"empty {blocks} {what} {number}")
                    found[what].append(_in_process(what, cache, path=path, **arguments))
            about = {"blocks": blocks, "regions": saved["regions"], "distinct": saved["distinct"]}
            regions.append({**about, **_medians(found[REGIONS])})
            functions.append({**about, **_medians(found[FUNCTION])})
    seconds = {row["blocks"]: row["seconds"] for row in regions}
    return Outcome(
        {"regions of one captured graph": regions, "whole function": functions},
        [
            *(
                Target(f"regions, blocks {blocks}", seconds.get(blocks), 0.1, "lower", "s")
                for blocks in BLOCKS.values()
            ),
            Target("whole function over its imports", functions[0]["seconds"], 0.3, "lower", "s"),
            Target("modules of Inductor and Dynamo for regions", _modules(regions), 0, "lower"),
        ],
    )


def _in_process(function: str, cache: Path, **arguments: Any) -> dict[str, Any]:
    measured = function in REPEATS
    run: dict[str, Any] = in_forked_process(
        f"load:{function}",
        cache=cache,
        environment={"PATH": "/nonexistent", "CXX": "/nonexistent"} if measured else {},
        prepare=TORCH if measured else COMPILERS,
        **arguments,
    )
    if "error" in run:
        raise RuntimeError(f"load, {function}: {run['error']}")
    return run


def _medians(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    return {name: median([run[name] for run in runs]) for name in runs[0]}


def _modules(rows: list[Row]) -> float:
    return float(max(row["modules of Inductor and Dynamo"] for row in rows))


def prepare_at_once(models: Sequence[tuple[str, int, bool]]) -> dict[str, Any]:
    """`prepare` for several, in processes of their own: nothing of it is timed."""
    with multiprocessing.get_context("fork").Pool(len(models)) as pool:
        return {"saved": pool.starmap(prepare, models)}


def prepare(path: str, layers: int, distinct: bool) -> dict[str, Any]:
    """Compile the model, run one training step and save it."""
    import regional_inductor as ri
    from benchmarks import _models
    from regional_inductor import loading, saved_file  # noqa: F401 - its bytecode is written

    shape = _models.Shape(layers, distinct=distinct)
    model = ri.compile(_models.Llama(shape), on_error="raise", capture="model")
    with_gradients(model, _models.inputs(shape, train=True))
    calls = sum(region.direction == "forward" for region in model.report.regions)
    model.save(path)
    return {"regions": calls, "distinct": saved_file.read(Path(path)).about["regions"]}


def with_gradients(model: Any, x: Any) -> Any:
    from benchmarks import _models

    return _models.run_once(model, x, train=True)


def regions(path: str) -> dict[str, Any]:
    """The forward graph and its compiled regions, without what is around them."""
    import torch  # noqa: F401

    gc.collect()  # else loading more regions than others meets a collection of all that torch made
    started, cpu = time.perf_counter(), time.process_time()
    from regional_inductor.packing import Unpacker
    from regional_inductor.saved_file import read

    imported, imported_cpu = time.perf_counter(), time.process_time()
    file = read(Path(path))
    unpacker = Unpacker(file.parts)
    names = [name for name in file.parts if name.startswith("graph ")]
    unpacker.graph(names[0].removeprefix("graph "))
    ended, ended_cpu = time.perf_counter(), time.process_time()
    return {
        "seconds": ended - imported,
        "CPU seconds": ended_cpu - imported_cpu,
        "our imports, seconds": imported - started,
        "our imports, CPU seconds": imported_cpu - cpu,
        "modules of Inductor and Dynamo": _count_compiler_modules(),
    }


def _count_compiler_modules() -> int:
    return sum(name.startswith(("torch._inductor", "torch._dynamo")) for name in sys.modules)


def function(path: str, layers: int, distinct: bool) -> dict[str, Any]:
    """`ri.load`, after the imports that any use of Dynamo and AOTAutograd needs."""
    import torch

    import regional_inductor as ri
    from benchmarks import _models

    shape = _models.Shape(layers, distinct=distinct)
    model, eager = _models.Llama(shape), _models.Llama(shape)
    x = _models.inputs(shape, train=True)
    expected = with_gradients(eager, x).clone()
    started, cpu = time.perf_counter(), time.process_time()
    import torch._dynamo.aot_compile
    import torch._functorch.aot_autograd

    imported, imported_cpu = time.perf_counter(), time.process_time()
    ri.load(path, model)
    loaded, loaded_cpu = time.perf_counter(), time.process_time()
    actual = with_gradients(model, x).clone()
    first = time.process_time()
    with_gradients(model, x)
    second = time.process_time()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    return {
        "seconds": loaded - imported,
        "CPU seconds": loaded_cpu - imported_cpu,
        "imports, seconds": imported - started,
        "imports, CPU seconds": imported_cpu - cpu,
        "first call over the second, CPU seconds": (first - loaded_cpu) - (second - first),
    }
