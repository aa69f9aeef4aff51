"""FSDP2 and tensor parallelism on two GPUs: equal gradients, each region compiled once, communication as well hidden.

A bf16 Llama block stack (`_llama.py`) is trained on two ranks with regions (norms, RoPE and SwiGLU) and without, from the
same weights and on the same inputs; both ranks start with empty caches that they don't share on disk. "difference" is the
largest of any gradient, relative to the norm of the one without regions. "exposed, ms" is the time of a step in which a
NCCL kernel runs on the first rank's device and no other kernel does, "idle, ms" that in which no kernel runs at all (the
device waits for Python), from a kineto trace: the median over steps, regions and none in turn. "prefetching" asks for the
weights of the next layer one layer earlier, as FSDP2 offers it to models whose Python can't stay ahead of the device.
"compiles" and "fetched" are of both ranks together.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks._measure import ratio
from benchmarks._outcome import Outcome, Row, Target
from benchmarks.gpu._run import Run

RANKS = 2
WAYS = ("fsdp", "fsdp, prefetching", "tensor parallel")
TOLERANCE = 0.03  # as in training.py: bfloat16's last bit is 2 ** -8
STEPS = 21
_SECRET = "benchmark" * 8  # of a job that is gone with this script


def main(run: Run) -> Outcome:
    rows: list[Row] = []
    for way in WAYS:
        found = run.fresh(
            "gpu.distributed:measure",
            f"distributed: {way}",
            way=way,
            layers=run.layers[0] if run.layers else 8,
            quick=run.quick,
        )
        if found is not None:
            rows.append({"way": way, **found})
    return Outcome({"two ranks": rows}, _targets(rows), run.remarks())


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
        "step, ms": first["with"]["step"],
        "step without, ms": first["without"]["step"],
        "exposed, ms": first["with"]["exposed"],
        "exposed without, ms": first["without"]["exposed"],
        "communication, ms": first["with"]["communication"],
        "communication without, ms": first["without"]["communication"],
        "idle, ms": first["with"]["idle"],
        "idle without, ms": first["without"]["idle"],
    }


def _targets(rows: list[Row]) -> list[Target]:
    targets = []
    for row in rows:
        way = row["way"]
        compiles, distinct = row.get("compiles"), row.get("distinct")
        targets += [
            Target(f"{way}, gradients", row.get("difference"), TOLERANCE, "lower"),
            Target(f"{way}, compiles a region", ratio(compiles, distinct), 1.0, "lower", "x"),
            Target(
                f"{way}, exposed communication, against none marked",
                ratio(row.get("exposed, ms"), row.get("exposed without, ms")),
                1.0,
                "lower",
                "x",
                "the trace: all-gathers of forward, in which the device waits for the host in each layer with "
                "regions and in the first ones without"
                if way != "tensor parallel"
                else "",
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
    models, steps = [], []
    for marks in (Marks(), Marks("parts")):
        model, x = build(shape, marks, device)
        models.append(_spread(model, way, device))
    if way.startswith("fsdp"):  # data parallel: each rank has inputs of its own
        torch.manual_seed(rank + 1)
        x = torch.randn_like(x)
    without, marked = models
    steps.append(lambda: training_step(without, list(without.parameters()), x))
    steps[0]()
    expected = _gradients(without)
    compiled = ri.compile(marked, on_error="raise")
    steps.append(lambda: training_step(compiled, list(marked.parameters()), x))
    _synchronize(device)
    start = time.perf_counter()
    steps[1]()
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
    seen = {
        name: {what: statistics.median(one[i][what] for one in found) for what in found[0][i]}
        for i, name in enumerate(("without", "with"))
    }
    torch.distributed.barrier()
    print(json.dumps({"difference": difference, "cold": cold, "regions": regions, **seen}))
    torch.distributed.destroy_process_group()


def _spread(model: Any, way: str, device: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

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
        found.append({"step": seconds * 1e3, **communication(_without_the_barrier(kernels))})
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
