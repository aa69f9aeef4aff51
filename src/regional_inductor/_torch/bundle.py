"""A compiled region as bytes that need neither a compiler nor Inductor's cache folder to run again.

Inductor's own serialised artifact holds the wrapper's source and compiles the C++ kernels again where
its cache is empty. Here the kernels' shared objects travel along, and what Triton's cache holds for
theirs. There are two forms:

- ``graph``: a region that was lowered directly. Its wrapper's source is run in a module made here,
  whose imports of Inductor's code generation (a second of import time) get stand-ins. Nothing is
  unpickled.
- ``artifact``: anything else that Inductor can serialise. Its own bytes, unpickled by Inductor, which
  finds the kernels here instead of compiling them. It holds Triton's files itself.

Checked on torch 2.11 and 2.13: the wrapper's text, `AsyncCompile.cpp_pybinding`, `triton` and `wait`,
`PyCodeCache.modules` and `write`, `FxGraphCache.cache_hit_post_compile`, `CompiledFxGraph`'s fields, `align_inputs_from_check_idxs`, the
module that a C++ kernel is loaded as and the variable that it reads, `AOTCompiledArtifact.serialize`,
`TritonBundler.is_enabled` and `read_and_emit`.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import itertools
import json
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._guards import TracingContext, tracing

from .. import bytecode
from . import generated, inductor, moving, triton_kernels
from .versions import is_one_of

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))

Parts = dict[str, bytes]


class NotBundledError(Exception):
    """Why a compiled region can't be made into bytes that stand alone."""


def dump(compiled: Any) -> Parts:
    """A compiled region as named parts.

    Args:
        compiled: What `compile_direct`, `compile_standalone` or `load` returned.

    Raises:
        NotBundledError: It holds something that only this process, or a compiler, can make.
    """
    if not is_one_of(CHECKED_VERSIONS):
        raise NotBundledError(f"not checked on torch {torch.__version__}")
    loaded = getattr(compiled, "bundled_parts", None)
    if loaded is not None:
        return dict(loaded)
    codes = generated.sources_of(compiled)
    if not codes:
        raise NotBundledError("its generated code isn't known")
    kernels: dict[str, dict[str, Any]] = {}
    parts: Parts = {}
    for code in codes:
        for name, digest in _kernels_named_in(code).cpp.items():
            library, entry = _library_of(name, code)
            kernels[digest] = {"library": _sha(library), **entry}
            parts[f"library {_sha(library)}"] = library
    described: dict[str, Any] = {"kernels": kernels}
    triton = _triton_kernels_of(codes)
    if type(compiled).__name__ == "CompiledFxGraph":
        described["form"] = "graph"
        source, described["aligned"] = _graph_source(compiled)
        parts["graph"] = source.encode()
        for name, constant in (getattr(compiled, "constants", None) or {}).items():
            described.setdefault("constants", {})[name], data = _constant(constant)
            parts[f"constant {name}"] = data
    else:
        described["form"] = "artifact"
        if triton and not inductor.bundles_triton():
            raise NotBundledError("Inductor is told not to keep Triton's kernels with it")
        parts["artifact"] = _artifact_bytes(compiled)
        parts["sources"] = json.dumps(list(codes)).encode()
    parts |= {_code_part(code): bytecode.compiled(code, _REGION) for code in codes}
    if triton:
        described["triton"] = {"device": _device_of(triton.values()), "files": {}, "choices": {}}
    parts["bundle"] = json.dumps(described).encode()
    return _with_triton(parts, triton)


def load(parts: Mapping[str, bytes]) -> Callable[..., Any]:
    """The compiled region that `dump` made parts of.

    Args:
        parts: From a source that is trusted: they are executed.

    Raises:
        Exception: Whatever a part that doesn't fit this process may cause; there is nothing to undo.
    """
    described = json.loads(parts["bundle"])
    kernels = _Kernels(described, parts)
    if described["form"] == "graph":
        return _load_graph(parts, kernels)
    artifact = _load_artifact(parts["artifact"], json.loads(parts["sources"]), kernels)
    generated.attach_code(artifact, json.loads(parts["sources"]))
    # The files that its shared objects were loaded from are gone: it is dumped again from these.
    with contextlib.suppress(AttributeError):
        artifact.bundled_parts = dict(parts)  # type: ignore[attr-defined]
        artifact.triton = kernels.triton_kernels  # type: ignore[attr-defined]
    return artifact


