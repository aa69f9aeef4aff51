"""The HTML page of a report: what is in it, and how it behaves in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from regional_inductor import cli
from regional_inductor.page_data import BOXES, Box, boxes_of, lanes
from regional_inductor.regions import Finding
from regional_inductor.report import GraphReport, OperatorReport, RegionReport, Report
from regional_inductor.report_html import script_safe, to_html

HOSTILE = "</script><script>document.title='run'</script><!--<script> & \"'"


def report_of(layers: int, nodes_in_layer: int, text: str = "") -> Report:
    """A chain of layers, the middle third of each a region that all of them share."""
    operators, regions = [], []
    for layer in range(layers):
        for place in range(nodes_in_layer):
            number = len(operators)
            inside = 1 <= place * 3 // nodes_in_layer < 2
            operators.append(
                OperatorReport(
                    f"add_{number}",
                    "aten.add.Tensor",
                    layer if inside else None,
                    (number - 1,) if number else (),
                    f"layers.{layer}.{'norm' if inside else 'mix'}",
                    f"model.py:{place}{text}",
                    "float32[2, 8]",
                )
            )
        first = layer == 0
        size = sum(operator.region == layer for operator in operators)
        regions.append(
            RegionReport(
                f"norm_{layer}{text}",
                "forward",
                f"model.py:{layer}{text}",
                f"layers.{layer}.norm",
                size,
                ("aten.add.Tensor",) * size,
                {},
                "key",
                layers,
                "compiled" if first else "shared",
                "",
                0.5 if first else 0.0,
                bytes_eager=100 * layer,
                bytes_read=10,
                bytes_written=layer,
                started=2.0 if first else None,
                steps={"lower": 0.25, "compile": 0.25} if first else {},
            )
        )
    graph = GraphReport(
        "",
        len(operators),
        tuple(regions),
        {"collect": 1.0, "compile": 1.0},
        direction="forward",
        started={"collect": 1.0, "compile": 2.0},
        operators=tuple(operators),
    )
    finding = Finding("cheap", f"a cheap one{text}", "model.py:1", "add to it", "norm_0")
    return Report([graph], [finding], code={"key": f"def kernel():  # {text}\n    return 'code'"})


# --- what is drawn -------------------------------------------------------------------------------


def operators_in(boxes) -> list[int]:
    found = []
    for box in boxes:
        found += operators_in(box.children) if isinstance(box, Box) else [box]
    return found


def widths(boxes) -> list[int]:
    return [len(boxes), *(n for box in boxes if isinstance(box, Box) for n in widths(box.children))]


@pytest.mark.parametrize(("layers", "nodes"), [(2, 9), (40, 250), (1000, 10), (1, 10_000)])
def test_every_operator_is_in_one_box_and_few_boxes_are_drawn_at_a_time(layers, nodes):
    boxes = boxes_of(report_of(layers, nodes).graphs[0])
    assert sorted(operators_in(boxes)) == list(range(layers * nodes))
    assert max(widths(boxes)) <= BOXES


def test_many_boxes_are_put_together_by_layer():
    boxes = boxes_of(report_of(100, 9).graphs[0])
    assert [box.label for box in boxes] == [f"layers.{number}" for number in range(100)]


def test_bars_of_the_time_line_follow_each_other_within_the_whole():
    of = dict(lanes(report_of(3, 9)))
    assert list(of) == ["stage collect", "stage compile", "norm_0"]
    assert [(bar.step, bar.left, bar.width) for bar in of["norm_0"]] == [
        ("lower", 50.0, 12.5),
        ("compile", 62.5, 12.5),
    ]


def test_text_of_the_user_can_not_end_a_script():
    page = to_html(report_of(2, 9, HOSTILE))
    assert "document.title='run'</script>" not in page
    assert json.loads(script_safe(HOSTILE)) == HOSTILE
    assert not re.search("[<>&]", script_safe(HOSTILE))


def test_the_page_without_its_data_is_below_two_megabytes():
    assert len(to_html(Report()).encode()) < 2_000_000


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        message = "no chromium and chromedriver: tools/set_up_browser.sh installs them"
        if os.environ.get("REGIONAL_INDUCTOR_BROWSER") == "required":  # .ci/run says so
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,800",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as running:
        yield running


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report; at the end nothing may have gone wrong, and nothing been asked of a network."""

    def open_report(report: Report | Path):
        path = tmp_path / "report.html"
        if isinstance(report, Path):
            path = report
        else:
            report.to_html(path)
        browser.get(path.as_uri())
        ready = "return document.documentElement.dataset.ready"
        assert becomes("yes", lambda: browser.execute_script(ready))
        return browser

    yield open_report
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"].startswith("file:")  # not the browser's first page
    ]
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def column(page, number: int) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('#regions tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[arguments[0]].textContent.trim())",
        number,
    )


