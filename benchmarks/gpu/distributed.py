"""FSDP2 and tensor parallelism on two GPUs: equal gradients, each region compiled once, communication as well hidden.

A bf16 Llama block stack (`_llama.py`) is trained on two ranks with regions (norms, RoPE and SwiGLU) and without, from the
same weights and on the same inputs; both ranks start with empty caches that they don't share on disk. "difference" is the
largest of any gradient, relative to the norm of the one without regions. "exposed, ms" is the time of a step in which a
NCCL kernel communicates on the first rank's device and no other kernel runs, "idle, ms" that in which no kernel runs at all (the
device waits for Python), "waiting, ms" that in which NCCL kernels only wait for the other rank, from kineto traces of both
ranks: a collective takes as long as on the rank that came to it last. Medians over steps, one of each model in turn;
"least" is the step with the least exposed. "prefetching" asks for the
weights of the next layer one layer earlier, as FSDP2 offers it to models whose Python can't stay ahead of the device.
"python, ms" is what Python takes until it has asked the device for all of a forward pass.
"compiles" and "fetched" are of both ranks together. "block by block" is the same stack without marks, each block compiled
whole by `torch.compile`.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._measure import ratio
from benchmarks._outcome import Outcome, Row, Target
from benchmarks.gpu._run import Run

RANKS = 2
WAYS = ("fsdp", "fsdp, prefetching", "tensor parallel")
MODELS = ("marked", "none", "block by block")
TOLERANCE = 0.03  # as in training.py: bfloat16's last bit is 2 ** -8
STEPS = 21
_SECRET = "benchmark" * 8  # of a job that is gone with this script


def main(run: Run) -> Outcome:
    rows: list[Row] = []
    steps: list[Row] = []
    for way in WAYS:
        found = run.fresh(
            "gpu.distributed:measure",
            f"distributed: {way}",
            way=way,
            layers=run.layers[0] if run.layers else 8,
            quick=run.quick,
        )
        if found is not None:
            models = found.pop("models", {})
            rows.append({"way": way, **found})
            steps += [
                {"way": way, "compiled": model, **{f"{what}, ms": ms for what, ms in seen.items()}}
                for model, seen in models.items()
            ]
    tables = {"two ranks": rows, "a step of the first rank": steps}
    return Outcome(tables, _targets(rows, steps), run.remarks())


def measure(way: str, layers: int, device: str, quick: bool = False) -> dict[str, Any]:
    """One way of spreading, in processes of its own, one a rank."""
    with tempfile.TemporaryDirectory(prefix="regional-inductor-ranks-") as folder:
        root = Path(folder)
        processes = []
        for rank in range(RANKS):
            own = {name: str(root / f"{name}-{rank}") for name in ("region", "inductor", "triton")}
            environment = {
                **os.environ,
                "REGIONAL_INDUCTOR_CACHE": "1",
                "REGIONAL_INDUCTOR_CACHE_KEY": _SECRET,
                "REGIONAL_INDUCTOR_CACHE_DIR": own["region"],
                "TORCHINDUCTOR_CACHE_DIR": own["inductor"],
                "TRITON_CACHE_DIR": own["triton"],
            }
            given = [str(rank), str(root / "meeting"), way, str(layers), device, str(int(quick))]
            command = [sys.executable, "-m", "benchmarks.gpu.distributed", *given]
            out = (root / f"{rank}.json").open("w")
            processes.append(subprocess.Popen(command, env=environment, stdout=out))
        try:
            _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        # Kineto may have written before it.
        lines = [(root / f"{rank}.json").read_text().splitlines()[-1] for rank in range(RANKS)]
        each = [json.loads(line) for line in lines]
    return _together(each)


def _wait(processes: list[subprocess.Popen[Any]]) -> None:
    """Until all have ended; the failure of one ends it, since the others would wait for it."""
    while any(process.poll() is None for process in processes):
        for rank, process in enumerate(processes):
            if process.poll():
                raise RuntimeError(f"rank {rank} ended with code {process.returncode}")
        time.sleep(0.2)


def _together(each: list[dict[str, Any]]) -> dict[str, Any]:
    regions = [region for one in each for region in one["regions"]]
    first = each[0]
    return {
        "difference": max(one["difference"] for one in each),
        "cold, s": max(one["cold"] for one in each),
        # Keys hold the GPU's number: what is the same work on both ranks has two.
        "distinct": max(len({key for key, _ in one["regions"]}) for one in each),
        "compiles": sum(status == "compiled" for _, status in regions),
        "fetched": sum(status == "fetched" for _, status in regions),
        "models": {model: first[model] for model in MODELS},
    }


def _targets(rows: list[Row], steps: list[Row]) -> list[Target]:
    targets = []
    exposed = {(row["way"], row["compiled"]): row["exposed, ms"] for row in steps}
    for row in rows:
        way = row["way"]
        compiles, distinct = row.get("compiles"), row.get("distinct")
        targets += [
            Target(f"{way}, gradients", row.get("difference"), TOLERANCE, "lower"),
            Target(f"{way}, compiles a region", ratio(compiles, distinct), 1.0, "lower", "x"),
            Target(
                f"{way}, exposed communication, against none marked",
                ratio(exposed.get((way, "marked")), exposed.get((way, "none"))),
                1.0,
                "lower",
                "x",
                "the trace: what is exposed are the first two all-gathers and the last two reduce-scatters",
            ),
        ]
    return targets


# ---- one rank ---------------------------------------------------------------------------------


def rank_main(rank: int, meeting: str, way: str, layers: int, device: str, quick: bool) -> None:
    """Train with regions and without; print what was seen, as JSON."""
    import torch

    import regional_inductor as ri
    from benchmarks.gpu._llama import Marks, Shape, build, training_step

    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=RANKS,
    )
    shape = Shape(layers, batch=8)
    if quick:
        shape = Shape(2, dim=64, heads=4, ffn=128, batch=2, sequence=32)
    models = []
    for name in MODELS:
        model, x = build(shape, Marks("parts") if name == "marked" else Marks(), device)
        models.append(_spread(model, way, device, by_block=name == "block by block"))
    if way.startswith("fsdp"):  # data parallel: each rank has inputs of its own
        torch.manual_seed(rank + 1)
        x = torch.randn_like(x)
    marked, without, by_block = models
    training_step(without, list(without.parameters()), x)
    expected = _gradients(without)
    compiled = ri.compile(marked, on_error="raise")
    steps = [
        partial(training_step, model, list(model.parameters()), x)
        for model in (compiled, without, by_block)
    ]
    _synchronize(device)
    start = time.perf_counter()
    steps[0]()
    _synchronize(device)
    cold = time.perf_counter() - start
    difference = max(
        float((a - b).norm() / b.norm().clamp_min(1e-12))
        for a, b in zip(_gradients(marked), expected, strict=True)
    )
    report = ri.last_report()
    assert report is not None
    regions = [(r.key, r.status) for r in report.regions if r.status != "eager"]
    for _ in range(2):
        for step in steps:
            step()
    found = [_profiled(steps, device) for _ in range(STEPS)]
    forwards = [partial(model, x) for model in (compiled, without, by_block)]
    ahead = [[_python(forward, device) for forward in forwards] for _ in range(STEPS)]
    seen = {
        name: {
            **{what: statistics.median(one[i][what] for one in found) for what in found[0][i]},
            "least exposed": min(one[i]["exposed"] for one in found),
            "python": statistics.median(one[i] for one in ahead),
        }
        for i, name in enumerate(MODELS)
    }
    torch.distributed.barrier()
    print(json.dumps({"difference": difference, "cold": cold, "regions": regions, **seen}))
    torch.distributed.destroy_process_group()


def _spread(model: Any, way: str, device: str, *, by_block: bool) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if by_block:
        for layer in model.layers:
            layer.compile()
    mesh = init_device_mesh(device, (RANKS,))
    if way.startswith("fsdp"):
        from torch.distributed.fsdp import fully_shard

        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        whole = fully_shard(model, mesh=mesh)
        if way == "fsdp, prefetching":
            whole.set_modules_to_forward_prefetch([model.layers[0]])
            for layer, following in itertools.pairwise(model.layers):
                layer.set_modules_to_forward_prefetch([following])
        return whole
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {name: ColwiseParallel() for name in ("q", "k", "v", "gate", "up")}
    for layer in model.layers:
        parallelize_module(layer, mesh, {**plan, "o": RowwiseParallel(), "down": RowwiseParallel()})
        layer.heads //= RANKS  # of this rank
    return model


def _gradients(model: Any) -> list[Any]:
    return [
        (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).float().cpu()
        for p in model.parameters()
    ]


def _python(forward: Any, device: str) -> float:
    """Milliseconds until Python has asked the device for all of a forward pass."""
    import torch

    torch.distributed.barrier()
    _synchronize(device)
    start = time.perf_counter()
    forward()
    milliseconds = (time.perf_counter() - start) * 1e3
    _synchronize(device)
    return milliseconds


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _profiled(steps: list[Any], device: str) -> list[dict[str, float]]:
    """Of one step each: its milliseconds, those in which it communicates, and those with nothing else."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_device = device == "cuda"
    activities = [ProfilerActivity.CUDA] if on_device else [ProfilerActivity.CPU]
    found = []
    for step in steps:
        torch.distributed.barrier()
        _synchronize(device)
        start = time.perf_counter()
        step()
        _synchronize(device)
        seconds = time.perf_counter() - start
        with profile(activities=activities) as recorded:
            # Within it: how long it takes to start differs, and the first collective would wait for the other rank.
            torch.distributed.barrier()
            _synchronize(device)
            step()
            _synchronize(device)
        kernels = [
            (event.name, event.time_range.start, event.time_range.end)
            for event in recorded.events()
            if not on_device or event.device_type == DeviceType.CUDA
        ]
        own = _without_the_barrier(kernels)
        each: list[Any] = [None] * RANKS
        torch.distributed.all_gather_object(each, durations(own))
        without_waits = trimmed(own, each)
        seen, waits = communication(without_waits), communication(own)
        found.append(
            {
                "step": seconds * 1e3,
                **seen,
                "idle": waits["idle"],
                "waiting": waits["communication"] - seen["communication"],
            }
        )
    return found


