"""Runs the benchmarks: `python -m benchmarks [--quick] [NAME ...]`.

Each one's rows are printed as a table and written to `benchmarks/results/NAME.json`, together with what the
machine was. A benchmark that fails is named at the end, and the others still run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import benchmarks

Row = Mapping[str, str | int | float]
RESULTS = Path(__file__).parent / "results"


def discover() -> list[str]:
    """The names of all benchmarks: every module of this package that is not private."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if not module.name.startswith("_")
    )


def main(argv: Sequence[str] | None = None) -> int:
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which ones (all): {', '.join(known) or 'none yet'}",
    )
    parser.add_argument("--quick", action="store_true", help="smaller and fewer cases")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")

    console = Console()
    if not known:
        console.print("There are no benchmarks yet.")
    failed = [name for name in arguments.names or known if not _run(name, arguments.quick, console)]
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


def _run(name: str, quick: bool, console: Console) -> bool:
    module = importlib.import_module(f"benchmarks.{name}")
    claim = (module.__doc__ or name).strip().splitlines()[0]
    start = time.perf_counter()
    try:
        rows = module.main(quick)
    except Exception:  # noqa: BLE001 - one failing benchmark leaves the others running
        traceback.print_exc()
        return False
    console.print(table_of(f"{name}: {claim}", rows))
    RESULTS.mkdir(exist_ok=True)
    record = {
        "benchmark": name,
        "claim": claim,
        "quick": quick,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "rows": list(rows),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    return True


def table_of(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key, value in (rows[0] if rows else {}).items():
        table.add_column(key, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(
            *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    return table


def machine() -> dict[str, str | int]:
    """What the figures depend on, without anything that names the machine."""
    import torch

    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count() or 0,
    }


if __name__ == "__main__":
    sys.exit(main())
