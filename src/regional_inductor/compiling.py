"""`ri.compile`: capture, mark, partition and compile in one call."""

from __future__ import annotations

import functools
import inspect
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from ._torch import calls, dynamo, workers
from ._torch.called import Called
from .backend import backend_settings, compile_captured
from .block_capture import BlockCapture, blocks_of, release
from .blocks import Layout, layout_of
from .compilations import Compilation, CopiedSave, attach
from .errors import OptionError
from .lost_marks import warn_of_lost_regions
from .module_marks import marked_modules
from .report import Report, publish
from .rules import Rule, RuleSet

_T = TypeVar("_T", bound=Callable[..., Any])

_CAPTURES = ("auto", "blocks", "model")
# Below that a whole capture costs little more, and regions may join from one block to the next.
_BLOCKS_WORTH_CAPTURING = 8


def compile(  # noqa: A001 - the public name, as torch.compile's
    model_or_fn: _T,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    merge: Literal["scope", "all"] = "scope",
    on_error: Literal["eager", "raise"] = "eager",
    numerics: Literal["default", "eager"] = "default",
    collectives: Literal["exclude", "include"] = "exclude",
    recompute: Literal["regions", "off"] = "regions",
    backward: Literal["auto", "early", "late"] = "auto",
    capture: Literal["auto", "blocks", "model"] = "auto",
    cudagraphs: Literal["off", "graph"] = "off",
    region_backend: Literal["inductor", "eager"] = "inductor",
    rules: str | Rule | Iterable[str | Rule] | None = None,
) -> _T:
    """Compile the marked regions of a model or function; run everything else eagerly.

    Args:
        model_or_fn: A module, which is compiled in place and returned itself with its state_dict
            keys unchanged; or a function, of which a compiled one is returned.
        fullgraph: Raise where Dynamo can't capture the whole, as for `torch.compile`.
        dynamic: Whether sizes are symbolic, as for `torch.compile`.
        mode: One of Inductor's modes; its options become defaults for all regions.
        options: Inductor's options, defaults for all regions; a region's own override them.
        merge: "scope" makes one region of each entry of a marked scope; "all" makes as few regions
            as there can be, across scopes with equal options.
        on_error: Leave a region that fails to compile eager, with one warning, or raise.
        numerics: "eager" keeps results bit-equal to eager's.
        collectives: Whether regions may contain collectives and their waits.
        recompute: "regions" lets backward regions compute again the pointwise values of their own
            forward regions that the forward pass would keep in memory for them; what runs eagerly
            never runs twice. "off" keeps everything, as eager mode does.
        backward: When backward regions are compiled: "early", with the forward graph's, so that
            their C++ kernels share a run of the compiler (not with `cudagraphs="graph"`); "late", when the backward graph first runs; "auto", early
            while a model is in training mode (`model.training`), else late.
        capture: "model" captures the whole. "blocks" captures each kind of repeated block once, however
            many there are, so that a cold start doesn't grow with depth: blocks, the modules outside
            them and marked functions are compiled in place, each by itself, and the code of the
            modules that hold the blocks runs as it is. Marked operators in such code can't be
            compiled: each line gets a finding and a warning, or raises with `on_error="raise"`.
            Repeated blocks are entries of a `ModuleList`, `ModuleDict` or `Sequential` that are built
            alike. "auto" captures blocks where there are eight or more of a kind and nothing
            asks for the whole: `fullgraph`, `rules`, `merge="all"`, `cudagraphs`, a mark on a module
            that holds blocks, a mark with an id; and goes over to the whole, with a finding, if the
            first run shows marked operators that blocks would leave out.
        cudagraphs: "graph" records eager operators and compiled regions of each captured graph
            together as one CUDA graph, forward and backward; it needs `capture="model"`. A graph
            that can't be recorded runs without, and the report says why. As with torch's
            `mode="reduce-overhead"`, a call's results are overwritten by the next call.
        region_backend: "eager" runs regions without a compiler, for tests.
        rules: What to mark in each captured graph besides what is marked already: names of
            `regional_inductor.rules.RULES`, such as "transformer", or functions of a graph. A rule
            that matches nothing gives a finding; with `fullgraph=True` none matching raises.

    Returns:
        The module itself or a compiled function; both have `.report`, a `Report` that fills as
        graphs are compiled, and `.save`, which is `regional_inductor.save` for it.

    Raises:
        OptionError: An unknown option, choice or rule.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> _ = ri.mark(model, "1", name="norm")
        >>> model = ri.compile(model, region_backend="eager")
        >>> model(torch.ones(2, 4)).shape
        torch.Size([2, 4])
        >>> [region.name for region in model.report.regions]
        ['norm']
    """
    if capture not in _CAPTURES:
        choices = ", ".join(map(repr, _CAPTURES))
        raise OptionError(f"capture={capture!r} is not a choice", hint=f"one of {choices}")
    if cudagraphs == "graph" and capture != "model":
        raise OptionError(
            f'cudagraphs="graph" records a whole capture, and capture={capture!r} may make many',
            hint='pass capture="model" as well',
        )
    if region_backend == "inductor":
        workers.start_early()
    dynamo.watch_compiles(warn_of_lost_regions)
    settings = backend_settings(
        {
            **(options or {}),
            "merge": merge,
            "on_error": on_error,
            "numerics": numerics,
            "collectives": collectives,
            "recompute": recompute,
            "backward": backward,
            "cudagraphs": cudagraphs,
            "region_backend": region_backend,
        },
        mode,
    )
    layout = blocks_of(model_or_fn) if capture == "blocks" else None
    asks_for_whole = fullgraph or rules is not None or merge == "all"
    if capture == "auto" and isinstance(model_or_fn, torch.nn.Module) and not asks_for_whole:
        layout = _worth_capturing(model_or_fn)
    if rules is not None:
        settings = replace(settings, mark_graph=RuleSet(rules, whole=fullgraph and layout is None))
    report = Report()
    arguments = {
        "fullgraph": fullgraph,
        "dynamic": dynamic,
        "mode": mode,
        "options": options,
        "merge": merge,
        "on_error": on_error,
        "numerics": numerics,
        "collectives": collectives,
        "recompute": recompute,
        "backward": backward,
        "capture": capture,
        "cudagraphs": cudagraphs,
        "region_backend": region_backend,
        "rules": rules,
    }
    held = _held(model_or_fn)
    compilation = Compilation(
        held, settings, arguments, Called(dynamic) if layout is not None else None
    )

    def regional_inductor(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        training = bool(getattr(held(), "training", False))
        compiled = compile_captured(gm, example_inputs, settings, report, training=training)
        compilation.remember(calls.captured_call())
        return compiled

    regional_inductor.settings = settings  # type: ignore[attr-defined]  # for verify and bisect
    publish(report)
    if isinstance(model_or_fn, torch.nn.Module):
        release(model_or_fn)
        model_or_fn.report = report  # type: ignore[assignment]

        def compile_whole() -> None:
            compilation.start_over()
            with dynamo.own_traces_only():
                model_or_fn.compile(backend=regional_inductor, fullgraph=fullgraph, dynamic=dynamic)

        if layout is None:
            compile_whole()
        else:
            BlockCapture(
                model_or_fn,
                layout,
                regional_inductor,
                report.findings,
                fullgraph=fullgraph,
                dynamic=dynamic,
                marks_more=rules is not None,
                on_error=on_error,
                left_out=compile_whole if capture == "auto" else None,
                called=compilation.called.note if compilation.called else None,
            ).install()
        return _with_save(model_or_fn, compilation)
    with dynamo.own_traces_only():
        compiled = torch.compile(
            model_or_fn, backend=regional_inductor, fullgraph=fullgraph, dynamic=dynamic
        )
    if inspect.isfunction(compiled):
        compiled.report = report  # type: ignore[attr-defined]
        return _with_save(compiled, compilation)  # type: ignore[return-value]

    @functools.wraps(model_or_fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return compiled(*args, **kwargs)

    wrapper.report = report  # type: ignore[attr-defined]
    return _with_save(wrapper, compilation)  # type: ignore[return-value]


def _worth_capturing(model: torch.nn.Module) -> Layout | None:
    """A model's layout if `capture="auto"` captures its blocks, else None."""
    layout = layout_of(model)
    if layout.most < _BLOCKS_WORTH_CAPTURING:
        return None
    around = {path for path, _ in layout.around}
    for path, value in marked_modules(model):
        if path in around or "inductor_region" in value:
            return None
    return layout


def _held(original: Any) -> Callable[[], Any]:
    """A module weakly: what torch calls instead of it holds this, and it holds that."""
    if isinstance(original, torch.nn.Module):
        return weakref.ref(original)
    return lambda: original


def _with_save(compiled: _T, compilation: Compilation) -> _T:
    attach(compiled, compilation)
    if not hasattr(type(compiled), "save"):  # a model's own `save` stays what it was
        compiled.save = Save(compiled)  # type: ignore[attr-defined]
    return compiled


class Save:
    """The `.save` of what `compile` returned.

    Copies and pickles of a model are not compiled, so theirs says so.
    """

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self._compiled = weakref.ref(compiled)

    def __call__(self, path: str | os.PathLike[str]) -> None:
        """As `regional_inductor.save`."""
        from .saving import save  # whoever saves nothing needn't wait for it

        compiled = self._compiled()
        assert compiled is not None, "it is an attribute of what it saves"
        save(compiled, path)

    def __reduce__(self) -> tuple[Any, ...]:
        return CopiedSave, ()
