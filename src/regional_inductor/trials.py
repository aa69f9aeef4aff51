"""One run of a program with some regions compiled and the rest eager: does it go wrong?"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.fx

from ._torch import dynamo, ops, undo
from .comparison import Comparison, Tolerances
from .errors import RegionCompileError
from .originals import Original, Results, fresh_objects
from .regions import Compiled, CompiledRegion, Outlined, Settings
from .reproduction import Recorder
from .selection import VARIABLE, Kept, MetRegion, Selection, read_met, write_kept
from .stages.collect import collect
from .stages.compile import compile as compile_stage
from .stages.outline import outline
from .stages.partition import partition
from .stages.stitch import stitch
from .verifying import compare_all, compiled_for_trial, with_random_numbers_of_eager

Check = Callable[..., Any]
"""Called with the compiled function and the arguments; False is bad, NotImplemented can't tell."""

_TIMED_RUNS = 5
# git bisect's: can't be tested. And what a shell says after Ctrl-C.
_SKIP, _INTERRUPTED = 125, 128 + signal.SIGINT


@dataclass(frozen=True)
class Verdict:
    """What one trial showed.

    Attributes:
        state: ``"good"``, ``"bad"``, or ``"skip"`` where it can't be told.
        kind: What kind of failure: ``"wrong numbers"``, ``"raises ValueError"``, ``"slow"``,
            ``"check"``, ``"exit code 1"``.
        what: A line that says more.
    """

    state: Literal["good", "bad", "skip"]
    kind: str = ""
    what: str = ""


class Trials(Protocol):
    """Runs a program with what is kept compiled; afterwards `met` says which regions it has."""

    met: list[MetRegion]

    def run(self, kept: Kept | None, script: Path | None = None) -> Verdict:
        """Run once.

        Args:
            kept: What stays compiled; None for everything.
            script: Where to write a script of what is compiled.
        """


class Calls:
    """Trials in this process: a model and its arguments, from the same state each time."""

    def __init__(
        self,
        original: Original,
        settings: Settings,
        *,
        check: Check | None,
        tolerances: Tolerances,
        slower_than: float | None,
        dynamic: bool | None,
        blocks: bool,
    ) -> None:
        self.original = original
        self.settings = replace(settings, on_error="raise")
        self.check = check
        self.tolerances = tolerances
        self.slower_than = slower_than
        self.dynamic = dynamic
        self.blocks = blocks
        self.met: list[MetRegion] = []
        self.problems: list[str] = []
        self._expected: Results | None = None

    def run(self, kept: Kept | None, script: Path | None = None) -> Verdict:
        verdict, _ = self._run(kept, Recorder(script) if script is not None else None)
        return verdict

    def run_and_keep_inputs(self, kept: Kept) -> list[list[Any]]:
        """Run once more and return what each compiled region was called with first."""
        return self._run(kept, None, keep=True)[1]

    def _run(
        self, kept: Kept | None, recorder: Recorder | None, *, keep: bool = False
    ) -> tuple[Verdict, list[list[Any]]]:
        if self.check is None:
            self.expected()  # from the state that the compiled run starts from as well
        selection = Selection(kept)
        stages = _Stages(self.check is None, recorder, keep)
        settings = replace(self.settings, selection=selection)
        with (
            compiled_for_trial(
                self.original, settings, stages.all, self.dynamic, self.blocks
            ) as compiled,
            self.original.state_restored() as undoing,
        ):
            stages.undoing = undoing
            try:
                verdict = self._judged(compiled, undoing)
            except Exception as error:  # noqa: BLE001 - whatever a run raises is what was looked for
                verdict = _raised(error)
        self.met = selection.met
        if recorder is not None:
            self.problems = recorder.problems
        return verdict, stages.inputs

    def _judged(self, compiled: Callable[..., Any], undoing: undo.UndoWrites) -> Verdict:
        if self.check is not None:
            args, kwargs = fresh_objects((self.original.args, self.original.kwargs))
            try:
                answer = self.check(compiled, *args, **kwargs)
            except AssertionError as error:
                return Verdict("bad", "check", _first_line(error))
            if answer is NotImplemented:
                return Verdict("skip", "check", "the check returned NotImplemented")
            good = answer is None or bool(answer)
            return Verdict("good" if good else "bad", "check", f"the check returned {answer!r}")
        actual = self.original.run(compiled, undoing)
        if self.slower_than is not None:
            with undoing.paused():
                return self._timed(compiled, undoing, self.slower_than)
        return self._compared(actual)

    def _compared(self, actual: Results) -> Verdict:
        expected = self.expected()
        pairs = (
            (actual.outputs, expected.outputs),
            (actual.gradients, expected.gradients),
            (actual.written, expected.written),
        )
        found = [c for ours, theirs in pairs for c in compare_all(ours, theirs, self.tolerances)]
        wrong = [comparison for comparison in found if not comparison.ok]
        if not wrong:
            return Verdict("good")
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Verdict("bad", "wrong numbers", _difference(wrong[0]) + more)

    def expected(self) -> Results:
        """What the uncompiled original gives; run once."""
        if self._expected is None:
            with self.original.state_restored() as undoing:
                self._expected = self.original.run(self.original.function, undoing)
        return self._expected

    def _timed(
        self, compiled: Callable[..., Any], undoing: undo.UndoWrites, times: float
    ) -> Verdict:
        least = [float("inf"), float("inf")]
        for _ in range(_TIMED_RUNS):
            for index, call in enumerate((compiled, self.original.function)):
                started = time.perf_counter()
                self.original.run(call, undoing)
                least[index] = min(least[index], time.perf_counter() - started)
        text = f"{least[0] * 1e3:.3g} ms, eager {least[1] * 1e3:.3g} ms"
        return Verdict("bad" if least[0] > times * least[1] else "good", "slow", text)