def has_triton(parts: Mapping[str, bytes]) -> bool:
    """Whether kernels of Triton are in a bundle, as far as it can be read."""
    try:
        return "triton" in json.loads(parts["bundle"])
    except (KeyError, ValueError, TypeError):
        return False


def when_chosen(compiled: Any, then: Callable[[], None]) -> None:
    """Have `then` called after Inductor chose among the configurations of a kernel: when it first runs."""
    triton_kernels.when_chosen(_triton_kernels_in(compiled).values(), then)


def with_choices(compiled: Any, parts: Mapping[str, bytes]) -> Parts:
    """The parts of a compiled region, with what was chosen since they were made.

    Raises:
        NotBundledError: The files of a kernel are gone.
    """
    return _with_triton(parts, _triton_kernels_in(compiled))


def is_movable(parts: Mapping[str, bytes]) -> bool:
    """Whether `moved` can make a bundle that was made for one GPU run on others of the same kind."""
    try:
        return "graph" in moved(parts, 0)
    except NotBundledError:
        return False


def moved(parts: Mapping[str, bytes], to: int) -> Parts:
    """The bundle for another GPU of the same kind.

    Args:
        parts: As `dump` gave them.
        to: The number of the GPU that it shall run on.

    Raises:
        NotBundledError: It can't be had from this one.
    """
    if "graph" not in parts:
        raise NotBundledError("only code that was lowered directly is rewritten for another GPU")
    source = parts["graph"].decode()
    try:
        rewritten = moving.moved(source, to)
    except moving.UnmovableError as error:
        raise NotBundledError(str(error)) from error
    if rewritten == source:
        return dict(parts)
    described = json.loads(parts["bundle"])
    triton = described.get("triton")
    if triton is not None:
        before, after = _kernels_named_in(source).triton, _kernels_named_in(rewritten).triton
        names = {_sha(before[name].encode()): _sha(after[name].encode()) for name in before}
        triton["device"] = to
        triton["choices"] = {names[digest]: choice for digest, choice in triton["choices"].items()}
    kept = {name: part for name, part in parts.items() if name != _code_part(source)}
    return {**kept, "graph": rewritten.encode(), "bundle": json.dumps(described).encode()}


def check(parts: Mapping[str, bytes]) -> None:
    """Whether a bundle is whole, without running any of it.

    Raises:
        ValueError: A part is missing, or not the one that the bundle names.
    """
    try:
        described = json.loads(parts["bundle"])
        wanted = {described["form"]}
        libraries = {kernel["library"] for kernel in described["kernels"].values()}
        files = dict(described.get("triton", {}).get("files", {}))
        wanted |= {f"constant {name}" for name in described.get("constants", {})}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the bundle doesn't describe itself: {error}") from error
    wanted |= {f"library {digest}" for digest in libraries} | {f"triton {path}" for path in files}
    missing = wanted - set(parts)
    if missing:
        raise ValueError(f"the bundle lacks {', '.join(sorted(missing))}")
    for digest in libraries:
        if _sha(parts[f"library {digest}"]) != digest:
            raise ValueError("a shared object is not the one that the bundle names")
    for path, digest in files.items():
        if _sha(parts[f"triton {path}"]) != digest:
            raise ValueError("a file of Triton's is not the one that the bundle names")


def sources(parts: Mapping[str, bytes]) -> tuple[str, ...]:
    """The generated modules in a bundle; nothing of it is run."""
    if "graph" in parts:
        return (parts["graph"].decode(),)
    return tuple(json.loads(parts.get("sources", b"[]")))


