"""Runs the benchmarks: `python -m benchmarks [--quick] [--publish] [--profile] [NAME ...]`.

Each one's tables and targets are printed and written to `benchmarks/results/`: `NAME.json` with what the
machine was, `NAME.png` where it draws something and matplotlib (extra `bench`) is installed, and
`README.md` with the tables of all benchmarks that have results. A benchmark that fails is named at the
end, and the others still run. Targets that are not reached are said, and don't fail the run: times depend
on the machine. `--publish` also puts the tables into `docs/performance.md`.

A target that is missed is said with its `why`, and a benchmark that has a function `profile(missed, quick)`
then runs it: it gets the figures that are missed and returns tables that show where their time or memory
goes. `--profile` runs that function alone, with None for all figures, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pkgutil
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks._outcome import Outcome, Row, Tables, Target, columns_of, markdown_table, number

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: written by `make bench ARGS=--publish` -->", "<!-- end of results -->"


def discover() -> list[str]:
    """The names of all benchmarks: every module of this package that is not private."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if not module.name.startswith("_") and not module.ispkg
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
    parser.add_argument(
        "--publish",
        action="store_true",
        help=f"write the tables into docs/{PAGE.name} too, and what the README shows of them",
    )
    parser.add_argument(
        "--profile", action="store_true", help="only where the time goes, for benchmarks that say"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")

    os.environ["REGIONAL_INDUCTOR_CACHE"] = "0"  # what is timed in this process is compiled here
    console = Console() if sys.stdout.isatty() else Console(width=120)
    names = arguments.names or known
    if arguments.profile:
        return _print_profiles(names, arguments.quick, console)
    failed = [name for name in names if not _run(name, arguments.quick, console)]
    records = _records()
    console.print(table_of("seconds", seconds_of([r for r in records if r["benchmark"] in names])))
    text = markdown(records)
    (RESULTS / "README.md").write_text(f"# Results\n\n{text}")
    if arguments.publish:
        publish(text, PAGE)
        for record in records:
            publish_summary(record, README)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


def _run(name: str, quick: bool, console: Console) -> bool:
    start = time.perf_counter()
    try:
        module = importlib.import_module(f"benchmarks.{name}")
        outcome = Outcome.of(module.main(quick))
        missed = [target for target in outcome.targets if target.reached is False]
        profile = profile_of(module, [target.figure for target in missed], quick) if missed else {}
    except Exception:  # noqa: BLE001 - one failing benchmark leaves the others running
        traceback.print_exc()
        return False
    record = {
        "benchmark": name,
        "claim": claim_of(module),
        "how": "\n".join((module.__doc__ or "").strip().splitlines()[1:]).strip(),
        "quick": quick,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "tables": outcome.tables,
        "targets": [{**asdict(t), "verdict": t.verdict} for t in outcome.targets],
        "profile": profile,
        "remarks": outcome.remarks,
    }
    console.print(f"\n{name}: {record['claim']}", style="bold", highlight=False)
    for title, rows in outcome.tables.items():
        console.print(table_of(title, rows))
    if outcome.targets:
        console.print(table_of("targets", [target.row() for target in outcome.targets]))
    for target in missed:
        console.print(reason(name, target), highlight=False)
    for title, rows in profile.items():
        console.print(table_of(title, rows))
    console.print(f"{name} took {record['seconds']} s", highlight=False)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(module, outcome, RESULTS / f"{name}.png")
    return not errors_in(outcome)


def _print_profiles(names: Sequence[str], quick: bool, console: Console) -> int:
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        tables = profile_of(module, None, quick)
        for title, rows in tables.items():
            console.print(table_of(f"{name}: {title}", rows))
        if not tables:
            console.print(f"{name} has no profile")
    return 0


def profile_of(module: ModuleType, missed: Sequence[str] | None, quick: bool) -> Tables:
    """Where the time of missed figures goes (None: of all), if the benchmark can say."""
    profile = getattr(module, "profile", None)
    return profile(missed, quick) if profile is not None else {}


def reason(name: str, target: Target) -> str:
    """A missed target in a sentence: what, by how much, why."""
    return f"{name}, {target.figure}: {target.verdict}. {target.why or 'Why is not known.'}"


def seconds_of(records: Sequence[dict[str, Any]]) -> list[Row]:
    """What each benchmark took, and all of them together."""
    rows: list[Row] = [{"benchmark": r["benchmark"], "seconds": r["seconds"]} for r in records]
    return [*rows, {"benchmark": "all", "seconds": sum(r["seconds"] for r in records)}]


def claim_of(module: ModuleType) -> str:
    return (module.__doc__ or module.__name__).strip().splitlines()[0]


def errors_in(outcome: Outcome) -> list[str]:
    """What went wrong in single cases; their rows stay in the tables, without figures."""
    rows = [row for rows in outcome.tables.values() for row in rows]
    return [str(row["error"]) for row in rows if row.get("error")]


def table_of(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in columns_of(rows):
        textual = any(isinstance(row.get(key), str) for row in rows)
        table.add_column(key, justify="left" if textual else "right", overflow="fold")
    for row in rows:
        table.add_row(*(number(row.get(key)) for key in columns_of(rows)))
    return table


def draw(module: ModuleType, outcome: Outcome, path: Path) -> None:
    """The benchmark's own plot, if it has one and matplotlib is there."""
    plot = getattr(module, "plot", None)
    if plot is None or importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(9, 5), layout="constrained")
    plot(outcome.tables, figure)
    figure.savefig(path, dpi=120)


# --- Markdown --------------------------------------------------------------------------------------


def _records() -> list[dict[str, Any]]:
    """All results that lie in the folder, of this run or an earlier one."""
    RESULTS.mkdir(exist_ok=True)
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return [record for record in records if "tables" in record]


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Targets first, since they are what is asked; then each benchmark's tables."""
    if not records:
        return "No benchmark has been run.\n"
    parts = [_machine_line(records[0])]
    targets = [
        (record["benchmark"], Target(**{key: fields[key] for key in fields if key != "verdict"}))
        for record in records
        for fields in record["targets"]
    ]
    if targets:
        rows = [{"benchmark": name, **target.row()} for name, target in targets]
        parts += ["## Targets", markdown_table(rows)]
    missed = [(name, target) for name, target in targets if target.reached is False]
    if missed:
        parts += ["## Not reached, and why", "\n".join(f"- {reason(*each)}" for each in missed)]
    for record in records:
        form = ", quick form" if record["quick"] else ""
        parts.append(f"## {record['benchmark']}: {record['claim']}")
        parts.append(f"{record['how']}\n\nTook {record['seconds']} s{form}.".strip())
        for title, table in record["tables"].items():
            if title:
                parts.append(f"### {title}")
            parts.append(markdown_table(table))
        for title, table in record.get("profile", {}).items():
            parts += [f"### where it goes: {title}", markdown_table(table)]
        parts += [f"- {remark}" for remark in record["remarks"]]
    parts += ["## Seconds", markdown_table(seconds_of(records))]
    return "\n\n".join(parts) + "\n"


def _machine_line(record: dict[str, Any]) -> str:
    found = record["machine"]
    return (
        f"torch {found['torch']}, Python {found['python']}, {found['system']}, {found['cpus']} cores. "
        "A dash: not measured."
    )


def publish(text: str, page: Path) -> None:
    """Replace what stands between the two markers of a page; headings go one level down."""
    lines = [f"#{line}" if line.startswith("#") else line for line in text.splitlines()]
    _replace_between(page, BEGIN, END, lines)


def publish_summary(record: dict[str, Any], page: Path) -> None:
    """Replace what a page says of one benchmark, which has a `summary` for that and ran in its full form."""
    name = record["benchmark"]
    begin = f'<!-- {name}: written by `make bench ARGS="{name} --publish"` -->'
    if name in discover() and begin in page.read_text() and not record["quick"]:
        lines = importlib.import_module(f"benchmarks.{name}").summary(record["tables"])
        _replace_between(page, begin, f"<!-- end of {name} -->", lines)


def _replace_between(page: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"]))


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
