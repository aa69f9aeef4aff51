"""A report as one HTML file that needs no network."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

from ._torch.generated import STEPS
from .page_data import lanes, page_data, span, title
from .render import amount, compiled_early, count, headline, kept_for_backward, status
from .report import GraphReport, Report

SCRIPTS = ("cytoscape.min.js", "cytoscape-dagre.min.js", "highlight.min.js", "sortable.min.js")
"""In the order in which they need each other; tools/vendor_page.py gets them."""


def to_html(report: Report) -> str:
    """The whole page, with its scripts, styles and data inside."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        amount=amount,
        breakable=breakable,
        colour=lambda step: "compiler" if step == "compile" else step,
        counted=count,
        status=lambda region: status([region]),
        title=title,
    )
    of_time = list(lanes(report))
    drawn = {bar.step for label, bars in of_time if not label.startswith("stage ") for bar in bars}
    seconds = span(bar for _, bars in of_time for bar in bars)
    places = iter(report.regions)
    return environment.from_string(_file("report.html.j2")).render(
        report=report,
        headline=headline(report),
        notes=_notes,
        graphs=[(graph, [next(places) for _ in graph.regions]) for graph in report.graphs],
        lanes=of_time,
        steps=["stage", *(step for step in STEPS if step in drawn)],
        ticks=[f"{seconds * part / 4:.3g} s" for part in range(5)],
        data=script_safe(page_data(report)),
        style=_file("page.css"),
        scripts=[_file(f"vendor/{name}") for name in SCRIPTS],
        own_script=_file("page.js"),
    )


def _notes(graph: GraphReport) -> list[str]:
    return [note for note in (kept_for_backward(graph), compiled_early(graph)) if note]


def breakable(name: str) -> Any:
    """A name that may be broken after its parts, and nowhere else."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(map(escape, re.findall(r"[^._/=+]*[._/=+]*", name)))


def script_safe(data: Any) -> str:
    """JSON that can stand in a script element, whatever text is in it.

    ``</script>`` and ``<!--`` would end the element or change how it is read; as escapes they are
    the same JSON. A browser reads lone surrogates only as escapes, which ``json`` writes anyway.
    """
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return (resources.files(__package__) / "page" / name).read_text(encoding="utf-8")
