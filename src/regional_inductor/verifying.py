"""`ri.verify`: each region of a real run next to eager and float64; the whole model next to eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.fx
from torch.fx.node import Node

from . import report as reports
from ._torch import capture as captures
from ._torch import ops, undo
from ._torch.reference import NoReferenceError, in_float64
from .backend import backend_settings, compile_captured
from .comparison import Comparison, Tolerance, Tolerances, compare
from .errors import MarkError, OptionError
from .originals import Original, Results
from .regions import (
    REGION_META,
    Compiled,
    CompiledRegion,
    Outlined,
    RegionCall,
    Settings,
)
from .report import Report
from .stages.collect import collect
from .stages.compile import compile as compile_stage
from .stages.outline import outline
from .stages.partition import partition
from .stages.stitch import stitch
from .trial_capture import captures_blocks, compiled_form
from .verification import RegionVerification, Verification


def verify(
    model_or_fn: Any,
    /,
    *args: Any,
    dynamic: bool | None = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    merge: Literal["scope", "all"] | None = None,
    on_error: Literal["eager", "raise"] | None = None,
    numerics: Literal["default", "eager"] | None = None,
    collectives: Literal["exclude", "include"] | None = None,
    capture: Literal["blocks", "model"] | None = None,
    region_backend: Literal["inductor", "eager"] | None = None,
    tolerances: Tolerance | Mapping[torch.dtype, Tolerance] | None = None,
    float64: bool = True,
    show: bool = True,
    **kwargs: Any,
) -> Verification:
    """Compare each compiled region with eager, on the inputs that it gets in a real run.

    The model runs twice, forward and, where something requires gradients, backward from random
    weights on its outputs: once as it is and once compiled. In the second run each region computes
    its outputs three times from the same inputs and the same generator state: compiled, by its
    eager graph, and by that graph in float64. The run goes on with the compiled results. Nothing is
    kept but numbers, so it needs little more memory than a training step and one region.

    The model given is not changed: parameters, buffers, attributes of modules, gradients, random
    number generators and Dynamo's caches are afterwards as they were. Something compiled is
    verified as it was compiled; its uncompiled original is what it is compared with.

    Args:
        model_or_fn: A module, a function, or what `torch.compile` or `regional_inductor.compile`
            made of one.
        *args: What to call it with.
        dynamic: As for `regional_inductor.compile`.
        mode: As for `regional_inductor.compile`.
        options: As for `regional_inductor.compile`.
        merge: As for `regional_inductor.compile`. This and the next four are by default what
            something compiled was compiled with.
        on_error: As for `regional_inductor.compile`.
        numerics: As for `regional_inductor.compile`.
        collectives: As for `regional_inductor.compile`.
        capture: "blocks" captures block by block, "model" the whole; by default as something compiled
            was captured, else the whole.
        region_backend: As for `regional_inductor.compile`.
        tolerances: Relative and absolute tolerance, one pair for all dtypes or one by dtype; by
            default those of `torch.testing.assert_close`.
        float64: Whether to compute the float64 reference. Without it an element beyond the
            tolerance counts even where eager itself is that far from the truth.
        show: Whether to print the tables.
        **kwargs: What to call it with, by keyword. A parameter of the model that has the name of
            one of the options above can't be given this way: pass it by position, or wrap the model
            in a function.

    Returns:
        A `Verification`; its `ok` says whether everything is within the tolerance.

    Raises:
        OptionError: An unknown option or choice, or tolerances that are none.
        MarkError: What was given is neither a module nor a function.

    Example:
        >>> import torch, regional_inductor as ri
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> _ = ri.mark(model, "1", name="norm")
        >>> result = ri.verify(model, torch.ones(2, 4), region_backend="eager", show=False)
        >>> [(region.name, region.direction, region.bitwise) for region in result.regions]
        [('norm', 'forward', True), ('norm', 'backward', True)]
    """
    asked = {
        "merge": merge,
        "on_error": on_error,
        "numerics": numerics,
        "collectives": collectives,
        "region_backend": region_backend,
    }
    settings = settings_for(model_or_fn, asked, options, mode)
    checks = _Checks(read_tolerances(tolerances), float64)
    blocks = captures_blocks(model_or_fn, capture)
    original = Original(captures.uncompiled(model_or_fn), args, kwargs)
    with original.state_restored() as undoing:
        expected = original.run(original.function, undoing)
    with (
        compiled_for_trial(original, settings, checks.stages, dynamic, blocks) as compiled,
        original.state_restored() as undoing,
    ):
        checks.undoing = undoing
        actual = original.run(compiled, undoing)
    result = checks.result(actual, expected)
    if show:
        print(result)
    return result


def settings_for(
    model_or_fn: Any,
    asked: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    mode: str | None,
) -> Settings:
    """What something is to be compiled with: as asked, else as it was compiled, else as usual."""
    if not callable(model_or_fn):
        kind = type(model_or_fn).__qualname__
        raise MarkError(f"this takes a module or a function, not {kind}")
    given = {name: value for name, value in asked.items() if value is not None}
    known = getattr(captures.backend_function(model_or_fn), "settings", None)
    if isinstance(known, Settings):
        checked = backend_settings({**given, **(options or {})}, mode)
        inductors = {**known.default_options, **checked.default_options}
        return replace(known, **given, default_options=inductors)
    arguments = captures.compile_arguments(model_or_fn)
    earlier = arguments.get("options") or {}
    return backend_settings({**earlier, **(options or {}), **given}, mode or arguments.get("mode"))


@contextmanager
def compiled_for_trial(
    original: Original,
    settings: Settings,
    stages: Sequence[Callable[..., Any]],
    dynamic: bool | None,
    blocks: bool,
) -> Iterator[Callable[..., Any]]:
    """A compiled form of the original, by stages of one's own, of which nothing is left afterwards."""
    report = Report()
    published = reports.last_report()

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        return compile_captured(gm, inputs, settings, report, stages)

    with (
        captures.without_a_trace(),
        captures.own_compiles_off(original.function),
        compiled_form(
            original.function,
            backend,
            report.findings,
            blocks=blocks,
            dynamic=dynamic,
            marks_more=settings.mark_graph is not None,
        ) as compiled,
    ):
        try:
            yield compiled
        finally:
            reports.put_back(published)


