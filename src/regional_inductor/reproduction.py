"""Scripts that compile a region by itself: its graph as Python code, and inputs as it got them."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.fx

from ._torch import direct, ops
from ._torch.symbols import SYMBOLIC_TYPES, hint_of, symbols_of
from .region_backends import may_lower_directly
from .region_requests import why_eager
from .regions import REGION_META, Outlined, RegionCall, Settings

# What a size stands for that only a run knows.
_UNKNOWN_SIZE = 4


@dataclass
class Recorder:
    """Writes a script of the regions that are compiled, graph after graph.

    A script that exists before anything runs is there even if the run ends the process.

    Attributes:
        path: The script.
        problems: Why a region isn't in it.
    """

    path: Path
    problems: list[str] = field(default_factory=list)
    _regions: list[_Source] = field(default_factory=list)

    def record(self, outlined: Outlined, settings: Settings) -> Outlined:
        """A stage after `outline`."""
        for graph in outlined.graphs:
            for node in graph.graph.nodes:
                call = node.meta.get(REGION_META)
                if not isinstance(call, RegionCall) or why_eager(call, settings):
                    continue
                module = graph.submodules.get(str(node.target))
                if isinstance(module, torch.fx.GraphModule):
                    self._add(module, call, settings)
        return outlined

    def _add(self, module: torch.fx.GraphModule, call: RegionCall, settings: Settings) -> None:
        try:
            self._regions.append(_source(module, call, settings, len(self._regions)))
        except _NoSourceError as error:
            self.problems.append(f"{call.name} ({call.direction}): {error}")
            return
        self.path.write_text(_script(self._regions))


@functools.lru_cache(maxsize=4)
def recorder_of(path: Path) -> Recorder:
    """The one recorder of a script in this process, which sees one graph after another."""
    return Recorder(path)


class _NoSourceError(Exception):
    """A region that Python code can't describe; the message says why."""


@dataclass(frozen=True)
class _Source:
    title: str
    imports: tuple[str, ...]
    classes: str
    entry: str


def _source(
    module: torch.fx.GraphModule, call: RegionCall, settings: Settings, number: int
) -> _Source:
    imports: dict[str, None] = {}
    name = f"Region{number}"
    title = f"{call.name} ({call.direction})" + (f", {call.source}" if call.source else "")
    classes = "\n\n".join(_classes(module, name, imports, title))
    options = settings.options_of(call.mark)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in placeholders]
    lowering = (
        "direct"
        if may_lower_directly(settings) and not direct.refusal(module, options)
        else "standalone"
    )
    facts = {
        "region": f"{name}()",
        "storages": _listed(_storages(values)),
        "inputs": _listed(_inputs(values)),
        "options": repr(options),
        "numerics": repr(call.mark.numerics or settings.numerics),
        "lowering": repr(lowering),
        "region_backend": repr(settings.region_backend),
        "dynamic": repr(any(symbols_of(value) for value in values)),
        "grad": repr(any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)),
    }
    try:
        compile(facts["options"], "<options>", "eval")
    except SyntaxError:
        raise _NoSourceError("an option of it is no plain value") from None
    entry = "    dict(\n" + "".join(f"        {k}={v},\n" for k, v in facts.items()) + "    ),\n"
    return _Source(title, tuple(imports), classes, entry)


def _script(regions: Sequence[_Source]) -> str:
    imports = sorted({line for region in regions for line in region.imports})
    titles = "\n".join(f"    {region.title}" for region in regions)
    return "\n".join(
        [
            '"""Compiles regions by themselves and compares them with eager.',
            "",
            titles,
            "",
            f"Written by regional-inductor with torch {torch.__version__}. Inputs are random, or read",
            "from the file of this name that ends in .pt, if there is one.",
            "",
            "exit codes: 1 a region differs from eager or fails; 0 none does",
            '"""',
            "",
            "import torch",
            *imports,
            "",
            "from regional_inductor.reproducing import Strided, main",
            "",
            "",
            "\n\n\n".join(region.classes for region in regions),
            "",
            "",
            "REGIONS = lambda: [  # noqa: E731 - made when they are needed",
            "".join(region.entry for region in regions) + "]",
            "",
            'if __name__ == "__main__":',
            "    raise SystemExit(main(REGIONS, __file__))",
            "",
        ]
    )


