"""Reports as JSON and back. docs/report-schema.md describes the schema; a test compares the two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from .regions import Finding
from .report import (
    GraphReport,
    KernelReport,
    OperatorReport,
    RegionReport,
    Report,
    ValueReport,
)

SCHEMA = "regional_inductor.report"
VERSION = 2
"""Raised when a field changes its meaning or goes; new fields alone leave it as it is."""
READABLE = (1, 2)
"""Version 1 knew no kernels: the field that changed was always null."""

_T = TypeVar("_T")


def dumps(report: Report, indent: int | None = None) -> str:
    """The report as JSON text."""
    places = iter(report.regions)  # these know how many places share them
    graphs = []
    for graph in report.graphs:
        fields_of_graph = {**asdict(graph), "eager": graph.eager}
        fields_of_graph["regions"] = [_plain(asdict(next(places))) for _ in graph.regions]
        graphs.append(fields_of_graph)
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "dry_run": report.dry_run,
        "environment": report.environment,
        "graphs": graphs,
        "findings": [asdict(finding) for finding in report.findings],
        "code": report.code,
    }
    return json.dumps(_plain(document), indent=indent)


def loads(text: str | bytes) -> Report:
    """The report that `dumps` wrote; options that aren't plain data come back as their text.

    Raises:
        ValueError: No JSON, no report, or one of a newer schema.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a report of regional_inductor: no {SCHEMA!r} under 'schema'")
    if document.get("version") not in READABLE:
        raise ValueError(
            f"the report has version {document.get('version')!r} of the schema, and this "
            f"regional_inductor reads versions {' and '.join(map(str, READABLE))}"
        )
    return Report(
        [_graph(graph) for graph in document["graphs"]],
        [_known(Finding, finding) for finding in document["findings"]],
        dict(document["environment"]),
        document["dry_run"],
        dict(document.get("code", {})),
    )


def _graph(document: Mapping[str, Any]) -> GraphReport:
    regions = tuple(_region(region) for region in document["regions"])
    operators = tuple(
        _known(OperatorReport, {**operator, "inputs": tuple(operator["inputs"])})
        for operator in document.get("operators", ())
    )
    return _known(GraphReport, {**document, "regions": regions, "operators": operators})


def _region(document: Mapping[str, Any]) -> RegionReport:
    values = dict(document)
    for name in ("inputs", "outputs"):
        values[name] = tuple(
            _known(
                ValueReport,
                {
                    **value,
                    "shape": tuple(value["shape"]),
                    "stride": tuple(value.get("stride", ())),
                },
            )
            for value in document[name]
        )
    values["constants"] = tuple(values.get("constants", ()))
    for name in ("ops", "not_fused"):
        values[name] = None if values.get(name) is None else tuple(values[name])
    if values.get("kernels") is not None:
        values["kernels"] = tuple(
            _known(KernelReport, {**kernel, "ops": tuple(kernel["ops"])})
            for kernel in values["kernels"]
        )
    return _known(RegionReport, values)


def _known(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """A dataclass from the fields that it has; a later version may have written more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)
