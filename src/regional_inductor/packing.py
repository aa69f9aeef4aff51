"""A stitched graph as bytes that need neither tracing nor a compiler to run again.

What is kept of a graph is the Python code that FX generated for it, what that code names, and the
attributes that it reads: no nodes, no fake values. Compiled regions are kept apart, each once however
many calls there are, with shared objects shared (`_torch.bundle`).
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx

from . import bytecode
from ._torch import bundle, eager_calls, targets
from ._torch.fx import is_boxed
from .layouts import Strides
from .regions import RegionCall
from .runtime import EffectfulRegion, boxed_function, named_function, region_call_of

Parts = dict[str, bytes]

_LIBRARY = "library "
_GRAPH = "graph"


class NotPackedError(Exception):
    """Why a graph can't be packed; `call` is the region that can't, if it is one."""

    def __init__(self, what: str, call: RegionCall | None = None) -> None:
        super().__init__(what)
        self.call = call


class Packer:
    """Packs graphs into one set of parts.

    Attributes:
        parts: What was packed so far, by name.
    """

    def __init__(self) -> None:
        self.parts: Parts = {}
        self._regions: dict[int, tuple[int, Any]] = {}  # held, so that no id comes back

    def add(self, name: str, module: torch.fx.GraphModule) -> None:
        """Pack a stitched graph under a name.

        Raises:
            NotPackedError: It holds what only this process knows.
        """
        file = io.BytesIO()
        try:
            _Pickler(file, self).dump(_described(module))
        except NotPackedError:
            raise
        except Exception as error:
            raise NotPackedError(f"its graph can't be pickled: {error}") from error
        self.parts[f"graph {name}"] = file.getvalue()

    @property
    def regions(self) -> int:
        """How many compiled regions there are."""
        return len(self._regions)

    def region(self, compiled: Any, call: RegionCall) -> Any:
        """The number of a compiled region, which is packed when it is first met."""
        if id(compiled) not in self._regions:
            number = len(self._regions)
            try:
                bundled = bundle.with_choices(compiled, bundle.dump(compiled))
            except bundle.NotBundledError as error:
                raise NotPackedError(str(error), call) from error
            self._regions[id(compiled)] = number, compiled
            libraries = {name: part for name, part in bundled.items() if name.startswith(_LIBRARY)}
            own = {name: part for name, part in bundled.items() if name not in libraries}
            self.parts |= libraries
            self.parts |= {f"region {number} {name}": part for name, part in own.items()}
            self.parts[f"region {number}"] = json.dumps(
                {"parts": list(own), "libraries": list(libraries)}
            ).encode()
        return self._regions[id(compiled)][0]


class Unpacker:
    """Makes packed graphs runnable again, and their regions when a graph first needs them.

    Args:
        parts: What `Packer` made, from a source that is trusted: it is executed.
    """

    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self._parts = parts
        self._regions: dict[int, Callable[..., Any]] = {}

    def graph(self, name: str) -> Callable[[list[Any]], Any]:
        """A packed graph; it takes one list, which it empties."""
        described = _Unpickler(io.BytesIO(self._parts[f"graph {name}"]), self).load()
        return _made(*described)

    def region(self, number: Any) -> Callable[..., Any]:
        """A compiled region by its number."""
        if number not in self._regions:
            self._regions[number] = bundle.load(self._bundle(number))
        return self._regions[number]

    def _bundle(self, number: int) -> Parts:
        names = json.loads(self._parts[f"region {number}"])
        own = {name: self._parts[f"region {number} {name}"] for name in names["parts"]}
        return own | {name: self._parts[name] for name in names["libraries"]}


# --- graphs ----------------------------------------------------------------------------------------

_Described = tuple[str, bytes, dict[str, Any], dict[str, Any], bool]


def _described(module: torch.fx.GraphModule, outermost: bool = True) -> _Described:
    """Code twice, what it names, attributes by path, and whether this is the graph that is called first."""
    code = module.graph.python_code(root_module="self")
    paths = {
        str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")
    }
    attributes = {path: _attribute(module, path) for path in sorted(paths)}
    compiled = bytecode.compiled(code.src, _GRAPH)
    return code.src, compiled, dict(code.globals), attributes, outermost


def _attribute(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


class _PackedModule(torch.nn.Module):
    """A body that a higher-order operator calls, or the holder of a graph's attributes."""


def _made(
    source: str,
    compiled: bytes,
    names: dict[str, Any],
    attributes: dict[str, Any],
    outermost: bool,
) -> Callable[..., Any]:
    exec(bytecode.code_of(source, _GRAPH, compiled), names)
    forward: Callable[..., Any] = names.pop("forward")
    holder = type("_PackedModule", (_PackedModule,), {"forward": forward})()
    for path, value in attributes.items():
        *parents, last = path.split(".")
        place: torch.nn.Module = holder
        for name in parents:
            if not hasattr(place, name):
                place.add_module(name, torch.nn.Module())
            place = getattr(place, name)
        setattr(place, last, value)
    return types.MethodType(forward, holder) if outermost else holder


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, packer: Packer) -> None:
        super().__init__(file)
        self._packer = packer

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.fx.GraphModule):
            return _made, _described(value, outermost=False)
        if isinstance(value, EffectfulRegion):
            return EffectfulRegion, (value.function, value.call)
        if value is eager_calls.EAGER:
            return eager_calls.filled, (eager_calls.filled_so_far(),)
        if isinstance(value, types.ModuleType):
            return importlib.import_module, (value.__name__,)
        if targets.is_operator(value):
            return targets.operator_named, (targets.operator_path(value),)
        call = region_call_of(value)
        if call is not None:
            region = _Region(self._packer.region(value.__wrapped__, call))
            return _named, (region, call, getattr(value, "promised_strides", ()))
        return NotImplemented

    def persistent_id(self, value: Any) -> Any:
        return value.number if isinstance(value, _Region) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, unpacker: Unpacker) -> None:
        super().__init__(file)
        self._unpacker = unpacker

    def persistent_load(self, number: Any) -> Any:
        return self._unpacker.region(number)


class _Region:
    """A compiled region in a pickle: its number."""

    def __init__(self, number: Any) -> None:
        self.number = number


def _named(
    compiled: Callable[..., Any], call: RegionCall, promised: Sequence[Strides]
) -> Callable[..., Any]:
    if is_boxed(compiled):
        return boxed_function(compiled, call, promised)
    return named_function(compiled, call, promised)
