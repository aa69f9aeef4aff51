"""`regional-inductor demo`: a small Llama trained in four ways, each compared with eager.

Each way runs in a process of its own (`demo_worker`) with an empty Inductor cache, so that a cold start is cold.
This half starts the workers one after the other, follows their progress and prints what they measured; it needs
neither torch nor a compiler, and the decision "equal to eager or not" is a plain function over plain data.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .toolchain import missing_tool

# In float32, the same weights and the same batch: what reordering additions costs, and no more.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
# The first step compiles; the next two may still touch fresh memory. The rest is timed.
WARM_UP_STEPS = 3

_SERIAL_NUMBER = re.compile(r"_\d+$")  # makes a region's name unique in its graph
_LAYER_NUMBER = re.compile(r"\.\d+(?=\.|$)")

EAGER = "eager"
OURS = "regional_inductor"
VARIANTS = {
    EAGER: "eager",
    "pytorch_pass": "PyTorch's own pass",
    "torch_compile": "torch.compile (whole)",
    OURS: "regional-inductor",
}


@dataclass(frozen=True)
class Settings:
    """The model, the data and the run; the command line sets the first three."""

    steps: int = 30
    layers: int = 4
    seed: int = 0
    hidden: int = 128
    intermediate: int = 344
    heads: int = 4
    key_value_heads: int = 2
    batch: int = 4
    sequence: int = 128
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Region:
    """One region of the compiled model, as `ri.last_report()` has it."""

    name: str
    direction: str
    source: str
    module_path: str
    nodes: int
    key: str
    status: str
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What one worker measured.

    `cold_seconds` is the first training step less an ordinary one. `loss_difference` (relative) and
    `gradient_difference` (L2 norm of the difference over the norm of eager's gradient, the largest over the
    parameters) are taken on eager's weights at several points of its training. `error` is set, and nothing
    else, where the run failed.
    """

    variant: str
    cold_seconds: float = 0.0
    step_ms: float = 0.0
    losses: tuple[float, ...] = ()
    loss_difference: float | None = None
    gradient_difference: float | None = None
    regions: tuple[Region, ...] = ()
    error: str = ""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Result:
        regions = tuple(Region(**region) for region in fields.get("regions", ()))
        return cls(**{**fields, "losses": tuple(fields.get("losses", ())), "regions": regions})


Follow = Callable[[dict[str, Any]], None]  # takes each event that a worker writes
Worker = Callable[[str, Settings, Path, Follow], Result]


def run(
    settings: Settings,
    json_path: Path | None = None,
    *,
    console: Console | None = None,
    worker: Worker | None = None,
) -> int:
    """Runs all variants and prints what came out.

    Args:
        settings: model, data and number of steps.
        json_path: where to write everything as JSON too.
        console: where to print; standard output by default.
        worker: what runs one variant; a subprocess by default. Tests inject results here.

    Returns:
        The exit code: 0 when this library's loss and gradients equal eager's within the tolerance, else 1.
    """
    console = console or _standard_output()
    if worker is None:
        problem = missing_tool() or _missing_package()
        if problem:
            console.print(problem, markup=False, highlight=False, soft_wrap=True)
            return 1
    results = _run_variants(settings, console, worker or run_in_subprocess)
    failures = failures_of(results)
    _print_regions(console, results)
    _print_costs(console, results)
    _print_verdict(console, failures)
    if json_path is not None:
        json_path.write_text(json.dumps(to_json(settings, results, failures), indent=2) + "\n")
    return 1 if failures else 0


