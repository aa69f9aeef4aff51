"""A second process on the same machine starts nearly as fast as without any code generation.

Seconds from a built model to the end of its first training step: the demo's model and its marks, forward
and backward, each start in a process of its own, forked from one that has imported torch and transformers. What a process imports on the way (Dynamo, AOTAutograd,
Inductor where it is needed) counts. A cold start has empty caches.
A warm one has what the cold one of the same way left; `regions only` has the folder of compiled regions and
an empty cache of Inductor; `loaded from a file` has what `ri.save` wrote after the cold start, and no cache at all. Wall time and CPU time, all cores together; losses and gradients
are compared with eager in every run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import TRANSFORMERS, in_forked_process, median, ratio, say
from benchmarks._outcome import Outcome, Row, Target

WAYS = {
    "aot_eager": "aot_eager",
    "torch_compile": "torch.compile",
    "pytorch_pass": "PyTorch's pass",
    "regional_inductor": "ours",
}
QUICK_STARTS = {"aot_eager": ("cold",), "regional_inductor": ("cold", "regions only")}
FROM_FILE = "loaded from a file"
# Folders of Inductor's cache and of our regions.
STARTS = {
    "cold": ("first", "regions"),
    "warm": ("first", "regions"),
    "regions only": ("new", "regions"),
    FROM_FILE: ("none", "no regions"),
}
OURS_ONLY = ("regions only", FROM_FILE)
# What the targets compare; the other ways start once.
REPEATED = (("aot_eager", "warm"), ("regional_inductor", "regions only"))
REPEATS = 2
# On disk: its first start, with empty caches, is its cold one and as good a warm one as any other.
LEAVES_NOTHING = "aot_eager"
TOLERANCE = 1e-4


def main(quick: bool) -> Outcome:
    ways = QUICK_STARTS if quick else dict.fromkeys(WAYS, tuple(STARTS))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        for way, starts in ways.items():
            for start in starts:
                if start == "warm" and way == LEAVES_NOTHING:
                    continue
                if start not in OURS_ONLY or way == "regional_inductor":
                    found[way, start] = [_start(way, start, Path(folder, way), 0)]
        found[LEAVES_NOTHING, "warm"] = [*found[LEAVES_NOTHING, "cold"]]
        for number in range(1, 1 if quick else REPEATS):
            for way, start in REPEATED if number % 2 == 0 else reversed(REPEATED):
                found[way, start].append(_start(way, start, Path(folder, way), number))
    rows = [_row(way, start, runs) for (way, start), runs in sorted(found.items())]
    return Outcome(
        {"seconds to the end of the first training step": rows},
        _targets(found),
        [
            (
                f"Medians of {REPEATS} where the targets compare, one start of each elsewhere. aot_eager "
                "captures and differentiates, and runs everything eagerly; it leaves nothing on disk, so its cold "
                "start is one of its warm ones, too."
            )
        ],
    )


def _start(way: str, start: str, folder: Path, number: int) -> dict[str, Any]:
    say(f"start: {WAYS[way]}, {start}")
    cache, regions = STARTS[start]
    file = str(folder / "model.ri") if way == "regional_inductor" else None
    return in_forked_process(
        "start:measure",
        prepare=TRANSFORMERS,
        cache=folder / (f"{cache} {number}" if start in OURS_ONLY else cache),
        environment={"REGIONAL_INDUCTOR_CACHE_DIR": str(folder / regions)},
        way=way,
        load=file if start == FROM_FILE else None,
        save=file if start == "cold" else None,
    )


# What the README calls each way, and the starts that count as warm there.
_IN_THE_README = {
    ("regional_inductor", "warm"): "regional-inductor",
    (
        "regional_inductor",
        "regions only",
    ): "the same, with the store but an empty cache of Inductor's",
    ("regional_inductor", FROM_FILE): "the same, loaded from a file that `ri.save` wrote",
    ("pytorch_pass", "warm"): "PyTorch's own pass",
    ("torch_compile", "warm"): "`torch.compile` (whole model)",
    ("aot_eager", "warm"): '`torch.compile(backend="aot_eager")`, which compiles nothing',
}


def summary(tables: dict[str, list[Row]]) -> list[str]:
    """The README's table: cold and warm seconds, and each as a ratio to ours."""
    (rows,) = tables.values()
    seconds = {(row["way"], row["start"]): row["seconds"] for row in rows}
    ours = {start: seconds[WAYS["regional_inductor"], start] for start in ("cold", "warm")}
    lines = ["| | cold | of ours | warm | of ours |", "|---|---:|---:|---:|---:|"]
    for (way, start), name in _IN_THE_README.items():
        cold = seconds.get((WAYS[way], "cold")) if start == "warm" else None
        cells = [*_cells(cold, ours["cold"]), *_cells(seconds[WAYS[way], start], ours["warm"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cells(seconds: float | None, ours: float | None) -> tuple[str, str]:
    of_ours = ratio(seconds, ours)
    return (
        "" if seconds is None else f"{seconds:.1f}",
        "" if of_ours is None else f"{of_ours:.2f}",
    )


def _row(way: str, start: str, runs: list[dict[str, Any]]) -> Row:
    row: dict[str, Any] = {
        "way": WAYS[way],
        "start": start,
        "seconds": _median(runs, "seconds"),
        "CPU seconds": _median(runs, "cpu"),
        "regions compiled": _median(runs, "compiled"),
        "regions from disk": _median(runs, "disk"),
    }
    errors = [run["error"] for run in runs if "error" in run]
    if errors:
        row["error"] = errors[0]
    return row


def _median(runs: list[dict[str, Any]], field: str) -> float | None:
    return median([run[field] for run in runs if run.get(field) is not None])


def _targets(found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[Target]:
    def of(way: str, start: str, field: str) -> float | None:
        return _median(found.get((way, start), []), field)

    return [
        Target(
            f"{label}, ours from disk against aot_eager",
            ratio(of("regional_inductor", "regions only", field), of("aot_eager", "warm", field)),
            1.2,
            "lower",
            "x",
        )
        for label, field in (("start", "seconds"), ("start, CPU time", "cpu"))
    ]


def measure(way: str, load: str | None = None, save: str | None = None) -> dict[str, Any]:
    """One start in this process.

    Args:
        way: One of `WAYS`.
        load: A file to load instead of compiling.
        save: A file to write afterwards.
    """
    import torch
    import transformers  # noqa: F401 - its import is not what is measured

    import regional_inductor as ri
    from benchmarks import _peers
    from regional_inductor import demo_worker
    from regional_inductor.demo import Settings

    settings = Settings()
    model = demo_worker.build_model(settings)
    batch = torch.randint(256, (settings.batch, settings.sequence))
    eager = demo_worker.compile_step("eager", model)
    expected = demo_worker.loss_and_gradients(model, eager, batch)
    if way != "torch_compile" and load is None:
        demo_worker.mark(model)
    started, cpu = time.perf_counter(), time.process_time()
    if load is not None:
        ri.load(load, model)
        step = demo_worker.compile_step("eager", model)
    elif way == "aot_eager":
        compiled = torch.compile(model, backend="aot_eager")
        step = lambda batch: compiled(input_ids=batch, labels=batch).loss  # noqa: E731
    else:
        step = demo_worker.compile_step(way, model)
    loss = step(batch)
    loss.backward()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    actual = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert actual.keys() == expected[1].keys()
    differences = [demo_worker.relative_difference(loss.detach(), expected[0])]
    differences += [
        demo_worker.relative_difference(gradient, expected[1][name])
        for name, gradient in actual.items()
    ]
    assert demo_worker.largest(differences) <= TOLERANCE, f"differs by {max(differences):.1e}"
    compiled_here = way == "regional_inductor" and load is None
    statuses = _peers.statuses_of_last_report() if compiled_here else None
    if save is not None:
        ri.save(model, save)
    return {
        "seconds": seconds,
        "cpu": cpu,
        "compiled": statuses and statuses.count("compiled"),
        "disk": statuses and statuses.count("disk"),
    }
