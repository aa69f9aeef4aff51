"""`ri.explain`: what a compile would do, without compiling."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.fx

from . import pipeline
from ._torch import capture as captures
from ._torch import dynamo, undo
from .backend import backend_settings, read_settings
from .errors import (
    ConflictError,
    MarkError,
    MissingValueError,
    OptionError,
    RegionError,
    RegionWarning,
)
from .findings import TRIAL_NODES, findings_of
from .lost_marks import (
    lost_regions,
    remember_marks,
    restore_marks,
    take_over_surrounding_mark,
    warn_of_lost_regions,
)
from .module_marks import marked_modules
from .options import MARK_KEY
from .originals import tensors_of
from .patterns import matches
from .planning import Planner
from .recomputing import RecomputationChooser
from .region_key import described_environment
from .regions import Compiled, Direction, Finding, Settings
from .report import Report
from .report_from_stages import graph_reports, unmarked_graph_report
from .source import module_names
from .stages.collect import collect
from .stages.outline import outline
from .stages.partition import partition
from .trial_capture import captures_blocks, compiled_form


def explain(
    model_or_fn: Any,
    /,
    *args: Any,
    dynamic: bool | None = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    merge: Literal["scope", "all"] | None = None,
    on_error: Literal["eager", "raise"] = "eager",
    numerics: Literal["default", "eager"] = "default",
    collectives: Literal["exclude", "include"] = "exclude",
    recompute: Literal["regions", "off"] = "regions",
    capture: Literal["blocks", "model"] | None = None,
    region_backend: Literal["inductor", "eager"] = "inductor",
    **kwargs: Any,
) -> Report:
    """Say what compiling would do: which regions there are, which share a compile, what is in the way.

    A module or function is run once on the arguments, eagerly: its graphs are captured on the way,
    the backward ones too where something requires gradients, then partitioned and outlined. Nothing
    is compiled, so no compiler is needed. Afterwards tensors that were written to (buffers,
    arguments), gradients, random number generators and Dynamo's caches and counters are as they
    were. What Python code changed besides (a list of its own, a cache object passed in, an
    optimizer's state) is not put back: explain the model, or the function that gives the loss,
    rather than a whole training step.

    An exported program or an FX graph is read as it is; arguments are needed only for placeholders
    that carry no fake value.

    Args:
        model_or_fn: A module, a function, what `torch.compile` or `regional_inductor.compile` made
            of one (the original is explained), an exported program, or a `torch.fx.GraphModule`.
        *args: What to call it with.
        dynamic: As for `regional_inductor.compile`.
        mode: As for `regional_inductor.compile`.
        options: As for `regional_inductor.compile`.
        merge: As for `regional_inductor.compile`; by default what the way to compile it has:
            ``"all"`` for exported programs and FX graphs, else ``"scope"``.
        on_error: As for `regional_inductor.compile`.
        numerics: As for `regional_inductor.compile`.
        collectives: As for `regional_inductor.compile`.
        recompute: As for `regional_inductor.compile`.
        capture: "blocks" captures block by block, "model" the whole; by default as something compiled
            was captured, else the whole, where each block's regions have lines of their own.
        region_backend: As for `regional_inductor.compile`.
        **kwargs: What to call it with, by keyword. A parameter of the model that has the name of
            one of the options above can't be given this way: pass it by position, or wrap the model
            in a function.

    Returns:
        A `Report` whose regions have the status ``"planned"``, ``"shared"`` or ``"eager"``. Its
        findings say what is worth knowing, mistakes in the marks included: these don't raise here.

    Raises:
        OptionError: An unknown option or choice among the arguments above.
        MarkError: What was given can't be captured: no module, function or graph.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> _ = ri.mark(model, "1", name="norm")
        >>> report = ri.explain(model, torch.ones(2, 4), region_backend="eager")
        >>> [(region.name, region.direction, region.status) for region in report.regions]
        [('norm', 'forward', 'planned'), ('norm', 'backward', 'planned')]
    """
    program = isinstance(model_or_fn, torch.export.ExportedProgram)
    graph = program or isinstance(model_or_fn, torch.fx.GraphModule)
    asked = {
        **(options or {}),
        "merge": merge or ("all" if graph else "scope"),
        "on_error": on_error,
        "numerics": numerics,
        "collectives": collectives,
        "recompute": recompute,
        "region_backend": region_backend,
    }
    if graph:
        dry_run = _DryRun(read_settings(asked, mode=mode))
        module = model_or_fn.module() if program else model_or_fn
        dry_run.read(module, args, number=0, direction="")
        return dry_run.finished(_MARK_AN_EXPORT if program else _MARK_A_GRAPH)
    if not callable(model_or_fn):
        raise MarkError(
            f"explain takes a module, a function or a graph, not {type(model_or_fn).__qualname__}"
        )
    dry_run = _DryRun(backend_settings(asked, mode))
    dry_run.note_backend(model_or_fn)
    blocks = captures_blocks(model_or_fn, capture)
    dry_run.run(captures.uncompiled(model_or_fn), args, kwargs, dynamic, blocks)
    return dry_run.finished()


_MARK_A_MODEL = (
    'mark modules with regional_inductor.mark(model, "layers.*.mlp"), functions with '
    "@regional_inductor.region"
)
_MARK_AN_EXPORT = (
    "mark the model before it is exported, and export it with regional_inductor.export(...) or "
    "strict=True, which record marks; or mark its graph with regional_inductor.mark_nodes"
)
_MARK_A_GRAPH = "mark its nodes with regional_inductor.mark_nodes(gm, torch.ops.aten.silu)"


class _DryRun:
    """Collects what each captured graph shows into one report."""

    def __init__(self, settings: Settings) -> None:
        self.settings = replace(settings, tries_operators=False)
        self.report = Report(dry_run=True)
        self._planner = Planner()
        self._graphs = 0
        self._marked_paths: set[str] = set()

    def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dynamic: bool | None,
        blocks: bool,
    ) -> None:
        """Run a model once with graphs captured on the way, and undo what that changed."""
        warn_of_lost_regions()  # of earlier compiles, before their count is put aside
        dynamo.watch_escapes()
        usual = captures.functorch_values()
        with undo.undone((args, kwargs, tensors_of(function))) as undoing:

            def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
                run_captured = self._backend(gm, inputs, usual)

                def run(*values: Any) -> Any:
                    undoing.set_gradients_aside(values)
                    return run_captured(*values)

                return run

            with (
                _told_as_findings(),
                captures.own_compiles_off(function),
                captures.without_a_trace(),
                captures.backward_at_once(),
            ):
                before = len(captures.graph_breaks())
                findings = self.report.findings
                with compiled_form(
                    function, backend, findings, blocks=blocks, dynamic=dynamic
                ) as compiled:
                    compiled(*args, **kwargs)
                self._note_graph_breaks(captures.graph_breaks()[before:])
        dynamo.lost_regions()  # the count went back to what it was
        if isinstance(function, torch.nn.Module):
            self._note_unused_marks(function)

    def _backend(
        self, gm: torch.fx.GraphModule, inputs: list[Any], usual: dict[str, Any]
    ) -> Callable[..., Any]:
        """Take one captured graph through AOTAutograd; it runs eagerly."""
        number, self._graphs = self._graphs, self._graphs + 1
        take_over_surrounding_mark(gm)
        wanted = remember_marks(gm)
        self._marked_paths |= _marked_paths(gm)
        chooser = RecomputationChooser(self.settings)

        def read_as(direction: Direction) -> Callable[..., Any]:
            def read(graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
                if direction != "backward":
                    self.report.findings += restore_marks(wanted, graph)
                before = len(self.report.graphs)
                with captures.usual_functorch_config(usual):
                    self.read(graph, example_inputs, number, direction)
                self.report.graphs[before:] = chooser.added_to(self.report.graphs[before:])
                return captures.boxed(graph.forward)

            return read

        backend = dynamo.aot_backend(
            read_as("forward"), read_as("backward"), read_as("inference"), chooser.partition
        )
        compiled: Callable[..., Any] = backend(gm, inputs)
        return compiled

    def read(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        number: int,
        direction: str,
    ) -> None:
        """Collect, partition and outline one graph, which stays as it is."""
        trace = pipeline.Trace()

        def plan(outlined: Any, settings: Settings) -> Compiled:
            return self._planner.plan(outlined, settings)

        graphs = []
        try:
            compiled: Compiled = pipeline.run(
                graph,
                example_inputs,
                self.settings,
                stages=(collect, partition, outline, plan),
                observer=trace,
            )
        except RegionError as error:
            self.report.findings.append(_as_finding(error))
        else:
            partitioned = trace.products["partition"]
            graphs = graph_reports(
                compiled, trace, partitioned, capture=number, direction=direction
            )
            self.report.findings += compiled.findings
            self.report.findings += findings_of(
                partitioned, graphs, self.settings, trial_nodes=TRIAL_NODES
            )
        self.report.graphs += graphs or [
            unmarked_graph_report(graph.graph, trace, capture=number, direction=direction)
        ]

    def note_backend(self, model_or_fn: Any) -> None:
        backend = captures.backend_of(model_or_fn)
        if backend is None or captures.compiles_marks(backend):
            return
        name = captures.backend_name(backend)
        kind = type(captures.uncompiled(model_or_fn)).__qualname__
        self.report.findings.append(
            Finding(
                "other-backend",
                f"this {kind} is compiled with the backend {name!r}, which ignores marks; below is what "
                "regional_inductor would do",
                remedy='compile it with torch.compile(..., backend="regional_inductor") or '
                "regional_inductor.compile(...) instead",
            )
        )

    def _note_graph_breaks(self, breaks: Sequence[tuple[str, str]]) -> None:
        inside = lost_regions()
        self.report.findings += inside
        for reason, line in dict.fromkeys(breaks):
            self.report.findings.append(
                Finding(
                    "graph-break",
                    f"a graph break splits the captured code in two graphs: {reason}",
                    line,
                    "a region can't reach across it; fullgraph=True shows what led there",
                )
            )

    def _note_unused_marks(self, model: torch.nn.Module) -> None:
        for path, value in marked_modules(model):
            # After a graph break names are relative to the module whose forward broke; those of
            # captured blocks stand for all of a kind.
            if value.get("eager") or any(
                not path or matches(path, model, seen) or path.endswith(f".{seen}")
                for seen in self._marked_paths
            ):
                continue
            self.report.findings.append(
                Finding(
                    "unmatched",
                    f"the mark on module {path!r} matched nothing: no graph has an operator of it",
                    str(value.get("source") or ""),
                    "the module isn't called with these arguments, or only in code that Dynamo "
                    "doesn't capture; see the graph breaks, or take the mark off",
                    str(value.get("name") or ""),
                )
            )

    def finished(self, how_to_mark: str = _MARK_A_MODEL) -> Report:
        report = self.report
        report.environment.update(described_environment())
        if not report.findings and not any(graph.marked for graph in report.graphs):
            report.findings.append(
                Finding(
                    "unmatched",
                    "nothing is marked in what was captured, so everything runs eagerly",
                    remedy=how_to_mark,
                )
            )
        report.findings[:] = dict.fromkeys(report.findings)
        return report


@contextlib.contextmanager
def _told_as_findings() -> Iterator[None]:
    """No warnings of ours: they are in the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegionWarning)
        yield


def _as_finding(error: RegionError) -> Finding:
    kind = next((kind for cls, kind in _KINDS_OF_ERRORS.items() if isinstance(error, cls)), "error")
    what = f"{error.what}: compiling raises {type(error).__name__}"
    return Finding(kind, what, error.source, error.hint, error.region)


_KINDS_OF_ERRORS = {
    ConflictError: "conflict",
    OptionError: "option",
    MissingValueError: "missing-value",
    MarkError: "mark",
}


def _marked_paths(gm: torch.fx.GraphModule) -> set[str]:
    """Names of the modules that marked operators of Dynamo's graph were called in."""
    found: set[str] = set()
    for module in gm.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if MARK_KEY in (node.meta.get("custom") or {}):
                    found.update(module_names(node))
    return found