def _standard_output() -> Console:
    """Tables get the terminal's width, and 100 columns in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def failures_of(results: Sequence[Result]) -> list[str]:
    """Why the demo has failed, a line each; empty when this library is as close to eager as it must be."""
    by_variant = {result.variant: result for result in results}
    lines = [
        f"{VARIANTS[variant]} failed: {by_variant[variant].error}"
        for variant in (EAGER, OURS)
        if variant in by_variant and by_variant[variant].error
    ]
    ours = by_variant.get(OURS)
    if lines or ours is None:
        return lines or ["nothing was compared"]
    if not ours.regions:
        lines.append("no region was compiled")
    lines += [
        f"region {region.name!r} ({region.module_path or region.source}) was left eager"
        for region in ours.regions
        if region.status == "eager"
    ]
    for what, difference, tolerance in (
        ("loss", ours.loss_difference, LOSS_TOLERANCE),
        ("gradients", ours.gradient_difference, GRADIENT_TOLERANCE),
    ):
        if not _within(difference, tolerance):
            lines.append(f"{what}: {_scientific(difference)} from eager, more than {tolerance:.0e}")
    return lines


def to_json(
    settings: Settings, results: Sequence[Result], failures: Sequence[str]
) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "tolerance": {"loss": LOSS_TOLERANCE, "gradients": GRADIENT_TOLERANCE},
        "results": [asdict(result) for result in results],
        "failures": list(failures),
    }


# --- workers -----------------------------------------------------------------------------------------------------


def _run_variants(settings: Settings, console: Console, worker: Worker) -> list[Result]:
    results: list[Result] = []
    console.print(
        f"A byte-level Llama ({settings.layers} layers, width {settings.hidden}), {settings.steps} training steps "
        "on Python's library sources, on the CPU. Each way in a fresh process with an empty cache.",
        highlight=False,
    )
    with (
        tempfile.TemporaryDirectory(prefix="regional-inductor-demo-") as folder,
        _progress(console, settings.steps) as show,
    ):
        for variant in VARIANTS:
            with show(VARIANTS[variant]) as follow:
                result = worker(variant, settings, Path(folder), follow)
            results.append(result)
            if variant == EAGER and result.error:
                break  # nothing to compare the others with
    return results


def run_in_subprocess(variant: str, settings: Settings, folder: Path, follow: Follow) -> Result:
    """Runs one variant in a process of its own; `follow` gets each event that the worker writes."""
    errors_path = folder / f"{variant}.stderr"
    request = {"variant": variant, "settings": asdict(settings), "folder": str(folder)}
    result = Result(variant, error="it ended without a result")
    with (
        errors_path.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "regional_inductor.demo_worker", json.dumps(request)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": str(folder / f"{variant}.cache"),
                "REGIONAL_INDUCTOR_CACHE_DIR": str(folder / f"{variant}.regions"),
            },
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for event in _events(process.stdout):
                if event["event"] == "result":
                    result = Result.from_json(event["result"])
                else:
                    follow(event)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        return Result(variant, error=_last_line(errors_path) or f"exit code {process.returncode}")
    return result


def _events(lines: Iterator[str] | Any) -> Iterator[dict[str, Any]]:
    """The JSON lines among a worker's output; what libraries print there is passed over."""
    for line in lines:
        if line.startswith('{"event"'):
            yield json.loads(line)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _missing_package() -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "The demo needs transformers: pip install 'regional-inductor[demo]'"
    return None


# --- progress ----------------------------------------------------------------------------------------------------


@contextmanager
def _progress(
    console: Console, steps: int
) -> Iterator[Callable[[str], AbstractContextManager[Follow]]]:
    """Yields `show(label)`, a context manager around one variant's run that yields what takes its events."""
    if not console.is_terminal:
        yield lambda label: _plain_lines(console, label, steps)
        return
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[phase]:<22}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield lambda label: _bar(bars, bars.add_task(label, total=steps, phase="starting"))


@contextmanager
def _plain_lines(console: Console, label: str, steps: int) -> Iterator[Follow]:
    def follow(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] in (1, steps):
            elapsed = time.monotonic() - start
            step = f"step {event['step']} of {steps}"
            console.print(
                f"  {label}: {step}, loss {event['loss']:.4f}, {elapsed:.0f} s", highlight=False
            )

    start = time.monotonic()
    yield follow


@contextmanager
def _bar(bars: Progress, task: TaskID) -> Iterator[Follow]:
    def follow(event: dict[str, Any]) -> None:
        if event["event"] == "phase":
            bars.update(task, phase=event["phase"])
        elif event["event"] == "step":
            bars.update(task, completed=event["step"], phase=f"loss {event['loss']:.4f}")

    yield follow
    bars.stop_task(task)


# --- tables ------------------------------------------------------------------------------------------------------