# --- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """The kernels that a wrapper defines, by the variable that holds each.

    Attributes:
        cpp: Of C++: a digest of how each is defined.
        triton: Of Triton: the source of each.
    """

    cpp: dict[str, str] = field(default_factory=dict)
    triton: dict[str, str] = field(default_factory=dict)


def _kernels_named_in(code: str) -> _Named:
    tree = ast.parse(code)
    calls: dict[str, int] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="async_compile"), attr=method)):
                if method not in ("cpp_pybinding", "triton", "wait"):
                    raise NotBundledError(f"it holds a kernel made by {method}")
                calls[method] = calls.get(method, 0) + 1
            case ast.Name(id=name) if name in _COMPILES_BY_ITSELF:
                raise NotBundledError(f"its code uses {name}")
    found = _Named()
    for statement in tree.body:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Attribute(attr="cpp_pybinding"), args=args, keywords=[]),
            ):
                found.cpp[name] = _digest(*map(ast.literal_eval, args))
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(
                    func=ast.Attribute(attr="triton"),
                    args=[ast.Constant(str()), ast.Constant(str(source)), *_],
                ),
            ):
                found.triton[name] = source
    for method, kernels in (("cpp_pybinding", found.cpp), ("triton", found.triton)):
        if len(kernels) != calls.get(method, 0):
            raise NotBundledError("its code defines kernels in a way that isn't known")
    return found


# Names in generated code that start a compiler when the code is run.
_COMPILES_BY_ITSELF = (
    "CppWrapperCodeCache",
    "CppCodeCache",
    "HalideCodeCache",
    "CUDACodeCache",
    "ROCmCodeCache",
    "XPUCodeCache",
)


_REGION = "region"


def _code_part(source: str) -> str:
    """The part that holds a wrapper's bytecode."""
    return f"bytecode {_sha(source.encode())[:16]}"


def _digest(*arguments: Any) -> str:
    return _sha(repr(arguments).encode())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _library_of(kernel: str, code: str) -> tuple[bytes, dict[str, str]]:
    """The shared object that a kernel of a wrapper lives in, and how to find the kernel there."""
    module = _module_of(code)
    function = getattr(module, kernel, None)
    home = getattr(function, "__self__", None)
    if not isinstance(function, types.BuiltinFunctionType) or not isinstance(
        home, types.ModuleType
    ):
        raise NotBundledError(f"{kernel} is a {type(function).__name__}")
    # Not `__name__`, which a module sets as it likes: what it was imported as.
    name = home.__spec__.name if home.__spec__ else home.__name__
    try:
        library = Path(str(home.__file__)).read_bytes()
    except OSError as error:
        raise NotBundledError(f"the shared object of {kernel} is gone: {error}") from error
    return library, {"module": name, "function": function.__name__}


def _module_of(code: str) -> types.ModuleType:
    from torch._inductor.codecache import PyCodeCache

    _, path = PyCodeCache.write(code)
    for module in reversed(PyCodeCache.modules):
        if module.__file__ == path:
            return module
    raise NotBundledError("the module of its generated code isn't loaded")


def _graph_source(graph: Any) -> tuple[str, list[int]]:
    """The wrapper of a directly lowered graph, and which inputs are copied where they aren't aligned.

    That is all there is to such a graph; the copying is what Inductor wraps around it.
    """
    for name in (
        "frozen_param_names",
        "torchbind_constants",
        "opaque_value_type_classes",
        "mutated_input_idxs",
        "_wrap_compiled_regions",
        "cudagraph_info",
    ):
        if getattr(graph, name, None):
            raise NotBundledError(f"it has {name.strip('_').replace('_', ' ')}")
    call, aligned = graph.current_callable, []
    if getattr(call, "__qualname__", "") == "align_inputs_from_check_idxs.<locals>.run":
        around = inspect.getclosurevars(call).nonlocals
        call, aligned = around["model"], [int(index) for index in around["inputs_to_check"]]
        if around.get("mutated_input_idxs"):
            raise NotBundledError("it mutates inputs")
    # By file: regions with other keys may have the same code, which then is loaded once for each.
    home = getattr(getattr(call, "__func__", call), "__globals__", {}).get("__file__")
    if home is None or home != _module_of(graph.source_code).__file__:
        raise NotBundledError("something is wrapped around its call")
    return str(graph.source_code), aligned


def _constant(value: Any) -> tuple[dict[str, Any], bytes]:
    """A tensor that Inductor put beside the code: its description, and the memory that it spans."""
    if (
        type(value) is not torch.Tensor
        or value.layout is not torch.strided
        or value.device.type != "cpu"
        or value.is_quantized
        or value.is_conj()
        or value.is_neg()
        or value.requires_grad
    ):
        raise NotBundledError(f"it has a constant of a kind that isn't known, a {_kind(value)}")
    spanned = value.as_strided((_span(value.shape, value.stride()),), (1,))
    data = ctypes.string_at(spanned.data_ptr(), spanned.nbytes) if spanned.nbytes else b""
    dtype = str(value.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(value.shape), "stride": list(value.stride())}, data


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{type(value).__name__} on {value.device}, {value.layout}"
    return type(value).__name__


