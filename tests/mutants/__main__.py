"""Plants each fault in a copy of the library and runs the tests that must notice it.

A fault whose tests aren't done within fifteen minutes counts as not noticed.

exit codes: 0 all were noticed; 1 some weren't, or a test fails without a fault
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .faults import FAULTS, Fault

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 900


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only faults whose name has one")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (%(default)s)")
    arguments = parser.parse_args()
    faults = [f for f in FAULTS if not arguments.words or any(w in f.name for w in arguments.words)]
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        ThreadPoolExecutor(arguments.jobs) as threads,
    ):
        tests = {fault.tests for fault in faults}
        sound = list(threads.map(lambda selected: is_sound(selected, Path(folder)), tests))
        noticed = list(threads.map(lambda fault: told(fault, Path(folder)), faults))
    print(f"{sum(noticed)} of {len(faults)} faults noticed")
    return 0 if all(noticed) and all(sound) else 1


def is_sound(tests: tuple[str, ...], folder: Path) -> bool:
    """Whether tests pass without a fault; what a verdict with one is worth hangs on it."""
    try:
        fine, problem = passes(tests, folder, None), "fails"
    except subprocess.TimeoutExpired:
        fine, problem = False, "is not done in time"
    if not fine:
        print(f"{problem} without any fault: {' '.join(tests)}", flush=True)
    return fine


def told(fault: Fault, folder: Path) -> bool:
    started = time.perf_counter()
    try:
        noticed = not passes(fault.tests, folder, fault)
        verdict = "noticed" if noticed else "NOT NOTICED"
    except subprocess.TimeoutExpired:
        noticed, verdict = False, "not done"
    print(f"{verdict}: {fault.name} ({time.perf_counter() - started:.0f} s)", flush=True)
    return noticed


def passes(tests: tuple[str, ...], folder: Path, fault: Fault | None) -> bool:
    """Whether tests pass with a copy of the library, with a fault in it."""
    already = filter(None, [os.environ.get("PYTHONPATH")])
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        shutil.copytree(
            ROOT / "src", Path(copy) / "src", ignore=shutil.ignore_patterns("__pycache__")
        )
        if fault is not None:
            plant(fault, Path(copy) / "src" / "regional_inductor")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-n",
                "0",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                *tests,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([f"{copy}/src", *already])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
    if done.returncode not in (0, 1):  # no tests, or a fault that isn't even a program
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.returncode == 0


def plant(fault: Fault, package: Path) -> None:
    path = package / fault.file
    path.write_text(path.read_text().replace(fault.old, fault.new, 1))


if __name__ == "__main__":
    sys.exit(main())
