"""Importing the package adds next to nothing to importing torch.

Milliseconds of `import regional_inductor` after `import torch`, each in a process of its own, forked from one that
has imported torch and nothing else; beside it what the modules behind `torch.compile` take there. PyTorch's pass
is a part of `import torch` already.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import TORCH, alternate, in_forked_process, median, say
from benchmarks._outcome import Outcome, Row, Target

MODULES = {
    "regional_inductor": "regional_inductor",
    "regional_inductor.backend": "with its compiler, regional_inductor.backend",
    "torch._dynamo": "torch._dynamo",
    "torch._inductor.compile_fx": "torch._inductor.compile_fx",
}
QUICK = ("regional_inductor", "regional_inductor.backend")


def main(quick: bool) -> Outcome:
    modules = [m for m in MODULES if not quick or m in QUICK]
    added: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="regional-inductor-bench-") as folder:
        found = _alternating(modules, added, Path(folder, "cache"))
    return _outcome(modules, found, added)


def _alternating(
    modules: list[str], added: dict[str, dict[str, Any]], cache: Path
) -> dict[str, list[float]]:
    """Milliseconds of each import, by module; what the last one of each added goes into `added`."""

    def measured(module: str) -> float:
        say(f"import_time: {module}")
        added[module] = in_forked_process(
            "import_time:measure", cache=cache, prepare=TORCH, module=module
        )
        if "error" in added[module]:
            raise RuntimeError(f"import {module}: {added[module]['error']}")
        return float(added[module]["ms"])

    # The first import of a module compiles its bytecode; it is not counted. Others are imported by the last.
    for module in dict.fromkeys((QUICK[-1], modules[-1])):
        measured(module)
    return alternate({m: (lambda m=m: measured(m)) for m in modules}, 3)


def _outcome(
    modules: list[str], found: dict[str, list[float]], added: dict[str, dict[str, Any]]
) -> Outcome:
    rows: list[Row] = [
        {
            "import": MODULES[m],
            "ms": median(found[m]),
            "modules": added[m]["modules"],
            "Inductor": added[m]["inductor"],
            "Dynamo": added[m]["dynamo"],
        }
        for m in modules
    ]
    ours = added["regional_inductor"]
    return Outcome(
        {"after `import torch`": rows},
        [
            Target(
                "import regional_inductor", median(found["regional_inductor"]), 30, "lower", "ms"
            ),
            Target(
                "modules of Inductor and Dynamo it imports",
                float(ours["inductor"] + ours["dynamo"]),
                0,
                "lower",
            ),
        ],
    )


def measure(module: str) -> dict[str, Any]:
    """In a process that has imported torch and nothing of this."""
    import torch  # noqa: F401 - what the import comes on top of

    before = set(sys.modules)
    assert module not in before
    start = time.perf_counter()
    importlib.import_module(module)
    seconds = time.perf_counter() - start
    added = set(sys.modules) - before
    return {
        "ms": seconds * 1e3,
        "modules": len(added),
        "inductor": sum(name.startswith("torch._inductor") for name in added),
        "dynamo": sum(name.startswith("torch._dynamo") for name in added),
    }