def press(page, selector: str, key: str) -> None:
    page.find_element("css selector", selector).send_keys(key)


def becomes(expected, ask) -> bool:
    """Whether `ask` answers `expected` sooner or later: a page follows its keys when it comes to it."""
    end = time.monotonic() + 30
    while (answer := ask()) != expected:
        if time.monotonic() > end:
            raise AssertionError(f"{answer!r} did not become {expected!r}")
        time.sleep(0.02)
    return True


def test_the_table_sorts_by_number_with_the_keyboard(opened):
    page = opened(report_of(12, 9))
    heading = "#regions th:nth-child(8)"
    press(page, heading, "\n")
    largest_first = [f"norm_{number}" for number in range(11, -1, -1)]
    # As text, 1.1k would stand between 100 and 200.
    assert becomes(largest_first, lambda: column(page, 0))
    press(page, heading, "\n")
    assert becomes(largest_first[::-1], lambda: column(page, 0))


def test_the_table_shows_what_matches_all_words_of_the_filter(opened):
    page = opened(report_of(12, 9))
    press(page, "#filter", "shared layers.11.")
    assert becomes(["norm_11"], lambda: column(page, 0))
    assert becomes("1 of 12 regions", lambda: page.find_element("id", "shown").text)


def test_columns_without_content_are_not_shown(opened):
    page = opened(report_of(3, 9))
    shown = [th.text for th in page.find_elements("css selector", "#regions th")]
    assert [name for name in ("kernels", "flops", "options") if name in shown] == []
    assert "seconds" in shown


def test_the_table_of_a_usual_report_fits_a_usual_screen(opened):
    page = opened(report_of(12, 9))
    frame = "const f = document.querySelector('.wide'); return f.scrollWidth - f.clientWidth"
    assert page.execute_script(frame) <= 0


def test_a_region_opens_to_its_operators_and_closes_again(opened):
    page = opened(report_of(2, 9))
    button = "#boxes li:nth-child(2) > button"
    assert page.find_element("css selector", button).text == "norm_0 (3)"
    count = "return picture.nodes().length"
    before = page.execute_script(count)
    press(page, button, "\n")
    assert becomes(
        "true", lambda: page.find_element("css selector", button).get_attribute("aria-expanded")
    )
    assert becomes(before + 3, lambda: page.execute_script(count))
    drawn = page.execute_script("return picture.nodes().map(n => n.data('label'))")
    assert "add.Tensor\nadd_3" in drawn
    press(page, button, "\n")
    assert becomes(before, lambda: page.execute_script(count))


def test_the_code_of_a_region_opens_as_text_even_when_it_is_hostile(opened):
    page = opened(report_of(2, 9, HOSTILE))
    page.find_element("css selector", "#regions tbody button").click()
    page.find_element("css selector", "#code summary").click()
    # The element fills when it has opened, which the browser tells a moment later.
    page.implicitly_wait(10)
    code = page.find_element("css selector", "#code code .hljs-keyword")
    assert code.text == "def"
    whole = page.find_element("css selector", "#code code").get_attribute("textContent")
    assert whole == f"def kernel():  # {HOSTILE}\n    return 'code'"
    assert page.title != "run"


