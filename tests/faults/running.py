"""Running the subject in processes of its own, with folders and a compiler of its own."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LIMIT = 600.0

# Stands for the compiler: does what FAULT says where a library is made, else what the real one does.
COMPILER = """#!/bin/sh
case "$*" in
*--version*|*-print*|*-dumpversion*|*" -E "*) exec {real} "$@" ;;
esac
output=
previous=
for argument in "$@"; do
    [ "$previous" = -o ] && output=$argument
    previous=$argument
done
case "$output" in *.so) ;; *) exec {real} "$@" ;; esac
case "$FAULT" in
fails) echo "internal compiler error: no luck" >&2; exit 1 ;;
killed) kill -9 $$ ;;
half-writes) {real} "$@" && truncate -s 5000 "$output"; exit 0 ;;
writes-nothing) exit 0 ;;
hangs) echo $$ >> {folder}/compiling; sleep 600 ;;
waits) echo $$ >> {folder}/compiling; sleep 3 ;;
esac
exec {real} "$@"
"""


@dataclass
class Subject:
    """A place to run the subject in.

    Attributes:
        folder: Holds the caches and the compiler.
    """

    folder: Path

    def __post_init__(self) -> None:
        real = shutil.which(os.environ.get("CXX", "g++")) or "g++"
        compiler = self.folder / "g++"
        compiler.write_text(COMPILER.format(real=real, folder=self.folder))
        compiler.chmod(0o755)

    @property
    def caches(self) -> list[Path]:
        return [self.folder / "inductor", self.folder / "regions"]

    def take(self, other: Subject) -> None:
        """Copy another one's caches."""
        for theirs, ours in zip(other.caches, self.caches, strict=True):
            if theirs.exists():
                shutil.copytree(theirs, ours)

    def environment(self, **more: str) -> dict[str, str]:
        inductor, regions = self.caches
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "TORCHINDUCTOR_CACHE_DIR": str(inductor),
            "REGIONAL_INDUCTOR_CACHE": "1",
            "REGIONAL_INDUCTOR_CACHE_DIR": str(regions),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "CXX": str(self.folder / "g++"),
            "FAULT": "",
            **more,
        }

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        options = {key: more.pop(key) for key in ("preexec_fn", "start_new_session") if key in more}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.subject", *arguments],
            env=self.environment(**more),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *arguments: str, **more: Any) -> dict[str, Any]:
        """Run to the end; gives what it printed, which must be a result."""
        return finished(self.start(*arguments, **more))

    def wait_for_compiler(self) -> None:
        """Until the compiler has been started, by a fault that says so."""
        deadline = time.monotonic() + LIMIT
        while not (self.folder / "compiling").exists():
            assert time.monotonic() < deadline, "no compiler was started"
            time.sleep(0.02)


def give_up_roots_rights() -> None:
    """To be called in a child before it runs its program: root may write everywhere, and now it may not."""
    libc = ctypes.CDLL(None)
    for capability in _RIGHTS:
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # says no to other users, who have none


_PR_CAPBSET_DROP = 24
_RIGHTS = (1, 2, 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=LIMIT)
    results = [line for line in out.splitlines() if line.startswith("RESULT ")]
    assert process.returncode == 0, f"exit code {process.returncode}\n{err[-3000:]}"
    assert results, err[-3000:]
    return json.loads(results[0].removeprefix("RESULT "))


def assert_works(result: dict[str, Any]) -> None:
    """Everything is compiled, or was found compiled, and right."""
    assert result["equal"], result
    assert set(result["statuses"]) <= {"compiled", "shared", "memory", "disk"}, result
    assert result["warnings"] == [], result


def files_of(subject: Subject, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    return [
        path
        for folder in subject.caches
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(suffixes)
    ]
