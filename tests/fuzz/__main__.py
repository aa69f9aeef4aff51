"""Fuzzing: random programs with random marks, compiled and eager, forward and backward.

usage: python -m tests.fuzz [--programs N] [--seed S] [--jobs J] [--compiled SHARE] [--numerics KIND]

A program that differs from eager is shrunk, printed and written to `fuzz-failures/`. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from .comparing import Difference, EagerFails, check
from .programs import Program, programs

_FAILURES = Path("fuzz-failures")


def fuzz(count: int, number: int, region_backend: str, numerics: str) -> tuple[int, int]:
    """Try programs until one differs or all are done; how many were equal, how many set aside."""
    equal = aside = 0

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(programs(numerics=numerics))
    def attempt(program: Program) -> None:
        nonlocal equal, aside
        try:
            compared = check(program, region_backend)
        except EagerFails:
            compared = False
        equal, aside = equal + compared, aside + (not compared)

    attempt()
    return equal, aside


def worker(arguments: argparse.Namespace) -> int:
    compiled = round(arguments.programs * arguments.compiled)
    equal = aside = 0
    for count, backend in ((arguments.programs - compiled, "eager"), (compiled, "inductor")):
        if not count:
            continue
        try:
            counts = fuzz(count, arguments.seed, backend, arguments.numerics)
            equal, aside = equal + counts[0], aside + counts[1]
        except Difference as found:
            text = f"# region_backend={backend} seed={arguments.seed}\n{found}\n"
            _FAILURES.mkdir(exist_ok=True)
            path = _FAILURES / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
            path.write_text(text)
            print(text, f"written to {path}", sep="\n", flush=True)
            return 1
    print(
        f"seed {arguments.seed}: {equal} programs equal eager, {aside} set aside "
        f"(eager fails or stock aot_eager differs), {compiled} compiled",
        flush=True,
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--compiled", type=float, default=0.2, help="share that Inductor compiles")
    parser.add_argument("--numerics", choices=("default", "eager"), default="default")
    arguments = parser.parse_args()
    if arguments.jobs == 1:
        return worker(arguments)
    # A process for each hundred programs: what torch keeps of each capture stays small.
    return _in_processes(arguments)


def _in_processes(arguments: argparse.Namespace) -> int:
    started, share = time.perf_counter(), 100
    seeds = iter(range(arguments.seed, arguments.seed + -(-arguments.programs // share)))
    running: list[subprocess.Popen[bytes]] = []
    failed = done = 0
    while True:
        while len(running) < arguments.jobs and (next_seed := next(seeds, None)) is not None:
            command = [sys.executable, "-m", "tests.fuzz", f"--programs={share}"]
            command += [f"--seed={next_seed}", f"--compiled={arguments.compiled}"]
            command += [f"--numerics={arguments.numerics}"]
            running.append(subprocess.Popen(command, env=os.environ))
        if not running:
            break
        finished = [process for process in running if process.poll() is not None]
        running = [process for process in running if process not in finished]
        failed += sum(process.returncode != 0 for process in finished)
        done += sum(process.returncode == 0 for process in finished)
        time.sleep(0.2)
    minutes = (time.perf_counter() - started) / 60
    print(f"{done * share} programs equal eager, {failed} seeds failed, {minutes:.1f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