def durations(kernels: Iterable[tuple[str, float, float]]) -> dict[str, list[float]]:
    """What each kernel of NCCL took, by name, in their order."""
    found: dict[str, list[float]] = {}
    for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        if "nccl" in name.lower():
            found.setdefault(name, []).append(end - start)
    return found


def trimmed(
    kernels: Iterable[tuple[str, float, float]], each: Sequence[dict[str, list[float]]]
) -> list[tuple[str, float, float]]:
    """The kernels; those of NCCL begin when the last rank has come to them.

    Args:
        kernels: Of one rank.
        each: What `durations` gave on every rank; the nth of a name is the same collective everywhere.
    """
    seen: dict[str, int] = {}
    found = []
    for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        if "nccl" in name.lower():
            number = seen[name] = seen.get(name, -1) + 1
            start = max(start, end - min(one[name][number] for one in each))
        found.append((name, start, end))
    return found


def _without_the_barrier(kernels: Iterable[tuple[str, float, float]]) -> list[Any]:
    """The kernels after the first one of NCCL."""
    in_order = sorted(kernels, key=lambda kernel: kernel[1])
    end = next((end for name, _, end in in_order if "nccl" in name.lower()), 0.0)
    return [kernel for kernel in in_order if kernel[1] >= end]


def communication(kernels: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Milliseconds in which kernels of NCCL run, those in which nothing else does, and those in which nothing runs.

    Args:
        kernels: Names, starts and ends in microseconds, in any order; they may overlap.
    """
    events = []
    for name, start, end in kernels:
        ours = "nccl" in name.lower()
        events += [(start, 1, ours), (end, -1, ours)]
    running = {True: 0, False: 0}
    total = exposed = before = idle = 0.0
    for number, (when, change, ours) in enumerate(sorted(events)):
        if number and not running[True] and not running[False]:
            idle += when - before
        if running[True]:
            total += when - before
            if not running[False]:
                exposed += when - before
        running[ours] += change
        before = when
    return {"communication": total / 1e3, "exposed": exposed / 1e3, "idle": idle / 1e3}


if __name__ == "__main__":
    _rank, _meeting, _way, _layers, _device, _quick = sys.argv[1:]
    rank_main(int(_rank), _meeting, _way, int(_layers), _device, bool(int(_quick)))