def _constant_from(described: Mapping[str, Any], data: bytes) -> torch.Tensor:
    dtype, shape = getattr(torch, described["dtype"]), described["shape"]
    if not data:
        return torch.empty_strided(shape, described["stride"], dtype=dtype)
    # Cloned, since memory of torch's own is aligned.
    return (
        torch.frombuffer(bytearray(data), dtype=dtype)
        .clone()
        .as_strided(shape, described["stride"])
    )


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """From a tensor's first element to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _triton_kernels_in(compiled: Any) -> Mapping[str, Any]:
    if hasattr(compiled, "bundled_parts"):  # loaded here: Inductor doesn't know the modules
        return dict(compiled.triton)
    return _triton_kernels_of(generated.sources_of(compiled))


def _triton_kernels_of(codes: Iterable[str]) -> dict[str, Any]:
    """The loaded kernels of Triton of some wrappers, by a digest of each one's source."""
    return {
        _sha(source.encode()): getattr(_module_of(code), name, None)
        for code in codes
        for name, source in _kernels_named_in(code).triton.items()
    }


def _device_of(kernels: Iterable[Any]) -> int:
    try:
        (device,) = {triton_kernels.device_of(kernel) for kernel in kernels}
    except (AttributeError, ValueError) as error:
        raise NotBundledError("its kernels are not of one kind and device") from error
    return device


def _with_triton(parts: Mapping[str, bytes], kernels: Mapping[str, Any]) -> Parts:
    """The parts, with Triton's files and what was chosen for its kernels so far."""
    if not kernels:
        return dict(parts)
    described = json.loads(parts["bundle"])
    triton = described["triton"]
    try:
        # An artifact holds the files of what it was made with, unless the kernels were in this process already.
        files = triton_kernels.files_of(kernels.values())
    except triton_kernels.UnknownKernelError as error:
        if "artifact" not in parts:
            raise NotBundledError(str(error)) from error
        files = _files_of_the_chosen(kernels)
    triton["files"] |= {path: _sha(data) for path, data in files.items()}
    triton["choices"] |= triton_kernels.choices_of(kernels)
    return {
        **parts,
        "bundle": json.dumps(described).encode(),
        **{f"triton {path}": data for path, data in files.items()},
    }


def _files_of_the_chosen(kernels: Mapping[str, Any]) -> dict[str, bytes]:
    try:
        return triton_kernels.files_of(kernels.values(), chosen_only=True)
    except triton_kernels.UnknownKernelError as error:
        raise NotBundledError(str(error)) from error


def _artifact_bytes(compiled: Any) -> bytes:
    try:
        data = inductor.artifact_bytes(compiled)
    except Exception as error:
        raise NotBundledError(f"Inductor can't serialise it: {error}") from error
    if data is None:
        raise NotBundledError(f"it is a {type(compiled).__name__}")
    slim = io.BytesIO()
    try:
        _SlimPickler(slim).dump(pickle.loads(data))
    except Exception as error:
        raise NotBundledError(f"its artifact can't be pickled: {error}") from error
    return slim.getvalue()


class _SlimPickler(pickle.Pickler):
    """An artifact names decompositions, for a compile that never comes; their import takes a while."""

    def reducer_override(self, value: Any) -> Any:
        home = getattr(value, "__module__", None)
        if isinstance(value, types.FunctionType) and home == "torch._inductor.decomposition":
            return _Later, (home, value.__qualname__)
        return NotImplemented


# --- reading ---------------------------------------------------------------------------------------

_numbers = itertools.count()
_modules: dict[tuple[str, str], types.ModuleType] = {}  # shared objects are never unloaded