def _classes(
    module: torch.fx.GraphModule, name: str, imports: dict[str, None], title: str = ""
) -> Iterator[str]:
    """The code of a graph as a module, after that of the graphs it calls."""
    members: list[str] = []
    for node in module.graph.nodes:
        if node.op == "call_function" and "triton_kernel_wrapper" in ops.op_name(node):
            raise _NoSourceError(
                "it calls a Triton kernel of the user's, which is no part of a graph"
            )
        if node.op not in ("get_attr", "call_module"):
            continue
        value = ops.attribute(module, str(node.target))
        if not isinstance(value, torch.fx.GraphModule) or "." in str(node.target):
            raise _NoSourceError(f"it holds {node.target}, which is no graph")
        if f"self.{node.target}" not in "".join(members):
            inner = f"{name}_{node.target}"
            yield from _classes(value, inner, imports)
            members.append(f"        self.{node.target} = {inner}()\n")
    code = module.graph.python_code("self")
    for global_name, value in code.globals.items():
        imports[_import(global_name, value)] = None
    imports.pop("", None)
    body = "".join(f"    {line}\n" if line else "\n" for line in code.src.strip().splitlines())
    described = f'    """{title}"""\n\n' if title else ""
    init = "    def __init__(self):\n        super().__init__()\n" + "".join(members) + "\n"
    yield f"class {name}(torch.nn.Module):\n{described}{init if members else ''}{body}".rstrip()


_KNOWN = {
    "torch": "",
    "inf": "from math import inf",
    "nan": "from math import nan",
    "NoneType": "NoneType = type(None)",
    "device": "from torch import device",
    "fx_pytree": "import torch.fx._pytree as fx_pytree",
    "pytree": "import torch.utils._pytree as pytree",
}


def _import(name: str, value: Any) -> str:
    if name in _KNOWN:
        return _KNOWN[name]
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {name}"
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or not qualified.isidentifier():
        raise _NoSourceError(f"{name} can't be imported")
    return f"from {module} import {qualified} as {name}"


def _storages(values: Sequence[Any]) -> Iterator[str]:
    """For each storage of the inputs the dtype, the elements and the device of a tensor on it."""
    for tensors in _by_storage(values).values():
        first = tensors[0]
        elements = max(_extent(tensor) for tensor in tensors)
        yield f"({first.dtype}, {elements}, {str(first.device)!r})"


def _inputs(values: Sequence[Any]) -> Iterator[str]:
    storages = list(_by_storage(values))
    for value in values:
        if not isinstance(value, torch.Tensor):
            number = hint_of(value)
            if number is None and isinstance(value, SYMBOLIC_TYPES):
                number = _UNKNOWN_SIZE
            yield repr(value if number is None or isinstance(value, bool) else number)
            continue
        _check(value)
        shape, stride = tuple(map(_size, value.shape)), tuple(map(_size, value.stride()))
        dtype = "" if value.dtype == _by_storage(values)[_storage(value)][0].dtype else value.dtype
        more = f", dtype={dtype}" if dtype else ""
        more += ", requires_grad=True" if value.requires_grad else ""
        offset = _size(value.storage_offset())
        yield f"Strided({storages.index(_storage(value))}, {shape}, {stride}, {offset}{more})"


def _check(value: torch.Tensor) -> None:
    if value.layout is not torch.strided or value.is_quantized:
        raise _NoSourceError(f"an input is {value.layout}, {value.dtype}")
    if hasattr(value, "__tensor_flatten__"):
        raise _NoSourceError(f"an input is a {type(value).__name__}")


def _by_storage(values: Sequence[Any]) -> dict[int, list[torch.Tensor]]:
    found: dict[int, list[torch.Tensor]] = {}
    for value in values:
        if isinstance(value, torch.Tensor):
            _check(value)
            found.setdefault(_storage(value), []).append(value)
    return found


def _storage(value: torch.Tensor) -> int:
    return direct.storage_identity(value)


def _extent(value: torch.Tensor) -> int:
    """How many elements of a storage a tensor reaches over."""
    if any(_size(size) == 0 for size in value.shape):
        return _size(value.storage_offset())
    steps = zip(value.shape, value.stride(), strict=True)
    return 1 + _size(value.storage_offset()) + sum((_size(n) - 1) * _size(s) for n, s in steps)


def _size(value: Any) -> int:
    number = hint_of(value)
    return _UNKNOWN_SIZE if number is None else number


def _listed(entries: Iterator[str]) -> str:
    lines = [f"            {entry},\n" for entry in entries]
    return "[\n" + "".join(lines) + "        ]" if lines else "[]"
