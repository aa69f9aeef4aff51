"""Processes that share a folder of compiled regions and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BEFORE = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
import regional_inductor as ri
from support.counting import calls_of, compiler_runs
import torch._inductor.graph
torch.manual_seed(0)
"""
_AFTER = """
with compiler_runs() as runs, calls_of(torch._inductor.graph.GraphLowering, "codegen") as generated:
    values = main()
report = ri.last_report()
print(json.dumps({
    "values": [value.double().flatten().tolist() for value in values],
    "statuses": [region.status for region in report.regions] if report else [],
    "compilers": len(runs),
    "generated": len(generated),
    "seen": globals().get("seen", {}),
}))
"""


def shared_inductor_cache() -> Path:
    """The Inductor cache of the whole test run, for a process whose compiles aren't the point."""
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def environment(store: Path, inductor: Path, **more: str) -> dict[str, str]:
    """The variables of a process with a store of regions and an Inductor cache of its own."""
    return {
        **os.environ,
        "REGIONAL_INDUCTOR_CACHE": "1",
        "REGIONAL_INDUCTOR_CACHE_DIR": str(store),
        "TORCHINDUCTOR_CACHE_DIR": str(inductor),
        **more,
    }


def start(program: str, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process that runs a program whose `main` returns tensors."""
    tests = str(Path(__file__).parent.parent)
    code = _BEFORE.format(tests=tests) + program + _AFTER
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> dict[str, Any]:
    """What `main` returned, the statuses of the regions, and how often which compiler ran.

    `stderr` is there as well, for warnings, and `seen`, a variable that the program may set.
    """
    out, error = process.communicate(timeout=timeout)
    assert process.returncode == 0, error
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return {**result, "stderr": error}


def run(program: str, variables: Mapping[str, str]) -> dict[str, Any]:
    return finish(start(program, variables))
