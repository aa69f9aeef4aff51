"""The code that Inductor generated for a region, the kernels in it, and how long its steps took.

Checked on torch 2.11 and 2.13: `CompiledFxGraph.source_code`, `GraphLowering.save_output_code`, the
wrapper's text, `torch._dynamo.utils.compilation_time_metrics` and the names of Inductor's steps.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

KernelKind = Literal["generated", "library", "fallback"]

CODE_ATTRIBUTE = "source_code"
"""Where a compiled graph of Inductor keeps its code; artifacts get the same attribute from us."""
_CODES_ATTRIBUTE = "source_codes"


@dataclass(frozen=True)
class Kernel:
    """One kernel that generated code runs: its name, what it is, the operators known to be in it."""

    name: str
    kind: KernelKind
    ops: tuple[str, ...]


def source_of(compiled: Any) -> str:
    """The generated code of a compiled region, or ``""`` where it isn't known."""
    code = getattr(compiled, CODE_ATTRIBUTE, "")
    return code if isinstance(code, str) else ""


@contextlib.contextmanager
def recorded_code() -> Iterator[list[str]]:
    """Collects what Inductor generates meanwhile, or loads from its caches."""
    from torch._inductor.graph import GraphLowering

    found: list[str] = []
    before: Callable[[str], None] | None = GraphLowering.save_output_code

    def save(code: str) -> None:
        found.append(code)
        if before is not None:
            before(code)

    GraphLowering.save_output_code = save
    try:
        yield found
    finally:
        GraphLowering.save_output_code = before


def attach_code(compiled: Any, code: Iterable[str]) -> None:
    """Let `source_of` and `sources_of` find the code of an artifact that doesn't keep it itself."""
    codes = tuple(dict.fromkeys(code))
    with contextlib.suppress(AttributeError, TypeError):
        setattr(compiled, CODE_ATTRIBUTE, "\n\n".join(codes))
        setattr(compiled, _CODES_ATTRIBUTE, codes)


def sources_of(compiled: Any) -> tuple[str, ...]:
    """The generated modules of a compiled region, one text each: an artifact may have several."""
    codes = getattr(compiled, _CODES_ATTRIBUTE, None)
    if codes is not None:
        return tuple(codes)
    code = source_of(compiled)
    return (code,) if code else ()


# --- kernels --------------------------------------------------------------------------------------

_DEFINED = re.compile(r"^\s*(\w+)\s*=\s*async_compile\.(?!wait)\w+\(", re.MULTILINE)
_CALLED = re.compile(r"^\s+(?:\w+ = )?(\w+)(?:\.run)?\(", re.MULTILINE)
_LIBRARY = re.compile(r"\bextern_kernels\.(\w+)\(")
_FALLBACK = re.compile(r"\btorch\.ops\.(\w+\.\w+)(?:\.\w+)?\(")
_ORIGINS = re.compile(r"Original ATen: \[([^\]]*)\]")


def kernels_in(code: str, ops: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels that generated code runs, in the order of its calls.

    Args:
        code: What `source_of` gave.
        ops: The region's operators, such as ``"aten.add.Tensor"``: names of kernels are made of
            theirs.
    """
    names = {_short(op): _packet(op) for op in ops}
    defined = {match.group(1): match for match in _DEFINED.finditer(code)}
    found: dict[tuple[int, str], Kernel] = {}
    for match in _CALLED.finditer(code):
        name = match.group(1)
        if name in defined and match.start() > defined[name].start():
            origins = _origins_above(code, defined[name].start()) or _ops_named_in(name, names)
            found[match.start(1), name] = Kernel(name, "generated", origins)
    for match in _LIBRARY.finditer(code):
        found[match.start(), match.group(1)] = Kernel(
            f"extern_kernels.{match.group(1)}", "library", (_library_op(match.group(1), names),)
        )
    for match in _FALLBACK.finditer(code):
        if not _is_alias(code, match.start()):
            found[match.start(), match.group(1)] = Kernel(
                f"torch.ops.{match.group(1)}", "fallback", (match.group(1),)
            )
    return tuple(kernel for _, kernel in sorted(found.items(), key=lambda item: item[0]))


def _short(op: str) -> str:
    return op.split(".")[1] if op.count(".") else op


def _packet(op: str) -> str:
    return ".".join(op.split(".")[:2])


def _library_op(name: str, names: dict[str, str]) -> str:
    return names.get(name, f"aten.{name.removeprefix('_')}")


def _is_alias(code: str, start: int) -> bool:
    """Whether an operator is named outside a call: in a string, or at the top of the module."""
    line = code[code.rfind("\n", 0, start) + 1 : start]
    return not line.startswith((" ", "\t")) or "'" in line or '"' in line or "#" in line


def _origins_above(code: str, start: int) -> tuple[str, ...]:
    """Operators in the comment that stands right above a kernel's definition."""
    above = code[:start].rstrip().splitlines()[-6:]
    for line in reversed(above):
        if not line.startswith("#"):
            break
        match = _ORIGINS.search(line)
        if match:
            return tuple(name for name in match.group(1).split(", ") if name)
    return ()


def _ops_named_in(kernel: str, names: dict[str, str]) -> tuple[str, ...]:
    """Operators whose names a kernel's name is joined of, as in ``cpp_fused_add_sin_0``."""
    rest = re.sub(r"_\d+$", "", kernel.partition("_fused_")[2])
    found = []
    while rest:
        name = max((n for n in names if rest == n or rest.startswith(n + "_")), key=len, default="")
        if name:
            found.append(names[name])
            rest = rest[len(name) :].removeprefix("_")
        else:
            rest = rest.partition("_")[2]
    return tuple(dict.fromkeys(found))


# --- steps ----------------------------------------------------------------------------------------

# Inductor's own timers, by what they time; what none of them covers is preparation: tracing,
# decomposing, looking into caches.
_TIMERS = {
    "lower": (
        "GraphLowering.run",
        "_recursive_pre_grad_passes",
        "_recursive_joint_graph_passes",
        "_recursive_post_grad_passes",
    ),
    "generate": ("GraphLowering.codegen",),
    "compile": ("PyCodeCache.load_by_key_path",),
}
STEPS = ("prepare", *_TIMERS)


@dataclass
class Steps:
    """Seconds in each step of one compile, by name."""

    seconds: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def timed_steps() -> Iterator[Steps]:
    """Times the steps of what is compiled meanwhile, as far as torch counts them."""
    result = Steps()
    before = _timed()
    try:
        yield result
    finally:
        after = _timed()
        spent = {step: after[step] - before[step] for step in _TIMERS}
        result.seconds.update({step: seconds for step, seconds in spent.items() if seconds > 0})


def _timed() -> dict[str, float]:
    utils = sys.modules.get("torch._dynamo.utils")
    timers: dict[str, list[float]] = getattr(utils, "compilation_time_metrics", {})
    return {
        step: sum(sum(timers.get(name, ())) for name in names) for step, names in _TIMERS.items()
    }
