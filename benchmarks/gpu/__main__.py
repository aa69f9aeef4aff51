"""Runs the measurements that need a CUDA device: `python -m benchmarks.gpu [NAME ...]`.

Tables and targets are printed and written to `--out` (`benchmarks/gpu/results/`): `NAME.json` with the date, the
machine and the command, `NAME.png` where matplotlib is installed, and `README.md` with all tables there. Standard
error of every process goes to `processes.log` there. What does not fit into `--seconds` is left out and named.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import pkgutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

import benchmarks.gpu
from benchmarks.__main__ import claim_of, draw, errors_in, machine, markdown, table_of
from benchmarks._outcome import Outcome
from benchmarks.gpu._run import Run
from benchmarks.gpu._ways import WAYS

RESULTS = Path(__file__).parent / "results"


def discover() -> list[str]:
    return sorted(
        module.name
        for module in pkgutil.iter_modules(benchmarks.gpu.__path__)
        if not module.name.startswith("_")
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.device == "cuda":
        problem = _no_device()
        if problem:
            print(problem, file=sys.stderr)
            return 1
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    run = Run(
        layers=tuple(arguments.layers),
        distinct=tuple(arguments.distinct),
        ways=tuple(arguments.ways),
        seconds=arguments.seconds,
        one_case=arguments.one_case,
        log=out / "processes.log",
        device=arguments.device,
        quick=arguments.quick,
    )
    console = Console() if sys.stdout.isatty() else Console(width=140)
    command = " ".join(["python -m benchmarks.gpu", *(argv if argv is not None else sys.argv[1:])])
    failed = [
        name for name in arguments.names or discover() if not _one(name, run, out, command, console)
    ]
    (out / "README.md").write_text(_page(out))
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*discover(), []], metavar="NAME", default=[])
    parser.add_argument(
        "--layers", type=_numbers, default=(), help="depths, as in 8,24; 0 for none"
    )
    parser.add_argument(
        "--distinct", type=_numbers, default=(), help="distinct blocks, as in 1,16; 0 for none"
    )
    parser.add_argument("--ways", type=_ways, default=(), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--seconds", type=float, default=3600, help="for everything together")
    parser.add_argument("--one-case", type=float, default=300, help="at most, for one process")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: do the scripts run?")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _ways(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such way: {', '.join(unknown)}")
    return names


def _no_device() -> str:
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        "These benchmarks need a CUDA device, and torch sees none here. "
        "--device cpu --quick tries the scripts out."
    )


def _one(name: str, run: Run, out: Path, command: str, console: Console) -> bool:
    module = importlib.import_module(f"benchmarks.gpu.{name}")
    start = time.perf_counter()
    run.left_out.clear()
    try:
        outcome: Outcome = module.main(run)
    except Exception:  # noqa: BLE001 - one failing benchmark leaves the others running
        traceback.print_exc()
        return False
    record = {
        "benchmark": name,
        "claim": claim_of(module),
        "how": "\n".join((module.__doc__ or "").strip().splitlines()[1:]).strip(),
        "quick": run.quick,
        "seconds": round(time.perf_counter() - start, 1),
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": {**machine(), **_device(run)},
        "tables": outcome.tables,
        "targets": [{**asdict(t), "verdict": t.verdict} for t in outcome.targets],
        "remarks": outcome.remarks,
    }
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    for title, rows in outcome.tables.items():
        console.print(table_of(f"{name}: {title}", rows))
    if outcome.targets:
        console.print(table_of("targets", [target.row() for target in outcome.targets]))
    for remark in outcome.remarks:
        console.print(remark, highlight=False)
    try:
        draw(module, outcome, out / f"{name}.png")
    except Exception:  # noqa: BLE001 - the figures are what matters
        traceback.print_exc()
    return not errors_in(outcome)


def _device(run: Run) -> dict[str, Any]:
    import torch

    if run.device != "cuda":
        return {"device": run.device}
    found = torch.cuda.get_device_properties(0)
    import triton

    return {
        "device": found.name,
        "device memory, GiB": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def _page(out: Path) -> str:
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    records = [record for record in records if "tables" in record]
    for record in records:
        found = record["machine"]
        record["remarks"] = [
            (
                f"{record['date']}, {found['device']}, torch {found['torch']}, {found['cpus']} cores: "
                f"`{record['command']}`"
            ),
            *record["remarks"],
        ]
    return f"# Results on a CUDA device\n\n{markdown(records)}"


if __name__ == "__main__":
    sys.exit(main())
