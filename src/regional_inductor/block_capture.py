"""Capturing a model's repeated blocks in place, each kind once, and what is marked outside them.

The model's own code, and that of the modules which hold the blocks, runs as plain Python. Captured by
themselves, each under guards of its own, are the blocks, the modules outside them, and marked functions
that plain code calls. What is marked in plain code itself, operators in a `with region(...)` there, can't
be compiled: it is seen while it runs, and told.
"""

from __future__ import annotations

import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.fx
from torch import nn

from . import running
from ._torch import in_place
from ._torch.annotate import annotate_this_thread, annotated_value, is_captured
from .blocks import Layout, is_torchs_own, layout_of
from .errors import MarkError, OptionError, RegionWarning
from .options import MARK_KEY
from .regions import Finding
from .source import calling_line

CompileGraph = Callable[[torch.fx.GraphModule, list[Any]], Any]

_UNMARKED = object()
_MODULE = "L['module']"  # the argument of `run_module`, as Dynamo spells it


class _Entries:
    """What is compiled for one kind of block, one module or one function, by the mark around its call.

    Dynamo doesn't guard on annotations, so calls under different marks must not share its cache.
    """

    def __init__(
        self,
        capture: BlockCapture,
        path: str,
        kind: type[nn.Module] | None = None,
        *,
        is_block: bool = False,
    ) -> None:
        self.path = path
        self.kind = kind  # None for a function
        self.is_block = is_block
        self.places: list[_Place] = []
        self.apart = False  # whether each module is compiled by itself
        self._strangers = 0  # modules that nothing compiled before served
        self._capture = capture
        self._shared: dict[str, _Entry] = {}

    def shared(self, mark: str) -> _Entry:
        if mark not in self._shared:
            self._shared[mark] = self.new()
        return self._shared[mark]

    def new(self) -> _Entry:
        return _Entry(self._capture, self)

    def was_called_first(self, compiled: bool) -> None:
        """Count modules whose first call compiled something; many of them are better off alone.

        Dynamo would run all of them eagerly at its limit of compiles for one code object. Those that
        were served so far move too: in other modes they'd fill up the limit for each other.
        """
        self._strangers += compiled
        if not self.apart and self._strangers >= max(2, in_place.recompile_limit() // 2):
            self.apart = True
            for place in self.places:
                place.chosen.clear()
            self._capture.tell_of_strangers(self)


class _Entry:
    """A function that Dynamo compiles."""

    def __init__(self, capture: BlockCapture, entries: _Entries) -> None:
        def regional_inductor(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
            capture.thread.compiles += 1
            in_place.guard_hooks()
            if entries.kind is not None:
                _qualify(gm, entries.path, entries.kind)
            capture.look_for_ids(gm)
            if not entries.is_block and not capture.marks_more and not _has_marks(gm):
                return gm.forward  # nothing to compile: it runs as it is
            return capture.compile_graph(gm, example_inputs)

        self.call = in_place.compiled_entry(
            in_place.run_function if entries.kind is None else in_place.run_module,
            entries.path,
            regional_inductor,
            fullgraph=capture.fullgraph,
            dynamic=capture.dynamic,
        )


class _Place:
    """What is called in place of one module."""

    def __init__(self, capture: BlockCapture, module: nn.Module, entries: _Entries) -> None:
        self.capture = capture
        self.module = module
        self.entries = entries
        self.before = in_place.compiled_call(module)
        self.chosen: dict[str, _Entry] = {}
        entries.places.append(self)
        self._plain = not entries.is_block and is_torchs_own(module)
        self._last: Any = _UNMARKED  # the mark around the latest call of a forward pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_captured():
            return in_place.call_uncompiled(self.module, args, kwargs)
        mark = annotated_value(MARK_KEY, _UNMARKED)
        if running.marks_are_lost():
            # What isn't torch's checkpoint runs again what ran under this mark, whose scope was left long ago.
            mark = self._last
            if mark is not _UNMARKED:
                with annotate_this_thread({MARK_KEY: mark}):
                    return self._call(mark, args, kwargs)
        else:
            self._last = mark
        return self._call(mark, args, kwargs)

    def _call(self, mark: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._plain and mark is _UNMARKED and "forward" not in self.module.__dict__:
            return in_place.call_uncompiled(self.module, args, kwargs)
        key = _text_of(mark)
        entry = self.chosen.get(key)
        if entry is None:
            return self._first_call(key, args, kwargs)
        return self.capture.run(entry, self.module, args, kwargs)

    def _first_call(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entries, thread = self.entries, self.capture.thread
        with self.capture.lock:
            is_first = key not in self.chosen  # another thread may call just now
            if is_first:
                self.chosen[key] = entries.new() if entries.apart else entries.shared(key)
            entry = self.chosen[key]
        before = thread.compiles
        try:
            return self.capture.run(entry, self.module, args, kwargs)
        finally:
            if is_first and not entries.apart:
                entries.was_called_first(thread.compiles > before)


class _RootCall:
    """What is called in place of the whole model: its code as it is, with marked functions compiled."""

    def __init__(self, capture: BlockCapture, model: nn.Module) -> None:
        self.capture = capture
        self.backend = capture.compile_graph  # what `verify` and `bisect` ask for
        self.module = model
        self.before = in_place.compiled_call(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_captured():
            return in_place.call_uncompiled(self.module, args, kwargs)
        capture = self.capture
        if capture.called is not None:
            capture.called(self.module, args, kwargs)
        try:
            with (
                running.run_of(capture),
                capture.watched(self.module.training, len(args), *sorted(kwargs)),
            ):
                return in_place.call_uncompiled(self.module, args, kwargs)
        finally:
            capture.settle()


class _Thread(threading.local):
    """What one of the threads that call a model is at."""

    compiles = 0
    watch: in_place.OperatorWatch | None = None  # a mode is on in the thread that entered it


class BlockCapture:
    """A model captured block by block; any number of threads may call it.

    Args:
        model: The model.
        layout: Its parts.
        compile_graph: What compiles a captured graph.
        findings: Where to put what is worth knowing.
        fullgraph: As for `torch.compile`, of each block and module by itself.
        dynamic: As for `torch.compile`.
        marks_more: Whether `compile_graph` marks what isn't marked yet.
        on_error: "raise" raises for marks that can't be compiled.
        left_out: Called after a run in which marked operators ran eagerly, for the first time.
        called: Called before each run with the model and its arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        compile_graph: CompileGraph,
        findings: list[Finding],
        *,
        fullgraph: bool = False,
        dynamic: bool | None = None,
        marks_more: bool = False,
        on_error: str = "eager",
        left_out: Callable[[], None] | None = None,
        called: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None] | None = None,
    ) -> None:
        self.model = model
        self.called = called
        self.compile_graph = compile_graph
        self.fullgraph = fullgraph
        self.dynamic = dynamic
        self.marks_more = marks_more
        self._findings = findings
        self._on_error = on_error
        self._left_out = left_out
        self._ways_seen: set[Any] = set()
        self.lock = threading.Lock()
        self.thread = _Thread()
        self._lines: set[str] = set()
        self._told: set[Finding] = set()
        self._untold: list[Finding] = []
        self._functions: dict[int, tuple[types.CodeType, _Entries]] = {}
        self._places: list[_Place | _RootCall] = [
            _Place(self, module, entries)
            for kind in layout.kinds
            for entries in [_Entries(self, kind.path, type(kind.modules[0]), is_block=True)]
            for module in kind.modules
        ]
        for path, module in layout.outside:
            self._places.append(_Place(self, module, _Entries(self, path, type(module))))
        self._places.append(_RootCall(self, model))

    def install(self) -> None:
        """Have calls of the model, its blocks and other modules go through here."""
        running.follow_checkpoints()
        for place in self._places:
            in_place.set_compiled_call(place.module, place)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Have the model called as if nothing were captured in it."""
        self.remove()
        try:
            yield
        finally:
            self.install()

    def remove(self) -> None:
        """Give each module that is still called through here the call back that it had before."""
        for place in self._places:
            if in_place.compiled_call(place.module) is place:
                in_place.set_compiled_call(place.module, place.before)

    # --- calls --------------------------------------------------------------------------------------

    def run(
        self, entry: _Entry, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call something compiled: in it nothing is compiled in place, and nothing is watched."""
        guarded = in_place.hooks_are_guarded()
        watch = self.thread.watch
        try:
            with running.inside(), nullcontext() if watch is None else watch.paused():
                return entry.call(subject, *args, **kwargs)
        finally:
            if not guarded and in_place.hooks_are_guarded():
                in_place.stop_guarding_hooks()

    def call_marked(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a marked function that the model's own code calls, compiled by itself."""
        code = function.__code__  # that of a function made anew in each call stays the same
        with self.lock:
            if id(code) not in self._functions:
                self._functions[id(code)] = (code, _Entries(self, function.__qualname__))
            _, entries = self._functions[id(code)]
            entry = entries.shared(_text_of(annotated_value(MARK_KEY, _UNMARKED)))
        return self.run(entry, function, args, kwargs)

    # --- what is marked in plain code ---------------------------------------------------------------

    @contextmanager
    def watched(self, *way: Any) -> Iterator[None]:
        """Watch for marked operators in plain code, the first time that the model is called this way."""
        way = (*way, torch.is_grad_enabled())
        if way in self._ways_seen or self.thread.watch is not None:
            yield
            return
        self._ways_seen.add(way)
        self.thread.watch = in_place.OperatorWatch(self._operator_ran)
        try:
            with self.thread.watch:
                yield
        finally:
            self.thread.watch = None

    def settle(self) -> None:
        """After a run: tell what blocks leave out, or have the whole captured from now on."""
        if not self._untold:
            return
        with self.lock:
            untold, self._untold = self._untold, []
        if self._left_out is not None:
            self._left_out()
            return
        for finding in untold:
            if finding.kind == "uncaptured":
                warnings.warn(RegionWarning(finding.text), stacklevel=3)

    def _tell(self, finding: Finding) -> None:
        with self.lock:
            if finding not in self._told:
                self._told.add(finding)
                self._untold.append(finding)
                self._findings.append(finding)

    def look_for_ids(self, gm: torch.fx.GraphModule) -> None:
        """Say of each id in a captured graph that it joins nothing outside it."""
        for value in _marks_in(gm):
            if isinstance(value, dict) and value.get("inductor_region") is not None:
                self._tell(
                    Finding(
                        "blocks",
                        f"the id {value['inductor_region']!r} is in code that is captured by itself: "
                        "regions of different blocks and modules don't join",
                        str(value.get("source") or ""),
                        'compile with capture="model" if they are to',
                        str(value.get("name") or ""),
                    )
                )

    def _operator_ran(self, operator: str) -> None:
        value = annotated_value(MARK_KEY, _UNMARKED)
        if value is _UNMARKED or (isinstance(value, dict) and value.get("eager")):
            return
        line = calling_line()
        if line in self._lines:
            return
        name = value.get("name") if isinstance(value, dict) else value
        what = (
            f"{operator} is marked and runs eagerly: it is code of a module that holds the captured "
            "blocks, which is not captured itself"
        )
        hint = (
            "move what is marked into a function with @regional_inductor.region or into a module, or "
            'compile with capture="model"'
        )
        if self._on_error == "raise" and self._left_out is None:
            raise MarkError(what, region=str(name or ""), source=line, hint=hint)
        self._lines.add(line)
        self._tell(Finding("uncaptured", what, line, hint, str(name or "")))

    def tell_of_strangers(self, entries: _Entries) -> None:
        """Say, once, that blocks which look alike are compiled one by one."""
        finding = Finding(
            "blocks",
            f"the modules {entries.path} are built alike, and Dynamo's guards tell them apart all the "
            "same: each is captured by itself",
            remedy="TORCH_LOGS=recompiles says which guard it is; often a number or an object that "
            "each block holds one of its own of",
        )
        if finding not in self._findings:
            self._findings.append(finding)


# --- a model's capture ----------------------------------------------------------------------------


def blocks_of(model: Any) -> Layout:
    """The layout of a model for `capture="blocks"`.

    Raises:
        OptionError: What was given has no repeated blocks, or is no module.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(
            f'capture="blocks" captures modules of a model, not {type(model).__qualname__}',
            hint='compile the model itself, or use capture="model"',
        )
    layout = layout_of(model)
    if not layout.kinds:
        raise OptionError(
            f'capture="blocks" found no repeated blocks in {type(model).__qualname__}: no ModuleList, '
            "ModuleDict or Sequential holds two modules that are built alike",
            hint='use capture="model"',
        )
    return layout


def capture_in_place(model: nn.Module) -> BlockCapture | None:
    """The capture that a model's calls go through, or None."""
    call = in_place.compiled_call(model)
    return call.capture if isinstance(call, _RootCall) else None


def release(model: nn.Module) -> None:
    """Undo every capture of blocks in a model, those that nobody's calls go through included."""
    for module in model.modules():
        call = in_place.compiled_call(module)
        if isinstance(call, (_Place, _RootCall)):
            call.capture.remove()


# --- captured graphs and marks --------------------------------------------------------------------


def _qualify(gm: torch.fx.GraphModule, path: str, kind: type[nn.Module]) -> None:
    """Put a module's own name before the names of the modules in it: `norm` is `layers.*.norm`."""
    root = f"{_MODULE}.{path}"
    for node in gm.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        renamed = {key: (_below(root, str(name)), kind) for key, (name, kind) in stack.items()}
        node.meta["nn_module_stack"] = {root: (root, kind), **renamed}


def _below(root: str, name: str) -> str:
    return f"{root}{name[len(_MODULE) :]}" if name.startswith(_MODULE) else name


def _has_marks(gm: torch.fx.GraphModule) -> bool:
    return annotated_value(MARK_KEY, _UNMARKED) is not _UNMARKED or any(True for _ in _marks_in(gm))


def _marks_in(gm: torch.fx.GraphModule) -> Iterator[Any]:
    for module in gm.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                custom = node.meta.get("custom") or {}
                if MARK_KEY in custom:
                    yield custom[MARK_KEY]


def _text_of(mark: Any) -> str:
    """Equal for marks that ask for the same; which entry of its scope a call lies in doesn't count."""
    if mark is _UNMARKED:
        return ""
    if isinstance(mark, dict):
        mark = {key: value for key, value in mark.items() if key != "entry"}
    return repr(mark)


__all__ = [
    "BlockCapture",
    "blocks_of",
    "capture_in_place",
    "release",
]
