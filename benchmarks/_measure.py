"""How things are measured: alternating runs, fresh processes, memory, growth."""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _forking

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
    probed: bool = False,
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
        probed: Whether to put into that folder what Inductor finds out about the processor, which takes
            several runs of the C++ compiler; for what counts nothing before the first compile.
        timeout: Seconds after which the process is ended.
        log: A file to which its standard error goes, after a line that names the call.
        **arguments: What the function gets.

    Returns:
        What the function returned; `{"error": last line of its standard error}` if it failed.
    """
    variables = {**os.environ, **_settings(cache)}
    # Installed packages have their bytecode beside them: ours too, whatever this shell says.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    variables |= environment or {}
    if probed and cache is not None:
        shutil.copytree(_server(COMPILERS).folder, cache, dirs_exist_ok=True)
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
    return _result(done.stdout, done.stderr, done.returncode)


def _settings(cache: Path | None) -> dict[str, str]:
    """What makes a process use Inductor's cache folder and our store in it; without one, no store."""
    if cache is None:
        return {"REGIONAL_INDUCTOR_CACHE": "0"}
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "REGIONAL_INDUCTOR_CACHE_DIR": str(cache / "regions"),
        "REGIONAL_INDUCTOR_CACHE": "1",
    }


def _result(output: str, errors: str, code: int) -> dict[str, Any]:
    for line in reversed(output.splitlines()):
        if line.startswith('{"result"'):
            result: dict[str, Any] = json.loads(line)["result"]
            return result
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return {"error": lines[-1] if lines else f"exit code {code}"}


def _keep(log: Path | None, request: str, text: str | bytes | None) -> None:
    if log is not None:
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
        with log.open("a") as file:
            file.write(f"=== {request}\n{shown.rstrip()}\n")


# --- forked processes -----------------------------------------------------------------------------


COMPILERS = "_peers:prepare_compilers"
TORCH = "_peers:import_torch"
TRANSFORMERS = "_peers:import_transformers"


def in_forked_process(
    function: str,
    *,
    cache: Path,
    environment: Mapping[str, str] | None = None,
    prepare: str = COMPILERS,
    timeout: float = 900,
    **arguments: Any,
) -> Any:
    """Like `in_fresh_process`, without some imports: the process is forked from one that has made them.

    For what counts neither these imports nor resident memory.

    Args:
        function: As there.
        cache: Its cache folder; a file with what it said comes to lie beside it.
        environment: As there.
        prepare: Called once in the process that is forked; `COMPILERS` makes all imports, lets Inductor
            find out which vector instructions there are, which takes several runs of the C++ compiler,
            and compiles something unrelated in each way.
        timeout: As there.
        **arguments: As there.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    output = _output_of(cache)
    request = {
        "function": function,
        "arguments": arguments,
        "environment": {**_settings(cache), **(environment or {})},
        "output": output,
    }
    return _result_in(output, _server(prepare).run(request, timeout), timeout)


def fork_from_here(folder: str, timeout: float = 900) -> dict[str, Any] | None:
    """Fork a process that goes on from where this one is, and wait for it.

    In a process that `in_forked_process` started, whose function the new process returns from too.

    Args:
        folder: The new process's cache folder, as `cache` in `in_forked_process`.
        timeout: As there.

    Returns:
        In the new process None; in this one what the function returned there.
    """
    output = _output_of(Path(folder))
    process = _forking.fork(_settings(Path(folder)), output)
    if process == 0:
        signal.alarm(math.ceil(timeout))
        return None
    return _result_in(output, _forking.exit_code(process), timeout)


def _output_of(cache: Path) -> str:
    return str(cache.parent / f"{cache.name} output")


def _result_in(output: str, code: int, timeout: float) -> dict[str, Any]:
    if code in (-signal.SIGKILL, -signal.SIGALRM):
        return {"error": f"killed, after {timeout:.0f} s at the latest"}
    text = Path(output).read_text(errors="replace")
    return _result(text, text, code)


@dataclass(frozen=True)
class _Server:
    """The process that forks others, and its cache folder, where only the probe of the processor is.

    What it compiles lies beside it.
    """

    process: subprocess.Popen[str]
    folder: str

    @staticmethod
    def started(prepare: str) -> _Server:
        """Once it has called the function `prepare`, `module:name` in this package."""
        folder = str(Path(tempfile.mkdtemp(prefix="regional-inductor-bench-"), "probe"))
        os.mkdir(folder)
        # With more than one thread of numpy's there would be one that a forked process lacks.
        variables = {**os.environ, **_settings(Path(folder)), "OPENBLAS_NUM_THREADS": "1"}
        variables.pop("PYTHONDONTWRITEBYTECODE", None)  # as in `in_fresh_process`
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._forking", prepare],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=variables,
        )
        server = _Server(process, folder)
        assert server.answer() == "ready"
        return server

    def run(self, request: Mapping[str, Any], timeout: float) -> int:
        """The exit status of a process forked for a request; it is killed when time is up."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        late = threading.Timer(timeout, os.kill, (int(self.answer()), signal.SIGKILL))
        late.start()
        try:
            return int(self.answer())
        finally:
            late.cancel()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the process that forks others has ended")
        return line

    def end(self) -> None:
        self.process.communicate()  # closes its standard input
        shutil.rmtree(Path(self.folder).parent, ignore_errors=True)


_servers: dict[str, _Server] = {}
_starting = threading.Lock()


def _server(prepare: str) -> _Server:
    """Started when it is first needed, and ended with this process."""
    with _starting:
        if prepare not in _servers:
            _servers[prepare] = _Server.started(prepare)
            atexit.register(_servers[prepare].end)
        return _servers[prepare]


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
