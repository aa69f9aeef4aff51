"""A report of ten thousand operators is written in seconds and opens in less than three.

A graph of transformer-like blocks goes through a dry run; its report is printed, compared with itself,
written as JSON and as a page. The page is opened in headless Chromium, from the request until the table and
the picture answer. Chromium and chromedriver must be on the PATH: `tools/set_up_browser.sh` installs them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from benchmarks import _graphs
from benchmarks._measure import median, say, seconds_of
from benchmarks._outcome import Outcome, Row, Target
from regional_inductor import Report, explain

SIZES = (1_000, 10_000)
IN_A_BLOCK = 30


def main(quick: bool) -> Outcome:
    repeats = 1 if quick else 3
    with _browser() as browser:
        rows = [_case(size, repeats, browser) for size in SIZES]
    largest = rows[-1]
    return Outcome(
        {"a report": rows},
        [
            Target(
                "rendering as text, JSON and page, 10,000 operators",
                sum(float(str(largest[column])) for column in ("print s", "JSON s", "page s")),
                10,
                "lower",
                "s",
            ),
            Target(
                "opening the page in Chromium, 10,000 operators",
                None if browser is None else float(str(largest["open s"])),
                3,
                "lower",
                "s",
            ),
        ],
        remarks=[] if browser else ["No chromium and chromedriver: opening was not measured."],
    )


def _case(size: int, repeats: int, browser: Any) -> Row:
    gm = graph(size)
    say(f"report: {size} operators")
    start = time.perf_counter()
    report = explain(gm, region_backend="eager")
    explained = time.perf_counter() - start

    def middle(function: Callable[[], Any]) -> float | None:
        return median([seconds_of(function) for _ in range(repeats)])

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        row: dict[str, Any] = {
            "operators": len(report.graphs[0].operators),
            "regions": len(report.regions),
            "explain s": explained,
            "print s": middle(lambda: str(report)),
            "diff s": middle(lambda: report.diff(report)),
            "JSON s": middle(lambda: Report.from_json(report.to_json())),
            "page s": middle(lambda: report.to_html(page)),
            "page MB": page.stat().st_size / 1e6,
        }
        if browser is not None:
            row["open s"] = middle(lambda: _open(browser, page))
    return row


def graph(size: int) -> GraphModule:
    """Blocks of about `size` operators, each block in a module of its own."""
    gm = _graphs.build("blocks", size)
    nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
    for number, node in enumerate(nodes):
        path = f"layers.{number // IN_A_BLOCK}"
        node.meta["nn_module_stack"] = {path: (path, torch.nn.Module)}
    return gm


@contextmanager
def _browser() -> Iterator[Any]:
    """A headless Chromium, or None where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        yield None
        return
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = program
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --window-size=1280,800"
        for flag in (*flags.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        with webdriver.Chrome(options=options, service=Service(driver)) as browser:
            yield browser


def _open(browser: Any, page: Path) -> None:
    """Until the page's script says that the table and the picture are there, and a frame was drawn."""
    browser.get("about:blank")
    browser.get(page.as_uri())
    browser.set_script_timeout(60)
    browser.execute_async_script(
        "const done = arguments[0];"
        "const look = () => document.documentElement.dataset.ready === 'yes'"
        " ? requestAnimationFrame(() => done()) : setTimeout(look, 5);"
        "look();"
    )
