"""Fuzzing: random programs with random marks, compiled and eager, forward and backward.

usage: python -m tests.fuzz [--programs N] [--seed S] [--jobs J] [--compiled SHARE] [--numerics KIND]
           [--through ENTRY] [--device cpu] [--minutes M]

A program that differs from eager is shrunk, printed and written to `fuzz-failures/`. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from .comparing import Difference, EagerFails, check
from .programs import Program, programs

_FAILURES = Path("fuzz-failures")


@dataclass
class Tally:
    """How programs came out."""

    equal: int = 0
    compiled: int = 0
    """Of the equal ones, those whose regions Inductor compiled."""
    equal_stock: int = 0
    fails: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.equal + other.equal,
            self.compiled + other.compiled,
            self.equal_stock + other.equal_stock,
            self.fails + other.fails,
        )

    def __str__(self) -> str:
        return (
            f"{self.equal} programs equal eager, {self.compiled} of them compiled by Inductor; "
            f"{self.equal_stock} equal stock aot_eager, which differs from eager; "
            f"{self.fails} fail in eager"
        )


def fuzz(
    count: int, number: int, region_backend: str, arguments: argparse.Namespace, tally: Tally
) -> None:
    """Try programs until one differs or all are done, and count them."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(
        programs(numerics=arguments.numerics, device=arguments.device, through=arguments.through)
    )
    def attempt(program: Program) -> None:
        try:
            equals = check(program, region_backend)
        except EagerFails:
            tally.fails += 1
            return
        tally.equal += equals == "eager"
        tally.equal_stock += equals == "aot_eager"
        tally.compiled += equals == "eager" and region_backend == "inductor"

    attempt()


def worker(arguments: argparse.Namespace) -> int:
    compiled = round(arguments.programs * arguments.compiled)
    tally, failed = Tally(), 0
    for count, backend in ((arguments.programs - compiled, "eager"), (compiled, "inductor")):
        if not count:
            continue
        try:
            fuzz(count, arguments.seed, backend, arguments, tally)
        except Difference as found:
            failed += 1
            text = f"# region_backend={backend} seed={arguments.seed}\n{found}\n"
            _FAILURES.mkdir(exist_ok=True)
            path = _FAILURES / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
            path.write_text(text)
            print(text, f"written to {path}", sep="\n", flush=True)
    if arguments.tally:
        Path(arguments.tally).write_text(json.dumps(asdict(tally)))
    print(f"seed {arguments.seed}: {tally}", flush=True)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--compiled", type=float, default=0.2, help="share that Inductor compiles")
    parser.add_argument("--numerics", choices=("default", "eager"), default="default")
    parser.add_argument(
        "--through",
        choices=("compile", "drop-in", "halves"),
        default="compile",
        help="ri.compile, the drop-in pass as AOTAutograd's compilers, or that in its two halves",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="start no further programs after these")
    parser.add_argument("--tally", help=argparse.SUPPRESS)  # where a worker writes its counts
    arguments = parser.parse_args()
    os.environ["REGIONAL_INDUCTOR_CACHE"] = "0"  # what was compiled by an earlier state of the code
    if arguments.jobs == 1:
        return worker(arguments)
    return _in_processes(arguments)


def _in_processes(arguments: argparse.Namespace) -> int:
    """A process for each fifty programs: what torch keeps of each capture stays small."""
    started, share = time.perf_counter(), 50
    seeds = iter(range(arguments.seed, arguments.seed + -(-arguments.programs // share)))
    end = started + 60 * arguments.minutes if arguments.minutes else math.inf
    running: list[subprocess.Popen[bytes]] = []
    failed: list[int] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-tallies-") as tallies:
        while True:
            while (
                len(running) < arguments.jobs
                and time.perf_counter() < end
                and (next_seed := next(seeds, None)) is not None
            ):
                command = [sys.executable, "-m", "tests.fuzz", f"--programs={share}"]
                command += [f"--seed={next_seed}", f"--compiled={arguments.compiled}"]
                command += [f"--numerics={arguments.numerics}", f"--device={arguments.device}"]
                command += [f"--through={arguments.through}"]
                command += [f"--tally={tallies}/{next_seed}.json"]
                # Programs are small: threads would only wait for each other.
                one = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
                running.append(subprocess.Popen(command, env={**one, **os.environ}))
            if not running:
                break
            finished = [process for process in running if process.poll() is not None]
            running = [process for process in running if process not in finished]
            failed += [process.returncode for process in finished if process.returncode]
            time.sleep(0.2)
        counted = [Tally(**json.loads(path.read_text())) for path in Path(tallies).iterdir()]
    minutes = (time.perf_counter() - started) / 60
    total = sum(counted, Tally())
    print(f"{total}; {len(failed)} of {len(counted)} seeds failed, {minutes:.1f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