def read_tolerances(given: Any) -> Tolerances:
    """One pair for all dtypes, or one by dtype, checked."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    pairs = {} if given is None else given
    if not isinstance(pairs, Mapping):
        pairs = dict.fromkeys(dtypes, pairs)
    for dtype, pair in pairs.items():
        usable = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not usable or not isinstance(dtype, torch.dtype):
            raise OptionError(
                f"{dtype}: {pair!r} is no tolerance",
                hint="give (relative, absolute), or {torch.float32: (relative, absolute)}",
            )
    return Tolerances({dtype: (float(r), float(a)) for dtype, (r, a) in pairs.items()})


@dataclass
class _Site:
    """One place that calls a region, and what was found there so far."""

    call: RegionCall
    region: CompiledRegion
    note: str = ""
    calls: int = 0
    outputs: dict[str, Comparison] = field(default_factory=dict)
    reference: str = ""
    error: str = ""

    def add(self, found: Comparison) -> None:
        known = self.outputs.get(found.what)
        self.outputs[found.what] = found if known is None else known.worse(found)

    def result(self) -> RegionVerification:
        return RegionVerification(
            name=self.call.name,
            direction=self.call.direction,
            source=self.call.source,
            module_path=self.call.module_path,
            key=self.region.key,
            status=self.region.status,
            reason=self.region.reason,
            calls=self.calls,
            outputs=tuple(self.outputs.values()),
            reference=self.reference,
            note=self.note,
            error=self.error,
        )


class _Checks:
    """Stages that put a check around each compiled region, and what the checks found."""

    def __init__(self, tolerances: Tolerances, float64: bool) -> None:
        self.tolerances = tolerances
        self.float64 = float64
        self.undoing: undo.UndoWrites | None = None
        self.sites: list[_Site] = []
        self._notes: dict[Node, str] = {}

    @property
    def stages(self) -> tuple[Callable[..., Any], ...]:
        return (
            collect,
            partition,
            outline,
            self.same_random_numbers,
            self.compile,
            self.check,
            stitch,
        )

    def compile(self, outlined: Outlined, settings: Settings) -> Compiled:
        """The compile stage itself."""
        with self.undoing.paused() if self.undoing is not None else nullcontext():
            return compile_stage(outlined, settings)

    def same_random_numbers(self, outlined: Outlined, settings: Settings) -> Outlined:
        for node in with_random_numbers_of_eager(outlined, settings):
            self._notes[node] = (
                "it draws random numbers, and was compiled here with fallback_random=True to "
                "draw those of eager"
            )
        return outlined

    def check(self, compiled: Compiled, settings: Settings) -> Compiled:
        """Put a check in place of each compiled region."""
        graphs = []
        for graph in compiled.graphs:
            regions = {}
            for node, region in graph.regions.items():
                site = _Site(node.meta[REGION_META], region, self._notes.pop(node, ""))
                self.sites.append(site)
                name = str(node.target)
                eager = graph.outlined.submodules.get(name)
                eager = eager or graph.outlined.module.get_submodule(name)
                assert isinstance(eager, torch.fx.GraphModule)
                if region.call is not None:
                    checked = self._checked(site, region.call, eager)
                    region = replace(region, call=checked, boxed=False)
                regions[node] = region
            graphs.append(replace(graph, regions=regions))
        return replace(compiled, graphs=tuple(graphs))

    def _checked(
        self, site: _Site, call: Callable[..., Any], eager: torch.fx.GraphModule
    ) -> Callable[..., Any]:
        boxed = site.region.boxed
        writes = any(ops.traits(node, eager).writes for node in eager.graph.nodes)

        def checked(*args: Any) -> Any:
            site.calls += 1
            copies = _copies(args) if writes else args
            if writes and self.undoing is not None:
                self.undoing.will_write(args)
            with _same_generators(args), torch.no_grad():
                reference = self._reference(site, eager, args)
            with _same_generators(args), torch.no_grad():
                expected = eager(*copies)
            try:
                actual = call(list(args)) if boxed else call(*args)
            except Exception as error:  # noqa: BLE001 - whatever it raises is what was found
                site.error = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                return expected
            for index, value in enumerate(expected):
                self._compare(site, f"output {index}", actual[index], value, reference, index)
            for index, value in enumerate(copies if writes else ()):
                self._compare(site, f"input {index}, written", args[index], value)
            if self.undoing is not None:
                self.undoing.made(actual)
            return actual

        return checked

    def _reference(
        self, site: _Site, eager: torch.fx.GraphModule, args: Sequence[Any]
    ) -> tuple[Any, ...] | None:
        if not self.float64:
            site.reference = "not asked for"
        if site.reference not in ("", "float64"):
            return None
        try:
            found = in_float64(eager, args)
        except NoReferenceError as error:
            site.reference = str(error)
            return None
        site.reference = "float64"
        return found

    def _compare(
        self,
        site: _Site,
        what: str,
        actual: Any,
        expected: Any,
        reference: tuple[Any, ...] | None = None,
        index: int = 0,
    ) -> None:
        if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor):
            exact = None
            if reference is not None and expected.dtype.is_floating_point:
                exact = reference[index]
            site.add(compare(what, actual, expected, self.tolerances, reference=exact))
        elif actual != expected:
            site.add(
                Comparison(what, "", 1, bitwise=False, problem=f"{actual!r}, not {expected!r}")
            )

    def result(self, actual: Results, expected: Results) -> Verification:
        return Verification(
            tuple(site.result() for site in self.sites),
            compare_all(actual.outputs, expected.outputs, self.tolerances),
            compare_all(actual.gradients, expected.gradients, self.tolerances),
            compare_all(actual.written, expected.written, self.tolerances),
        )


def compare_all(
    actual: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    tolerances: Tolerances,
) -> tuple[Comparison, ...]:
    """Results of a whole model next to each other; one that is there only once is a problem."""
    found = []
    for name in dict.fromkeys((*expected, *actual)):
        if name in actual and name in expected:
            found.append(compare(name, actual[name], expected[name], tolerances, whole=True))
            continue
        only = "the compiled run only" if name in actual else "eager only"
        tensor = actual.get(name, expected.get(name))
        dtype = str(tensor.dtype).removeprefix("torch.") if tensor is not None else ""
        found.append(Comparison(name, dtype, 0, bitwise=False, problem=f"given by {only}"))
    return tuple(found)


def with_random_numbers_of_eager(outlined: Outlined, settings: Settings) -> list[Node]:
    """Have regions that draw use eager's random numbers: others can't be compared.

    Returns:
        The calls whose options were changed.
    """
    changed = []
    for graph in outlined.graphs:
        for node in graph.graph.nodes:
            call = node.meta.get(REGION_META)
            module = graph.submodules.get(str(node.target))
            if not isinstance(call, RegionCall) or not isinstance(module, torch.fx.GraphModule):
                continue
            options = settings.options_of(call.mark)
            if options.get("fallback_random") is not None or not _draws(module):
                continue
            mark = replace(call.mark, options=tuple(_with_eager_numbers(call)))
            node.meta[REGION_META] = replace(call, mark=mark)
            changed.append(node)
    return changed


def _draws(module: torch.fx.GraphModule) -> bool:
    return any(ops.traits(node, module).draws for node in module.graph.nodes)


def _with_eager_numbers(call: RegionCall) -> Iterator[tuple[str, Any]]:
    yield from dict(call.mark.options).items()
    yield "fallback_random", True


@contextmanager
def _same_generators(args: Sequence[Any]) -> Iterator[None]:
    devices = {a.device for a in args if isinstance(a, torch.Tensor) and a.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def _copies(args: Sequence[Any]) -> list[Any]:
    """Copies of tensors that share memory among each other as the originals do."""
    storages: dict[int, Any] = {}
    copies: list[Any] = []
    for value in args:
        if not isinstance(value, torch.Tensor):
            copies.append(value)
            continue
        for storage, plain in undo.storages([value]):
            if storage not in storages:
                storages[storage] = undo.copied_storage(plain)
            copies.append(
                torch.empty(0, dtype=value.dtype, device=value.device).set_(
                    storages[storage], value.storage_offset(), value.shape, value.stride()
                )
            )
    return copies