class _Stages:
    """The pass, made to be undone: writes of compiled kernels are seen, inputs are kept if asked."""

    def __init__(self, same_random_numbers: bool, recorder: Recorder | None, keep: bool) -> None:
        self.undoing: undo.UndoWrites | None = None
        self.inputs: list[list[Any]] = []
        self._same_random_numbers = same_random_numbers
        self._recorder = recorder
        self._keep = keep

    @property
    def all(self) -> tuple[Callable[..., Any], ...]:
        return (collect, partition, outline, self.prepare, self.compile, self.watch, stitch)

    def prepare(self, outlined: Outlined, settings: Settings) -> Outlined:
        if self._same_random_numbers:
            with_random_numbers_of_eager(outlined, settings)
        if self._recorder is not None:
            self._recorder.record(outlined, settings)
        return outlined

    def compile(self, outlined: Outlined, settings: Settings) -> Compiled:
        with self.undoing.paused() if self.undoing is not None else nullcontext():
            return compile_stage(outlined, settings)

    def watch(self, compiled: Compiled, settings: Settings) -> Compiled:
        graphs = []
        for graph in compiled.graphs:
            regions = {}
            for node, region in graph.regions.items():
                name = str(node.target)
                eager = graph.outlined.submodules.get(name)
                eager = eager or graph.outlined.module.get_submodule(name)
                assert isinstance(eager, torch.fx.GraphModule)
                regions[node] = self._watched(region, eager)
            graphs.append(replace(graph, regions=regions))
        return replace(compiled, graphs=tuple(graphs))

    def _watched(self, region: CompiledRegion, eager: torch.fx.GraphModule) -> CompiledRegion:
        call, boxed = region.call, region.boxed
        writes = any(ops.traits(node, eager).writes for node in eager.graph.nodes)
        if call is None or not (writes or self._keep):
            return region
        kept: list[Any] = []
        if self._keep:
            self.inputs.append(kept)

        def watched(*args: Any) -> Any:
            if self._keep and not kept:
                kept.extend(v.detach().clone() if isinstance(v, torch.Tensor) else v for v in args)
            if writes and self.undoing is not None:
                self.undoing.will_write(args)
            return call(list(args)) if boxed else call(*args)

        return replace(region, call=watched, boxed=False)


def _raised(error: Exception) -> Verdict:
    """What was raised inside, under what Dynamo and this package put around it."""
    cause: BaseException = error
    while isinstance(cause, RegionCompileError) or dynamo.is_backend_failure(cause):
        inner = cause.__cause__ or getattr(cause, "inner_exception", None)
        if inner is None:
            break
        cause = inner
    return Verdict("bad", f"raises {type(cause).__name__}", _first_line(cause))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _difference(found: Comparison) -> str:
    if found.problem:
        return f"{found.what}: {found.problem}"
    if found.nonfinite:
        return f"{found.what}: {found.nonfinite} of {found.elements} NaN or infinite in one only"
    return (
        f"{found.what}: {found.beyond} of {found.elements} beyond the tolerance, "
        f"max abs {found.max_abs:.3g}"
    )


class Command:
    """Trials by a shell command, as `git bisect run` has it.

    The exit code says what a trial showed: 0 good, 125 can't be told, anything else bad; that is
    also what a process killed by a signal counts as, but for Ctrl-C, which ends the bisection.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.command = command
        self.folder = folder
        self.met: list[MetRegion] = []
        self.problems: list[str] = []
        self._runs = 0

    def run(self, kept: Kept | None, script: Path | None = None) -> Verdict:
        self._runs += 1
        write_kept(self.folder, kept, script)
        log = self.folder / f"trial-{self._runs}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                self.command,
                shell=True,
                check=False,
                env=self._environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.met = read_met(self.folder)
        code = done.returncode
        if code in (-signal.SIGINT, _INTERRUPTED):
            raise KeyboardInterrupt
        last = next(iter(reversed(log.read_text(errors="replace").strip().splitlines())), "")
        state: Literal["good", "bad", "skip"] = (
            "good" if code == 0 else "skip" if code == _SKIP else "bad"
        )
        return Verdict(state, f"exit code {code}", last)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, VARIABLE: str(self.folder)}


__all__ = ["Calls", "Check", "Command", "Trials", "Verdict"]
