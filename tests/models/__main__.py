"""The sweep: every architecture in a process of its own, and the table it makes.

usage: python -m tests.models [--jobs N] [--minutes-each M] [--results FILE [--go-on]] [--table FILE] [NAME ...]

Exit code: 0 where every architecture equals eager or fails under stock torch.compile as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .architectures import ARCHITECTURES

_COLUMNS = ("train", "eval", "dynamic", "autocast", "checkpoint")
_WORDS = {"equal": "equal", "n/a": "-", "stock": "stock fails", "differs": "**differs**"}


def run_one(name: str, minutes: float) -> list[dict[str, Any]]:
    """Outcomes of one architecture; a mode that isn't done in time doesn't keep the others from theirs."""
    outcomes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        while len(outcomes) < len(_COLUMNS):
            found, problem = _process(folder, minutes, name, *_COLUMNS[len(outcomes) :])
            outcomes += found
            if len(outcomes) < len(_COLUMNS):  # the next mode is the one that it died of
                mode = _COLUMNS[len(outcomes)]
                stock, stocks = _process(folder, minutes, name, mode, "--stock")
                if stock:
                    stocks = stock[0]["detail"].strip()
                else:
                    stocks = f"stock torch.compile: {stocks}"
                verdict = "error" if stock and stock[0]["verdict"] != "stock" else "stock"
                detail = f"{problem}\n{stocks}"
                outcomes.append({"mode": mode, "verdict": verdict, "detail": detail, "eager": []})
    return outcomes


def _process(folder: str, minutes: float, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """What a process printed of some modes of an architecture, and what it ended with if not all is there."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    environment["REGIONAL_INDUCTOR_CACHE_DIR"] = str(Path(folder, "regions"))
    command = [sys.executable, "-m", "tests.models.trial", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60 * minutes
        )
        output, problem = done.stdout, done.stderr[-600:] or f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, problem = _text(late.stdout), f"not done after {minutes:g} minutes"
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"mode"')], problem


def _text(output: bytes | str | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The results as Markdown."""
    libraries = {architecture.name: architecture.library for architecture in ARCHITECTURES}
    lines = [
        "| architecture | library | regions | distinct | "
        + " | ".join(_COLUMNS)
        + " | left eager |",
        "|---|---|---:|---:|" + "---|" * len(_COLUMNS) + "---|",
    ]
    notes = []
    for name, outcomes in results.items():
        by_mode = {outcome["mode"]: outcome for outcome in outcomes}
        train = by_mode.get("train", {})
        words = [_word(by_mode.get(mode, {"verdict": "n/a"})) for mode in _COLUMNS]
        eager = sorted({reason for outcome in outcomes for reason in outcome["eager"]})
        lines.append(
            f"| {name} | {libraries[name]} | {train.get('regions', '-')} | "
            f"{train.get('distinct', '-')} | {' | '.join(words)} | {'; '.join(eager) or '-'} |"
        )
        notes += _notes(name, outcomes)
    return "\n".join([*lines, "", *notes])


def _word(outcome: dict[str, Any]) -> str:
    return _WORDS.get(outcome["verdict"], "**error**")


def _notes(name: str, outcomes: Iterable[dict[str, Any]]) -> list[str]:
    return [
        f"- {name}, {outcome['mode']}: {outcome['detail'].strip().splitlines()[-1]}"
        for outcome in outcomes
        if outcome["verdict"] not in ("equal", "n/a") and outcome["detail"].strip()
    ]


def page(results: dict[str, list[dict[str, Any]]]) -> str:
    """The page of the documentation that `make test-models` writes."""
    versions = ", ".join(
        f"{n} {version(n)}" for n in ("torch", "transformers", "timm", "diffusers")
    )
    outcomes = [o for each in results.values() for o in each if o["verdict"] != "n/a"]
    equal = sum(o["verdict"] == "equal" for o in outcomes)
    stock = sum(o["verdict"] == "stock" for o in outcomes)
    return f"""# Real models

Written by `make test-models`: tiny random configurations with norms, MLPs, rotary embeddings and activations marked,
forward and backward, through `ri.compile`, against eager. {versions}, {platform.machine()}.

{len(results)} architectures, {len(outcomes)} runs: {equal} equal to eager, {stock} where stock `torch.compile` fails or
differs as well, {len(outcomes) - equal - stock} neither. "Equal" is a largest difference of 5e-4 of a tensor's largest
entry, over outputs and gradients; under autocast, not further from float32 than twice eager's own distance (plus 2%).
Regions are counted in training, forward and backward.

{table(results)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes-each", type=float, default=6.0)
    parser.add_argument("--results", type=Path, help="written after each architecture")
    parser.add_argument(
        "--go-on", action="store_true", help="only what the results of an earlier run lack"
    )
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.go_on and not arguments.results:
        parser.error("--go-on goes on with the file that --results names")
    known = [architecture.name for architecture in ARCHITECTURES]
    names = arguments.names or known
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no architecture {', '.join(unknown)}; there are: {', '.join(known)}")
    results: dict[str, list[dict[str, Any]]] = {}
    if arguments.go_on and arguments.results.exists():
        results = json.loads(arguments.results.read_text())
    with ThreadPoolExecutor(arguments.jobs) as pool:
        trials = {
            pool.submit(run_one, name, arguments.minutes_each): name
            for name in names
            if name not in results
        }
        for trial in as_completed(trials):
            name, outcomes = trials[trial], trial.result()
            results[name] = outcomes
            print(f"{name:32}", *(f"{o['mode']} {o['verdict']:8}" for o in outcomes), flush=True)
            results = {name: results[name] for name in known if name in results}
            if arguments.results:
                arguments.results.write_text(json.dumps(results, indent=1))
            if arguments.table:
                arguments.table.write_text(page(results))
    bad = sorted(n for n, each in results.items() if any(o["verdict"] in _BAD for o in each))
    total = len(results)
    print(
        f"{total - len(bad)} of {total} architectures equal eager or fail under stock torch.compile too"
    )
    print(*(f"not equal: {name}" for name in bad), sep="\n")
    return 1 if bad else 0


_BAD = ("differs", "error")

if __name__ == "__main__":
    sys.exit(main())
