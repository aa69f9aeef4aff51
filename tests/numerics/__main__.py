"""The table of docs/numerics.md.

usage: python -m tests.numerics [--device cpu] [--types float32,bfloat16] [--table FILE] [--at-once N] [--jobs J] [NAME ...]

Exit code: 0 where everything equals eager bit for bit, or differs by what torch captures only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from .cases import CASES, Case
from .running import Batch, Outcome, run_batch, take_a_device

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.numerics")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--types", default="float32,bfloat16")
    parser.add_argument(
        "--table", type=Path, help="a file that gets the table between two comments"
    )
    parser.add_argument("--at-once", type=int, default=12, help="cases in one graph")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("names", nargs="*", help="cases, by name; all without")
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.names or case.name in arguments.names]
    types = arguments.types.split(",")
    outcomes: dict[str, dict[str, Outcome]] = {}
    batches = [
        ([case.name for case in cases[start : start + arguments.at_once]], dtype, arguments.device)
        for dtype in types
        for start in range(0, len(cases), arguments.at_once)
    ]
    for dtype, found, seconds in _each(batches, arguments.jobs):
        for outcome in found:
            outcomes.setdefault(outcome.name, {})[dtype] = outcome
            left = f" ({', '.join(outcome.eager)})" if outcome.eager else ""
            print(f"{dtype:9} {outcome.name:24} {_words(outcome)}{left}", flush=True)
        print(f"  {seconds:.0f} s", file=sys.stderr, flush=True)
    summary = _summary(cases, outcomes, types, arguments.device)
    print(summary)
    if arguments.table:
        _write(arguments.table, f"{summary}\n\n{_table(cases, outcomes, types)}", arguments.device)
    wrong = [o for by_type in outcomes.values() for o in by_type.values() if o.unequal]
    return 1 if any(not outcome.by_capture for outcome in wrong) else 0


def _each(batches: Sequence[Batch], jobs: int) -> Iterator[tuple[str, list[Outcome], float]]:
    """Each batch's type, outcomes and seconds, as they come."""
    if jobs == 1:
        yield from map(run_batch, batches)
        return
    context = multiprocessing.get_context("spawn")  # a forked process can't use CUDA
    turns = context.Value("i", 0)
    with ProcessPoolExecutor(jobs, context, take_a_device, (turns,)) as pool:
        for done in as_completed([pool.submit(run_batch, batch) for batch in batches]):
            yield done.result()


def _words(outcome: Outcome) -> str:
    """A cell of the table."""
    verdict = "equal"
    if outcome.unequal:
        verdict = "**differs by capture**" if outcome.by_capture else "**differs**"
    parts = [verdict, outcome.status]
    if outcome.regions:
        parts.append(f"{outcome.kernels} kernels")
    if outcome.unequal:
        parts.append("; ".join(outcome.unequal[:3]))
    return ", ".join(parts)


def _summary(
    cases: Sequence[Case],
    outcomes: dict[str, dict[str, Outcome]],
    types: Sequence[str],
    device: str,
) -> str:
    lines = []
    for dtype in types:
        for kind in ("pointwise", "other", "pattern"):
            found = [outcomes[case.name][dtype] for case in cases if case.kind == kind]
            exact = [outcome for outcome in found if not outcome.unequal]
            counts = {
                status: sum(outcome.status == status for outcome in exact)
                for status in ("compiled", "in part", "left eager")
            }
            told = ", ".join(f"{count} {status}" for status, count in counts.items())
            lines.append(f"- {device}, {dtype}, {kind}: {len(exact)} of {len(found)} equal: {told}")
    return "\n".join(lines)


def _table(
    cases: Sequence[Case], outcomes: dict[str, dict[str, Outcome]], types: Sequence[str]
) -> str:
    lines = [f"| case | {' | '.join(types)} | left eager |", "|---" * (len(types) + 2) + "|"]
    for case in cases:
        by_type = outcomes[case.name]
        left = dict.fromkeys(op for outcome in by_type.values() for op in outcome.eager)
        names = ", ".join(op.removeprefix("aten.") for op in left)
        cells = " | ".join(_words(by_type[dtype]) for dtype in types)
        lines.append(f"| {case.name} | {cells} | {names} |")
    return "\n".join(lines)


def _write(path: Path, table: str, device: str) -> None:
    """Put the table between the two comments of a file, or at its end."""
    text = path.read_text() if path.exists() else ""
    capability = torch.backends.cpu.get_cpu_capability() if device == "cpu" else ""
    if device == "cuda":
        capability = torch.cuda.get_device_name()
    title = (
        f"torch {torch.__version__}, {platform.machine()} {capability}, `python -m tests.numerics"
    )
    title += "`:" if device == "cpu" else f" --device {device}`:"
    begin, end = (mark.replace("table", f"table {device}") for mark in (BEGIN, END))
    block = f"{begin}\n{title}\n\n{table}\n{end}"
    if begin in text and end in text:
        before, rest = text.split(begin)
        text = before + block + rest.split(end)[1]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    path.write_text(text)


if __name__ == "__main__":
    raise SystemExit(main())
