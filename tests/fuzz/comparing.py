"""One program against eager: results, gradients, what it wrote, and where it left the generator."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd

import regional_inductor as ri
from regional_inductor.exactness import unequal_bits

from .programs import COLUMNS, Program, source

_numbers = itertools.count()


class EagerFails(Exception):
    """A program that raises by itself (control flow over aliases, say): there is no oracle for it."""


class Difference(AssertionError):
    """A program that does not do what eager does; the text holds its source."""


def load(text: str, folder: Path) -> Any:
    """The module that a source stands for; a file, because Dynamo and inspect want one."""
    name = f"fuzzed_{next(_numbers)}"
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dynamo looks modules up by name
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _modules() -> Iterator[None]:
    """Forget at the end what `load` loaded."""
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith("fuzzed_")]:
            del sys.modules[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inputs_of(program: Program, batch: int, seed: int) -> list[torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    values = [
        torch.randn(batch, COLUMNS, generator=drawn).to(program.device).requires_grad_(wanted)
        for wanted in program.inputs
    ]
    return [*values, torch.randn(COLUMNS, generator=drawn).mul_(0.1)[:1].to(program.device)]


def run(function: Callable[..., Any], program: Program, batch: int, seed: int) -> list[Any]:
    """All that can be seen of one call and its backward pass."""
    inputs = inputs_of(program, batch, seed)
    torch.manual_seed(seed)
    result = function(*inputs)
    outputs = list(result) if isinstance(result, tuple) else [result]
    on_cpu = program.device == "cpu"
    state = torch.get_rng_state() if on_cpu else torch.cuda.get_rng_state(program.device)
    leaves = [value for value in inputs if value.requires_grad]
    sums = [out.double().square().mean() for out in outputs if out.requires_grad]
    gradients: list[Any] = []
    if leaves and sums:
        total = torch.stack(sums).sum()
        gradients = list(torch.autograd.grad(total, leaves, allow_unused=True))
    return [*(out.detach() for out in outputs), inputs[-1], state, *gradients]


def check(program: Program, region_backend: str) -> str:
    """Compare a program with eager.

    Returns:
        What it equals: "eager"; or "aot_eager", where stock `aot_eager`, which compiles nothing, does not
        do what eager does either (AOTAutograd drops a random draw that nobody uses, say).

    Raises:
        EagerFails: The program itself raises.
        Difference: With the source and what differs.
    """
    text = source(program)
    exact = program.numerics == "eager" or region_backend == "eager"
    with _modules(), tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _quiet():

        def stock() -> Any:
            function = load(text, Path(folder)).program
            return torch.compile(function, dynamic=program.dynamic, backend="aot_eager")

        eager = load(text, Path(folder)).program
        problem = _problem(program, eager, _ours(program, text, folder, region_backend), exact)
        if not problem:
            return "eager"
        if _problem(program, eager, stock(), exact=True):
            ours = _ours(program, text, folder, region_backend)
            problem = _problem(program, stock(), ours, exact)
            if not problem:
                return "aot_eager"
    raise Difference(f"{_described(program)}{text}\n# {problem}")


def _ours(program: Program, text: str, folder: str, region_backend: str) -> Any:
    function = load(text, Path(folder)).program
    settings = {
        "merge": program.merge,
        "numerics": program.numerics,
        "on_error": "raise",
        "region_backend": region_backend,
    }
    # torch's own draws; Inductor's would differ and be no less right.
    options = {"fallback_random": True}
    if program.through == "compile":
        return ri.compile(function, dynamic=program.dynamic, options=options, **settings)

    def compiler(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        if program.through == "drop-in":
            return ri.regional_inductor(gm, *inputs, **options, **settings)
        outlined = ri.outline_regions(gm, **options, **settings)
        return ri.compile_regions(outlined, **options, **settings)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    return torch.compile(function, dynamic=program.dynamic, backend=backend)


def _problem(
    program: Program, eager: Callable[..., Any], compiled: Callable[..., Any], exact: bool
) -> str:
    torch._dynamo.reset()
    for batch, seed in ((3, 1), (3, 2), *(((5, 3),) if program.dynamic else ())):
        try:
            expected = run(eager, program, batch, seed)
        except Exception as error:
            raise EagerFails(f"{type(error).__name__}: {error}") from error
        try:
            actual = run(compiled, program, batch, seed)
        except Exception as error:  # noqa: BLE001 - eager ran, so that any error is the finding
            return f"raised {type(error).__name__}: {error}".replace("\n", "\n# ")
        problem = difference(actual, expected, exact=exact)
        if problem:
            return f"batch {batch}: {problem}"
    return ""


def _described(program: Program) -> str:
    return (
        f"# dynamic={program.dynamic} merge={program.merge} numerics={program.numerics} "
        f"through={program.through} gradients={program.inputs}\n"
    )


def difference(actual: list[Any], expected: list[Any], *, exact: bool) -> str:
    """What differs, in a line, or nothing."""
    coarse = any(isinstance(e, torch.Tensor) and e.dtype is torch.bfloat16 for e in expected)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if (a is None) != (e is None):
            return f"value {index}: {a} where eager has {e}"
        if e is None:
            continue
        kinds = [(t.dtype, tuple(t.shape)) for t in (a, e)]
        if kinds[0] != kinds[1]:
            return f"value {index}: {kinds[0]} where eager has {kinds[1]}"
        if not torch.equal(a.isnan(), e.isnan()):
            return f"value {index}: NaN in other places"
        if not (unequal_bits(a, e).any() if exact else (a.nan_to_num() != e.nan_to_num()).any()):
            continue
        error = (a.double() - e.double()).nan_to_num().abs().max().item()
        scale = max(e.double().nan_to_num().abs().max().item(), 1e-2)
        if exact or error > scale * (5e-2 if coarse else 2e-3):
            return f"value {index}: off by {error:.3e} at a scale of {scale:.3e}"
    return ""