class _Kernels:
    """The kernels of a bundle, loaded when they are asked for."""

    def __init__(self, described: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
        self._cpp = described["kernels"]
        self._triton = described.get("triton")
        self._parts = parts
        self.aligned: list[int] = described.get("aligned", [])
        self.constants = {
            name: _constant_from(constant, parts[f"constant {name}"])
            for name, constant in described.get("constants", {}).items()
        }
        self.triton_kernels: dict[str, Any] = {}

    def get(self, *arguments: Any) -> Callable[..., Any] | None:
        """The kernel that a call of `cpp_pybinding` with these arguments defines."""
        found = self._cpp.get(_digest(*arguments))
        if found is None:
            return None
        place = found["library"], found["module"]
        if place not in _modules:
            library = self._parts[f"library {found['library']}"]
            if _sha(library) != found["library"]:
                raise ValueError("a shared object is not the one that the bundle names")
            _modules[place] = _load_library(library, found["module"])
        kernel: Callable[..., Any] = getattr(_modules[place], found["function"])
        return kernel

    def bytecode_of(self, source: str) -> bytes | None:
        """The bytecode of a wrapper, if it is in the bundle."""
        return self._parts.get(_code_part(source))

    def put_files_back(self) -> None:
        """Let Triton find its kernels."""
        if self._triton is None:
            return
        files = {path: self._parts[f"triton {path}"] for path in self._triton["files"]}
        if any(_sha(data) != self._triton["files"][path] for path, data in files.items()):
            raise ValueError("a file of Triton's is not the one that the bundle names")
        triton_kernels.put_back(files, self._triton["device"])

    def get_triton(self, name: str, source: str) -> Any:
        """The kernel that a call of `triton` with these arguments defines."""
        digest = _sha(source.encode())
        if digest not in self.triton_kernels:
            chosen = (self._triton or {}).get("choices", {}).get(digest)
            if chosen:
                triton_kernels.put_choice_back(source, chosen)
            self.triton_kernels[digest] = triton_kernels.load(name, source)
        return self.triton_kernels[digest]


def _load_library(library: bytes, name: str) -> types.ModuleType:
    """Load a shared object from bytes, by way of a file that nobody else can exchange."""
    # Kernels read the address of a function of torch from here when they are loaded.
    address = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(address)
    with tempfile.TemporaryDirectory(prefix="regional-inductor-") as folder:
        # Python and the linker know libraries by path: no two may ever share one.
        path = os.path.join(folder, f"{os.getpid()}-{next(_numbers)}.so")
        with open(path, "wb") as file:
            file.write(library)
        # Under the name that it had: where several kernels share a library, that says which one is meant.
        loader = importlib.machinery.ExtensionFileLoader(name, path)
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module


class LoadedGraph:
    """A directly lowered region, loaded; it takes one list, which it empties.

    Attributes:
        current_callable: What it runs.
        source_code: The generated code.
        bundled_parts: What it was loaded from.
        triton: Its kernels of Triton, by a digest of the source of each.
    """

    _boxed_call = True

    def __init__(
        self,
        call: Callable[[list[Any]], Any],
        source: str,
        parts: Mapping[str, bytes],
        triton: Mapping[str, Any],
    ) -> None:
        self.current_callable = call
        self.source_code = source
        self.bundled_parts = dict(parts)
        self.triton = triton

    def __call__(self, arguments: list[Any]) -> Any:
        return self.current_callable(arguments)


def _load_graph(parts: Mapping[str, bytes], kernels: _Kernels) -> LoadedGraph:
    source = parts["graph"].decode()
    kernels.put_files_back()
    call = _executed(source, kernels, kernels.constants).call
    if kernels.aligned:
        from torch._inductor.utils import align_inputs_from_check_idxs
        from torch.utils._ordered_set import OrderedSet

        call = align_inputs_from_check_idxs(call, kernels.aligned, OrderedSet())
    return LoadedGraph(call, source, parts, kernels.triton_kernels)


def _executed(source: str, kernels: _Kernels, attributes: Mapping[str, Any]) -> types.ModuleType:
    """A wrapper's module, made without what only code generation needs."""
    code = bytecode.code_of(source, _REGION, kernels.bytecode_of(source))
    module = types.ModuleType(f"regional_inductor.loaded_{next(_numbers)}")
    module.__file__ = code.co_filename
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importing(kernels)}
    exec(code, vars(module))
    vars(module).update(attributes)  # only now: the code sets their names to None
    return module