def _print_regions(console: Console, results: Sequence[Result]) -> None:
    regions = next((result.regions for result in results if result.variant == OURS), ())
    if not regions:
        return
    groups = group_by_key(regions)
    _print_heading(
        console,
        f"{len(regions)} regions, {len(groups)} of them distinct and compiled, the rest share",
    )
    table = _table(
        ("region", "left"),
        ("pass", "left"),
        ("where", "left"),
        ("nodes", "right"),
        ("places", "right"),
        ("options", "left"),
        ("compile s", "right"),
    )
    for group in groups:
        first = group[0]
        table.add_row(
            ", ".join(dict.fromkeys(_SERIAL_NUMBER.sub("", region.name) for region in group)),
            first.direction,
            "\n".join(places_of(group)),
            str(first.nodes),
            str(len(group)),
            ", ".join(f"{key}={value}" for key, value in first.options.items()) or "-",
            f"{sum(region.seconds for region in group):.2f}",
        )
    console.print(table)
    console.print(
        "compile s: over all places; the first to compile also pays for Inductor's start",
        style="dim",
        highlight=False,
    )


def group_by_key(regions: Sequence[Region]) -> list[list[Region]]:
    """Regions that share one compiled region, in the order of their first appearance."""
    groups: dict[tuple[str, ...], list[Region]] = {}
    for region in regions:
        what = region.key or f"{region.name} {region.source}"  # left eager: there may be no key
        groups.setdefault((what, region.direction), []).append(region)
    return list(groups.values())


def places_of(group: Sequence[Region]) -> list[str]:
    """Where the regions of a group are, layer numbers folded: `model.layers.*.mlp` for all layers' MLPs."""
    return list(
        dict.fromkeys(
            _LAYER_NUMBER.sub(".*", region.module_path) or os.path.basename(region.source)
            for region in group
        )
    )


def _print_costs(console: Console, results: Sequence[Result]) -> None:
    _print_heading(console, "What each way costs, and how far it is from eager")
    table = _table(
        ("", "left"),
        ("cold start s", "right"),
        ("step ms", "right"),
        ("loss", "right"),
        ("Δ loss", "right"),
        ("Δ gradients", "right"),
    )
    for result in results:
        table.add_row(*_cost_row(result))
    console.print(table)
    console.print(_LEGEND, style="dim", highlight=False)
    for result in results:
        if result.error and result.variant not in (EAGER, OURS):  # those two are in the verdict
            console.print(
                Text(f"{VARIANTS[result.variant]} failed: {result.error}", style="yellow")
            )


_LEGEND = """\
cold start: the first training step, compilation included, less an ordinary one
step: forward, backward and AdamW, the median; loss: at the first and last step
Δ: largest relative difference from eager on the same weights and batch, at four
   points of the training; of gradients the L2 norm, the worst parameter's"""


def _cost_row(result: Result) -> tuple[str, ...]:
    label = VARIANTS[result.variant]
    if result.error:
        return (label, "failed", *[""] * 4)
    return (
        label,
        "-" if result.variant == EAGER else f"{result.cold_seconds:.1f}",
        f"{result.step_ms:.1f}",
        f"{result.losses[0]:.3f} → {result.losses[-1]:.3f}",
        *(
            "-" if result.variant == EAGER else _scientific(difference)
            for difference in (result.loss_difference, result.gradient_difference)
        ),
    )


def _print_heading(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold", highlight=False)


def _table(*columns: tuple[str, Literal["left", "right"]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for heading, justify in columns:
        table.add_column(heading, justify=justify, overflow="fold")
    return table


def _print_verdict(console: Console, failures: Sequence[str]) -> None:
    console.print()
    for line in failures:
        console.print(Text(f"FAILED: {line}", style="bold red"), soft_wrap=True)
    if not failures:
        tolerance = f"loss {LOSS_TOLERANCE:.0e}, gradients {GRADIENT_TOLERANCE:.0e}"
        console.print(f"[bold green]OK[/]: equal to eager within {tolerance}", highlight=False)


def _within(difference: float | None, tolerance: float) -> bool:
    """A missing difference and NaN are not within anything."""
    return difference is not None and difference <= tolerance


def _scientific(difference: float | None) -> str:
    return "-" if difference is None else f"{difference:.1e}"
