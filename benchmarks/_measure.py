"""How things are measured: alternating runs, fresh processes, memory, growth."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def alternate(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure several ways in turn, each second round backwards, so that drift hits all alike.

    Args:
        ways: What to run by name; each returns its own figure.
        repeats: Rounds.

    Returns:
        For each way its figures, in the order they were taken.
    """
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            figures[name].append(ways[name]())
    return figures


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def ratio(a: float | None, b: float | None) -> float | None:
    """`a / b`, or None where either is missing."""
    return a / b if a is not None and b else None


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def exponent(sizes: Sequence[float], figures: Sequence[float]) -> float | None:
    """The `e` of the best fit of `figure = c * size ** e` (least squares of the logarithms)."""
    if len(sizes) < 2:
        return None
    xs, ys = [math.log(s) for s in sizes], [math.log(f) for f in figures]
    mx, my = statistics.fmean(xs), statistics.fmean(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum(
        (x - mx) ** 2 for x in xs
    )


# --- fresh processes ------------------------------------------------------------------------------


def in_fresh_process(
    function: str,
    *,
    cache: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 900,
    log: Path | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Call a function of a benchmark in a process of its own.

    Args:
        function: `module:name`, the module in this package; it takes `arguments` and returns what
            JSON can hold.
        cache: Inductor's cache folder for the process; our store of regions is in it. Without one,
            no store is used.
        environment: More environment variables.
        timeout: Seconds after which the process is ended.
        log: A file to which its standard error goes, after a line that names the call.
        **arguments: What the function gets.

    Returns:
        What the function returned; `{"error": last line of its standard error}` if it failed.
    """
    variables = {**os.environ, "REGIONAL_INDUCTOR_CACHE": "0"}
    # Installed packages have their bytecode beside them: ours too, whatever this shell says.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    if cache is not None:
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        variables["REGIONAL_INDUCTOR_CACHE_DIR"] = str(cache / "regions")
        variables["REGIONAL_INDUCTOR_CACHE"] = "1"
    variables |= environment or {}
    request = json.dumps({"function": function, "arguments": arguments})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._worker", request],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=variables,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as late:
        _keep(log, request, late.stderr)
        return {"error": f"ended after {timeout:.0f} s"}
    _keep(log, request, done.stderr)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"result"'):
            result: dict[str, Any] = json.loads(line)["result"]
            return result
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return {"error": lines[-1] if lines else f"exit code {done.returncode}"}


def _keep(log: Path | None, request: str, text: str | bytes | None) -> None:
    if log is not None:
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
        with log.open("a") as file:
            file.write(f"=== {request}\n{shown.rstrip()}\n")


def say(message: str) -> None:
    """Progress, on standard error: a suite of twenty minutes should show that it lives."""
    print(f"  {message}", file=sys.stderr, flush=True)


# --- memory ---------------------------------------------------------------------------------------

# glibc keeps what is freed below a threshold that grows as it runs; a fixed one gives pages back at
# once, so that resident memory follows what is allocated.
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident_mb() -> float:
    return _status("VmRSS")


def peak_mb() -> float:
    """The most that was resident since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")
