"""`ri.bisect`: which compiled regions, and which of their operators, break a check."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ._torch import capture as captures
from .bisection import Bisection, Culprit
from .comparison import Tolerance
from .delta import smallest_failing
from .errors import MarkError, OptionError, RegionError
from .originals import Original
from .selection import Kept, MetRegion
from .trial_capture import captures_blocks
from .trials import Calls, Check, Command, Trials, Verdict
from .verifying import read_tolerances, settings_for

_SCRIPT = "bisected_region.py"
_SCRIPT_TIME_S = 600


def bisect(
    model_or_fn: Any = None,
    /,
    *args: Any,
    check: Check | str | None = None,
    slower_than: float | None = None,
    dynamic: bool | None = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    merge: Literal["scope", "all"] | None = None,
    numerics: Literal["default", "eager"] | None = None,
    collectives: Literal["exclude", "include"] | None = None,
    capture: Literal["blocks", "model"] | None = None,
    region_backend: Literal["inductor", "eager"] | None = None,
    tolerances: Tolerance | Mapping[torch.dtype, Tolerance] | None = None,
    script: str | Path | None = _SCRIPT,
    show: bool = True,
    **kwargs: Any,
) -> Bisection:
    """Find the smallest set of compiled regions that breaks a check, and the operators in them.

    The program runs again and again with some regions compiled and the rest eager: halves first,
    then smaller parts and what they leave over, until leaving out any single region makes the check
    pass (delta debugging). The same is then done with the operators of each region found. Compiled
    regions are kept from trial to trial.

    At the end a script is written that compiles what was found by itself, without the model, and it
    is run: from random inputs of the shapes, strides and dtypes of the real ones, and if that shows
    nothing, from the real ones, which are saved beside it.

    The model is not changed, as in `verify`: every trial starts from the same parameters, buffers,
    gradients and generator states. Something compiled is bisected as it was compiled.

    Args:
        model_or_fn: A module, a function, or what `torch.compile` or `regional_inductor.compile` made
            of one. None where the check is a shell command.
        *args: What to call it with.
        check: What must hold. By default outputs, gradients and written tensors are within
            `tolerances` of eager's, and nothing is raised. A callable is called as
            `check(compiled, *args, **kwargs)`; what it raises is bad, and so is False, while
            NotImplemented says that it can't tell. A shell command says it by its exit code as for `git bisect run`:
            0 good, 125 can't tell, everything else bad, death by a signal included. It must
            compile with this package in processes that it starts.
        slower_than: Look for what makes a run take more than this many times eager's time instead.
        dynamic: As for `regional_inductor.compile`.
        mode: As for `regional_inductor.compile`.
        options: As for `regional_inductor.compile`.
        merge: As for `regional_inductor.compile`. This and the next three are by default what
            something compiled was compiled with.
        numerics: As for `regional_inductor.compile`.
        collectives: As for `regional_inductor.compile`.
        capture: As for `regional_inductor.verify`. With "blocks", a region is that of all the blocks that
            share it.
        region_backend: As for `regional_inductor.compile`.
        tolerances: As for `regional_inductor.verify`.
        script: Where to write the script; None for none.
        show: Whether to print each trial and the result.
        **kwargs: What to call it with, by keyword; as for `regional_inductor.verify`.

    Returns:
        A `Bisection`, whose `culprits` are the regions found.

    Raises:
        RegionError: The check fails although every region is eager, or can't tell for all of them
            compiled, so no region is to blame.
        MarkError: No region was compiled at all, or what was given is neither a module nor a function.
        OptionError: An unknown option or choice, or a model together with a shell command.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> _ = ri.mark(model, "1", name="norm")
        >>> found = ri.bisect(model, torch.ones(2, 4), region_backend="eager", show=False)
        >>> print(found)
        nothing to find: good with all 2 regions compiled
    """
    if isinstance(check, str):
        _require_no_model(model_or_fn, args, kwargs)
        with tempfile.TemporaryDirectory(prefix="regional-inductor-bisect-") as folder:
            command = Command(check, Path(folder))
            return _Search(command, script, show).result()
    if model_or_fn is None or isinstance(
        model_or_fn, (torch.fx.GraphModule, torch.export.ExportedProgram)
    ):
        raise MarkError(
            f"bisect takes a module or a function, not {type(model_or_fn).__qualname__}",
            hint="bisect(model, *args), or bisect(check=COMMAND) for a shell command",
        )
    if check is not None and not callable(check):
        raise OptionError(
            f"check={check!r} can't be called", hint="give a function, a shell command or None"
        )
    asked = {
        "merge": merge,
        "numerics": numerics,
        "collectives": collectives,
        "region_backend": region_backend,
    }
    calls = Calls(
        Original(captures.uncompiled(model_or_fn), args, kwargs),
        settings_for(model_or_fn, asked, options, mode),
        check=check,
        tolerances=read_tolerances(tolerances),
        slower_than=slower_than,
        dynamic=dynamic,
        blocks=captures_blocks(model_or_fn, capture),
    )
    return _Search(calls, script, show).result()


def _require_no_model(model_or_fn: Any, args: Any, kwargs: Any) -> None:
    if model_or_fn is not None or args or kwargs:
        raise OptionError(
            "a shell command runs in a process of its own, which doesn't have this model",
            hint="bisect(check=COMMAND) without a model, or give a function as check",
        )


class _Search:
    """One bisection: runs trials, remembers the failure it looks for, and tells how it goes."""

    def __init__(self, trials: Trials, script: str | Path | None, show: bool) -> None:
        self.trials = trials
        self.script = None if script is None else Path(script)
        self.show = show
        self.count = 0
        self.failure = Verdict("good")

    def result(self) -> Bisection:
        found = self._search()
        if self.show:
            print(found)
        return found

    def _search(self) -> Bisection:
        self.failure = self._trial(None, "all regions compiled")
        regions = {region.id: region for region in self.trials.met}
        if self.failure.state == "skip":
            raise RegionError(
                "the check can't tell whether all regions compiled is good or bad",
                hint="there is nothing to find until it is bad",
            )
        if not regions:
            raise MarkError(
                "there is nothing to bisect: no region was compiled",
                hint="mark something, and compile with this package; see regional_inductor.explain(...)",
            )
        if self.failure.state == "good":
            return Bisection(trials=self.count, regions=len(regions))
        alone = self._trial({}, "all regions eager")
        if alone.state != "good":
            raise RegionError(
                f"no region is to blame: with every region eager it is {alone.state} too "
                f"({alone.kind}: {alone.what})",
                hint="look for the fault in the check, or in what capturing the model changes",
            )
        kept = self._regions(list(regions))
        kept = self._operators(kept, regions)
        return self._written(kept, regions)

    def _regions(self, ids: Sequence[str]) -> dict[str, tuple[int, ...] | None]:
        def fails(part: Sequence[str]) -> bool:
            text = f"{len(part)} of {len(ids)} regions compiled"
            return self._fails(dict.fromkeys(part), text)

        return dict.fromkeys(smallest_failing(ids, fails))

    def _operators(
        self, kept: dict[str, tuple[int, ...] | None], regions: Mapping[str, MetRegion]
    ) -> dict[str, tuple[int, ...] | None]:
        for region in list(kept):
            kept = {**kept, region: self._operators_of(regions[region], kept)}
        return kept

    def _operators_of(self, region: MetRegion, kept: Kept) -> tuple[int, ...]:
        count = len(region.units)

        def fails(part: Sequence[int]) -> bool:
            text = f"{len(part)} of {count} operators of {region.name} compiled"
            return self._fails({**kept, region.id: tuple(part)}, text)

        return smallest_failing(range(count), fails)

    def _fails(self, kept: Kept, text: str) -> bool:
        """Whether a trial shows the failure that is looked for; another one doesn't count."""
        verdict = self._trial(kept, text)
        return verdict.state == "bad" and verdict.kind == self.failure.kind

    def _trial(self, kept: Kept | None, text: str, script: Path | None = None) -> Verdict:
        self.count += 1
        verdict = self.trials.run(kept, script)
        if self.show:
            said = f" ({verdict.kind})" if verdict.kind and verdict.state != "good" else ""
            print(f"trial {self.count}: {text}: {verdict.state}{said}", flush=True)
        return verdict

    # --- the script ---------------------------------------------------------------------------------

    def _written(
        self, kept: dict[str, tuple[int, ...] | None], regions: Mapping[str, MetRegion]
    ) -> Bisection:
        found = Bisection(
            tuple(_culprit(regions[region], units) for region, units in kept.items()),
            self.failure.kind,
            self.failure.what,
            self.count,
            len(regions),
        )
        if self.script is None:
            return found
        self.script.unlink(missing_ok=True)
        inputs = self.script.with_suffix(".pt")
        inputs.unlink(missing_ok=True)
        self._trial(kept, "what was found, written as a script", self.script)
        notes = tuple(f"not in the script: {p}" for p in getattr(self.trials, "problems", ()))
        found = replace(found, trials=self.count, notes=notes)
        if not self.script.exists():
            return found
        reproduced = self._script_fails()
        if not reproduced and isinstance(self.trials, Calls):
            torch.save(self.trials.run_and_keep_inputs(kept), inputs)
            reproduced = self._script_fails()
            if not reproduced:
                inputs.unlink()
        if not reproduced:
            notes = (
                *notes,
                "by itself the region is as good as eager: the failure needs the program",
            )
        return replace(found, script=self.script, reproduced=reproduced, notes=notes)

    def _script_fails(self) -> bool:
        assert self.script is not None
        command = [sys.executable, str(self.script)]
        if self.failure.kind == "slow":
            command += ["--slower-than", "1"]
        elif self.failure.kind == "check" or self.failure.kind.startswith("exit code"):
            command += ["--bitwise"]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=_SCRIPT_TIME_S)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode != 0


def _culprit(region: MetRegion, units: tuple[int, ...] | None) -> Culprit:
    chosen = range(len(region.units)) if units is None else units
    return Culprit(
        region.name,
        region.direction,
        region.source,
        region.module_path,
        tuple(region.units[index] for index in chosen),
        tuple(region.lines[index] for index in chosen),
        len(region.units),
    )