class _AsyncCompile:
    """Stands for Inductor's class of that name in a wrapper: kernels are there already."""

    def __init__(self, kernels: _Kernels) -> None:
        self._kernels = kernels

    def cpp_pybinding(self, *arguments: Any) -> Callable[..., Any]:
        kernel = self._kernels.get(*arguments)
        if kernel is None:
            raise ValueError("a kernel of the generated code is not in the bundle")
        return kernel

    def triton(self, kernel_name: str, source_code: str, device_str: str = "cuda") -> Any:
        return self._kernels.get_triton(kernel_name, source_code)

    def wait(self, scope: dict[str, Any]) -> None:
        pass


TORCHS_OWN = ("mm", "addmm", "bmm", "baddbmm")


class _ExternKernels:
    """Inductor's table of library calls, imported when a region calls one that isn't torch's own.

    The import takes more than a second, and these stand for functions of torch under their own names.
    """

    def __init__(self) -> None:
        for name in TORCHS_OWN:
            setattr(self, name, getattr(torch, name))

    def __getattr__(self, name: str) -> Any:
        from torch._inductor.select_algorithm import extern_kernels

        found = getattr(extern_kernels, name)
        setattr(self, name, found)
        return found


_extern_kernels = _ExternKernels()


class _Later:
    """A function of Inductor's that is imported when it is first called: most never are."""

    def __init__(self, module: str, name: str) -> None:
        self._place = module, name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        module, name = self._place
        return getattr(importlib.import_module(module), name)(*arguments, **keywords)


# Functions that every wrapper imports, few call, and whose homes import half of Inductor.
_LATER = {
    "torch._inductor.hooks": ("run_intermediate_hooks",),
    "torch._inductor.utils": ("maybe_profile",),
    "torch._inductor.codegen.memory_planning": ("_align",),
}


def _importing(kernels: _Kernels) -> Callable[..., Any]:
    """`__import__` for a wrapper: what only code generation needs isn't imported for it."""
    stand_ins = {
        "torch._inductor.async_compile": types.SimpleNamespace(
            AsyncCompile=lambda: _AsyncCompile(kernels)
        ),
        "torch._inductor.select_algorithm": types.SimpleNamespace(extern_kernels=_extern_kernels),
    }
    for module, names in _LATER.items():
        if module not in sys.modules:
            later = {name: _Later(module, name) for name in names}
            stand_ins[module] = types.SimpleNamespace(**later)

    def importing(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        stand_in = stand_ins.get(name)
        if stand_in is not None and fromlist and all(hasattr(stand_in, n) for n in fromlist):
            return stand_in
        return __import__(name, globals, locals, fromlist, level)

    return importing


def _load_artifact(data: bytes, sources: Sequence[str], kernels: _Kernels) -> Callable[..., Any]:
    kernels.put_files_back()
    served = _served_wrappers(sources, kernels)
    with tracing(TracingContext(inductor.new_fake_mode())), served:
        return inductor.artifact_from_bytes(data)


@contextlib.contextmanager
def _served_wrappers(sources: Sequence[str], kernels: _Kernels) -> Iterator[None]:
    """Inductor has a bundle's wrappers made here, with the bundle's kernels; others it loads as ever.

    Nothing is written to its cache folder and nothing that lies there is executed.
    """
    from torch._inductor.codecache import FxGraphCache
    from torch._inductor.triton_bundler import TritonBundler

    importlib.import_module("torch._inductor.debug")  # where a compiled graph's call looks
    before = vars(FxGraphCache)["cache_hit_post_compile"]

    def cache_hit_post_compile(graph: Any, cache_info: Any, constants: Any) -> Any:
        if graph.source_code not in sources:
            return before.__func__(graph, cache_info, constants)
        if bundle := getattr(graph, "_triton_bundle", None):
            TritonBundler.read_and_emit(bundle)
        module = _executed(graph.source_code, kernels, constants.unwrap(graph) or {})
        graph.current_callable = module.call
        graph.recursively_apply_fns = getattr(module, "recursively_apply_fns", None)
        graph.compiled_fn_runner = getattr(module, "runner", None)
        return graph, cache_info

    FxGraphCache.cache_hit_post_compile = staticmethod(cache_hit_post_compile)  # type: ignore[method-assign]
    try:
        yield
    finally:
        FxGraphCache.cache_hit_post_compile = before  # type: ignore[method-assign]