def test_colours_follow_the_system_and_the_button(opened, browser):
    theme = "return document.documentElement.dataset.theme"
    for name, other in (("dark", "light"), ("light", "dark")):
        media = {"features": [{"name": "prefers-color-scheme", "value": name}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        opened(report_of(2, 9))
        assert becomes(name, lambda: browser.execute_script(theme))
        press(browser, "#theme", "\n")
        assert becomes(other, lambda: browser.execute_script(theme))


def test_a_narrow_page_does_not_scroll_sideways(opened, browser):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page = opened(report_of(12, 9))
    wide = page.execute_script("return document.documentElement.scrollWidth - innerWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 0


def test_ten_thousand_operators_open_layer_by_layer(opened):
    page = opened(report_of(100, 100))
    assert page.execute_script("return picture.nodes().length") == 100
    press(page, "#boxes li:nth-child(1) > button", "\n")
    inner = "#boxes li li:nth-child(2) > button"
    assert becomes(1, lambda: len(page.find_elements("css selector", inner)))
    press(page, inner, "\n")
    drawn = "return picture.nodes().map(n => n.data('label')).includes('add.Tensor\\nadd_34')"
    assert becomes(True, lambda: page.execute_script(drawn))
    heights = page.execute_script("return picture.nodes(':childless').map(n => n.position().y)")
    assert any(first != second for first, second in pairwise(heights))


LONG = "rotary_position_embedding_of_query_and_key_in_the_attention_of_a_decoder_layer"


def skipping(report: Report) -> Report:
    """The same, with an edge from each region's first operator to all that begin a later region."""
    (graph,) = report.graphs
    first = {op.region: place for place, op in reversed([*enumerate(graph.operators)])}
    first.pop(None)
    operators = [
        replace(op, inputs=(*op.inputs, *(i for i in first.values() if i < place)))
        if place in first.values()
        else op
        for place, op in enumerate(graph.operators)
    ]
    graph = replace(graph, operators=tuple(operators))
    return replace(report, graphs=[graph])


@pytest.mark.parametrize("opens", [0, 1])
def test_no_edge_runs_through_a_box_that_is_not_its_own(opened, opens):
    page = opened(skipping(report_of(4, 9)))
    for place in (2, 4)[: 2 * opens]:
        button = f"#boxes > ul > li:nth-child({place}) > button"
        press(page, button, "\n")
        assert becomes(1, lambda b=button: len(page.find_elements("css selector", f"{b} + ul")))
    crossings = """
    const found = [];
    picture.edges().forEach((edge) => {
      const own = new Set(edge.connectedNodes().union(edge.connectedNodes().descendants()).map(n => n.id()));
      const points = [edge.source().position(), ...(edge.segmentPoints() || []), edge.target().position()];
      picture.nodes(':childless').forEach((node) => {
        if (own.has(node.id())) return;
        const box = node.boundingBox({ includeLabels: false, includeOverlays: false });
        for (let i = 1; i < points.length; i++) for (let t = 0; t <= 1; t += 0.005) {
          const x = points[i-1].x + t * (points[i].x - points[i-1].x);
          const y = points[i-1].y + t * (points[i].y - points[i-1].y);
          if (x > box.x1 && x < box.x2 && y > box.y1 && y < box.y2) { found.push(edge.id() + ' ' + node.id()); return; }
        }
      });
    });
    return [picture.edges().length, found];
    """
    edges, found = page.execute_script(crossings)
    assert edges > 8
    assert found == []


def test_long_names_stay_in_their_boxes_and_break_between_words(opened):
    report = report_of(3, 9)
    (graph,) = report.graphs
    regions = [replace(region, name=f"{LONG}_{LONG}") for region in graph.regions[:2]]
    graph = replace(graph, regions=(*regions, *graph.regions[2:]))
    page = opened(replace(report, graphs=[graph]))
    outside = """
    return picture.nodes(':childless').filter((node) => {
      const box = (labels) => node.boundingBox({ includeLabels: labels, includeOverlays: false });
      const [bare, all] = [box(false), box(true)];
      return all.w > bare.w + 1 || all.h > bare.h + 1;
    }).map((node) => node.data('label'));
    """
    assert page.execute_script(outside) == []
    assert any(
        "…" in n for n in page.execute_script("return picture.nodes().map(n => n.data('label'))")
    )
    # What one line holds is on one line, however long the names beside it are.
    lines = "return [...document.querySelectorAll('#regions tr button')].map(b => b.getClientRects().length)"
    assert page.execute_script(lines)[2] == 1


def test_the_time_line_has_a_scale_and_names_the_steps_that_are_in_it(opened):
    page = opened(report_of(3, 9))
    ticks = [tick.text for tick in page.find_elements("css selector", ".axis span")]
    assert ticks == ["0 s", "0.5 s", "1 s", "1.5 s", "2 s"]
    steps = [step.text for step in page.find_elements("css selector", ".legend li")]
    assert steps == ["stage", "lower", "compile"]


def test_an_empty_report_opens(opened):
    page = opened(Report())
    assert "no operators to draw" in page.find_element("id", "cy").text


def test_the_demos_model_is_explained_on_the_command_line_and_its_page_opens(
    opened, tmp_path, capsys
):
    pytest.importorskip("transformers")
    written = tmp_path / "demo.html"
    code = cli.main(["explain", "regional_inductor.demo_worker:example", "--html", str(written)])
    printed = capsys.readouterr().out
    assert code == 0
    assert re.search(r"^norm +forward .*model\.layers", printed, re.MULTILINE)
    page = opened(written)
    headline = page.find_element("css selector", "main p").text
    assert printed.startswith(headline)
    rows = page.find_elements("css selector", "#regions tbody tr")
    assert headline.startswith(f"{len(rows)} regions, ")
    in_view = """
    const [width, height] = [picture.width(), picture.height()];
    return picture.nodes().filter((node) => {
      const box = node.renderedBoundingBox({ includeLabels: false });
      return box.x1 > 0 && box.y1 > 0 && box.x2 < width && box.y2 < height;
    }).map((node) => node.data('label').split('\\n')[0]);
    """
    seen = page.execute_script(in_view)
    assert "embedding.default" in seen  # where the model begins, not the middle of nowhere
    assert {"norm", "rope"} <= set(seen)
    assert page.find_element("css selector", "#regions td.source").text.startswith(
        "demo_worker.py:"
    )
