"""Kernels of many regions, compiled by one run of the C++ compiler.

A run costs about a second before it comes to the kernel: the precompiled header, Python's header, the
linker. So while a batch of regions is lowered, Inductor's requests for C++ kernels are only collected.
When the batch has been lowered, those with one command line become one translation unit. Its library is
published under the name of each kernel's own library in Inductor's cache (hard links), where Inductor
then finds it, in this process or a later one; each name can be loaded or removed alone.

Triton's kernels are compiled by Inductor's worker processes, each region's while the next ones are
lowered: only the wait for them is put off, and with it Inductor's entry in its cache of graphs, which
bundles them.

Nothing else of Inductor's way changes: it computes the keys, takes the locks, loads the libraries, and
compiles a kernel alone whose library isn't there. That is also what happens when a unit fails, so that
only the kernel at fault fails.

Checked on torch 2.11 and 2.13: `AsyncCompile.cpp_pybinding` and `wait`,
`CppPythonBindingsCodeCache.load_pybinding_async(submit_fn=...)`, `codecache._worker_compile_cpp` and
`write`, `CppBuilder.get_command_line` and `get_target_file_path`, `cpp_builder.run_compile_cmd`,
`PyCodeCache.modules_no_attr`, `CompiledTritonKernels._cache`, `TritonBundler`, `FxGraphCache._save_graph`,
`CompiledFxGraph.compiled_fn_runner` and its `__del__`.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import logging
import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._guards import TracingContext, tracing

from .link_stubs import with_stubs
from .translation_units import not_beside_others, unit_source
from .untouched import is_inductors
from .versions import is_one_of
from .whole_libraries import is_whole, usual_worker

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))
# Generated source in a unit, in characters. A plain kernel has 5,000 to 10,000, which take g++ a
# twentieth of what every unit costs, so that two small units cost more than one of twice the size.
# Larger ones gain nothing, keep a core idle, and come near g++'s limits on inlining in large units.
UNIT_SIZE = 256 * 1024
# Below this, what is left isn't worth being divided among cores.
WORTH_DIVIDING = 128 * 1024

_log = logging.getLogger("regional_inductor.units")
_thread = threading.local()


@dataclass(frozen=True)
class Kernel:
    """A kernel whose library Inductor would now have compiled.

    Attributes:
        build: Compiles it alone, unless its library is there; Inductor's own function.
        lock: The file that whoever writes the library locks.
        target: Its library.
        command: The compiler's command line, with placeholders for source and library; empty where it
            must be compiled alone.
        source: Its code.
    """

    build: Callable[[], None]
    lock: str = ""
    target: str = ""
    command: tuple[str, ...] = ()
    source: str = ""

    @property
    def key(self) -> str:
        return os.path.basename(self.target).split(".")[0]

    @property
    def size(self) -> int:
        return len(self.source)


class KernelBatch:
    """The C++ kernels of regions that are lowered one after another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open = True
        self._waiting: list[Kernel] = []
        self._running: list[Future[None]] = []

    @contextlib.contextmanager
    def region(self, options: Mapping[str, Any] | None = None) -> Iterator[RegionKernels]:
        """While this is entered, what Inductor asks for is collected and what it waits for put off.

        To be entered only where `is_possible` says so.

        Args:
            options: The region's options: Inductor's config while it is finished.

        Yields:
            The region; its `finish` must be called before the region's code is used.
        """
        region = RegionKernels(self, options or {})
        before = getattr(_thread, "region", None)
        _thread.region = region if self._open and before is None else None
        try:
            with _intercepted():
                yield region
        finally:
            _thread.region = before
            region._lowered()

    def build(self) -> None:
        """Compile what was collected so far; returns when it is done, failures included."""
        self._start(everything=True)
        for unit in tuple(self._running):
            with contextlib.suppress(CancelledError):  # of a time limit that dropped waiting work
                unit.exception()

    def close(self) -> None:
        """Collect no more; a kernel that is still asked for is compiled alone."""
        with self._lock:
            self._open = False
            self._waiting.clear()

    def _collect(self, kernel: Kernel) -> None:
        with self._lock:
            self._waiting.append(kernel)
        self._start(everything=False)

    def _start(self, *, everything: bool) -> None:
        """Start units in the background: all there is, or those that have reached their size."""
        with self._lock:
            units, self._waiting = units_of(self._waiting, _workers(), everything=everything)
            self._running += [_submit(functools.partial(_build_unit, unit)) for unit in units]


class RegionKernels:
    """One region of a batch: the modules of generated code that wait for their kernels."""

    def __init__(self, batch: KernelBatch, options: Mapping[str, Any]) -> None:
        self._batch = batch
        self._options = dict(options)
        self._scopes: list[tuple[Any, dict[str, Any]]] = []
        self._modules: dict[str, Any] = {}
        self._unsaved: list[tuple[Any, ...]] = []
        self.has_workers = False
        """Whether worker processes compile something for it; all work is lost when one of them dies."""

    @property
    def waits(self) -> bool:
        """Whether there is anything to finish."""
        return bool(self._scopes)

    def finish(self) -> None:
        """Put the kernels into the region's code.

        Raises:
            Exception: What Inductor says of a kernel that doesn't compile; this region's, not
                another's, unless `has_workers`.
        """
        if not self._scopes:
            return
        import torch._inductor.config as inductor_config
        from torch._inductor.codecache import PyCodeCache

        self._batch.build()
        with inductor_config.patch(self._options), _bundled(self._unsaved):
            for compiler, scope in self._scopes:
                for name, kernel in _kernels_in(scope).items():
                    scope[name] = kernel.result()
                compiler.wait(scope)
        for path, module in self._modules.items():
            PyCodeCache.modules_no_attr.setdefault(path, module)

    def _put_off(self, compiler: Any, scope: dict[str, Any]) -> None:
        self._scopes.append((compiler, scope))
        if _others_in(scope):
            self.has_workers = True
            _leave_to_this_region(scope)

    def _save_later(self, save: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        key, graph, *rest = arguments
        saved = copy.copy(graph)  # what comes next prepares the graph for calls in this process
        # Saving leaves it out, and a graph that dies takes what it runs apart: the copy would take it away.
        saved.compiled_fn_runner = None
        self._unsaved.append((save, key, saved, graph, rest, TracingContext.try_get()))

    def _lowered(self) -> None:
        """Take code that isn't finished out of Inductor's memory: should it stay so, nobody may get it."""
        from torch._inductor.codecache import PyCodeCache

        scopes = [id(scope) for _, scope in self._scopes]
        for path, module in list(PyCodeCache.modules_no_attr.items()) if scopes else ():
            if id(vars(module)) in scopes:
                self._modules[path] = PyCodeCache.modules_no_attr.pop(path)


def _leave_to_this_region(scope: dict[str, Any]) -> None:
    """Let no other region have the same futures: the result of each may be asked for once."""
    from torch._inductor.async_compile import CompiledTritonKernels

    ours = {id(value) for value in scope.values()}
    for source, future in list(CompiledTritonKernels._cache.items()):
        if id(future) in ours:
            del CompiledTritonKernels._cache[source]


@contextlib.contextmanager
def _bundled(unsaved: Sequence[tuple[Any, ...]]) -> Iterator[None]:
    """Bundle the Triton kernels that arrive inside into the graphs, then save these as Inductor would have."""
    if not unsaved:
        yield
        return
    from torch._inductor.triton_bundler import TritonBundler

    TritonBundler.begin_compile()
    try:
        yield
        bundle, _ = TritonBundler.collect()
    finally:
        TritonBundler.end_compile()
    for save, key, saved, graph, rest, context in unsaved:
        for each in (saved, graph):
            each.set_triton_bundle(bundle)
        with tracing(context):
            save(key, saved, *rest)


@contextlib.contextmanager
def kernel_batch() -> Iterator[KernelBatch]:
    """A batch; regions of it that weren't finished by the end are compiled alone if they are asked for."""
    batch = KernelBatch()
    try:
        yield batch
    finally:
        batch.close()


# --- between Inductor and its compiler ------------------------------------------------------------


def is_possible() -> bool:
    """Whether this torch is known and nobody else has put himself where we would."""
    if not is_one_of(CHECKED_VERSIONS) or os.name != "posix":
        return False
    from torch._inductor import codecache, cpp_builder
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.triton_bundler import TritonBundler

    cache = codecache.CppPythonBindingsCodeCache
    return all(
        is_inductors(function)
        for function in (
            AsyncCompile.cpp_pybinding,
            AsyncCompile.wait,
            cache.load_pybinding_async,
            cache.load_async,
            cache._load_library,
            cache._load_library_inner,
            usual_worker(),
            cpp_builder.CppBuilder.build,
            cpp_builder.CppBuilder.get_command_line,
            cpp_builder.run_compile_cmd,
            codecache.FxGraphCache._save_graph,
            TritonBundler.begin_compile,
            TritonBundler.collect,
        )
    )


@contextlib.contextmanager
def _intercepted() -> Iterator[None]:
    """Requests of this thread go to its region; those of other threads take their usual way."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import CppPythonBindingsCodeCache, FxGraphCache

    if getattr(_thread, "region", None) is None:
        yield
        return
    usual, usual_wait = AsyncCompile.cpp_pybinding, AsyncCompile.wait
    usual_save = FxGraphCache._save_graph

    def cpp_pybinding(self: Any, argtypes: list[str], source_code: str) -> Any:
        region: RegionKernels | None = getattr(_thread, "region", None)
        if region is None:
            return usual(self, argtypes, source_code)
        _kernel_log().info("CPP+Bindings Kernel:\n%s", source_code)
        collected: list[Kernel] = []
        load = CppPythonBindingsCodeCache.load_pybinding_async(
            argtypes, source_code, submit_fn=functools.partial(_request, region._batch, collected)
        )
        for kernel in collected:
            region._batch._collect(kernel)
        return _lazy_kernel_type()(region._batch, load)

    def wait(self: Any, scope: dict[str, Any]) -> None:
        region: RegionKernels | None = getattr(_thread, "region", None)
        kernels = _kernels_in(scope)
        waits = bool(kernels) or _others_in(scope)
        if region is not None and waits and (not _others_in(scope) or _may_save_later()):
            region._put_off(self, scope)
            return
        for name, kernel in kernels.items():
            scope[name] = kernel.result()
        usual_wait(self, scope)

    def save_graph(*arguments: Any) -> None:
        region: RegionKernels | None = getattr(_thread, "region", None)
        if region is not None and region.has_workers:
            region._save_later(usual_save, arguments)
        else:
            usual_save(*arguments)

    AsyncCompile.cpp_pybinding, AsyncCompile.wait = cpp_pybinding, wait  # type: ignore[method-assign]
    FxGraphCache._save_graph = staticmethod(save_graph)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        AsyncCompile.cpp_pybinding, AsyncCompile.wait = usual, usual_wait  # type: ignore[method-assign]
        FxGraphCache._save_graph = staticmethod(usual_save)  # type: ignore[method-assign]


def _may_save_later() -> bool:
    """Whether what bundles Triton's kernels is `FxGraphCache`, and not a cache around it.

    `standalone_compile` has AOTAutograd's bundle everything as soon as the code is there.
    """
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config

    return not (functorch_config.bundled_autograd_cache or inductor_config.cpp_wrapper)


class _Request:
    """What Inductor waits for before it looks for a kernel's library."""

    def __init__(self, batch: KernelBatch) -> None:
        self._batch = batch

    def result(self) -> None:
        self._batch.build()


def _request(batch: KernelBatch, collected: list[Kernel], build: Callable[[], None]) -> _Request:
    """Inductor calls this where it would submit `build` to its workers, while it holds a lock."""
    collected.append(_kernel_of(build))
    return _Request(batch)


def _kernel_of(build: Callable[[], None]) -> Kernel:
    from torch._inductor import codecache

    if not isinstance(build, functools.partial) or build.func is not codecache._worker_compile_cpp:
        return Kernel(build)
    lock, builders = build.args
    if len(builders) != 1:
        return Kernel(build)
    target = builders[0].get_target_file_path()
    file = target.removesuffix(".so") + ".cpp"
    tokens = shlex.split(builders[0].get_command_line())
    if tokens.count(file) != 1 or tokens.count(target) != 1:
        return Kernel(build)
    source = Path(file).read_text()
    if not_beside_others(source):
        return Kernel(build)
    command = tuple({file: _SOURCE, target: _TARGET}.get(token, token) for token in tokens)
    return Kernel(build, lock, target, command, source)


_SOURCE, _TARGET = "<source>", "<target>"


@functools.cache
def _kernel_log() -> Any:
    from torch._inductor.async_compile import kernel_code_log

    return kernel_code_log


@functools.cache
def _lazy_kernel_type() -> Any:
    from torch._inductor.codecache import CodeCacheFuture

    class LazyKernel(CodeCacheFuture):
        """A kernel that may not have been compiled yet. Calling it, which nobody should, works too."""

        def __init__(self, batch: KernelBatch, load: Callable[[], Any]) -> None:
            self.batch = batch
            self.load = load

        def result(self, timeout: float | None = None) -> Any:
            self.batch.build()
            return self.load()

        def __call__(self, *args: Any) -> Any:
            return self.result()(*args)

    return LazyKernel


def _kernels_in(scope: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scope.items() if isinstance(value, _lazy_kernel_type())}


def _others_in(scope: dict[str, Any]) -> bool:
    from torch._inductor.codecache import CodeCacheFuture

    return any(
        isinstance(value, (Future, CodeCacheFuture)) and not isinstance(value, _lazy_kernel_type())
        for value in scope.values()
    )


# --- units ----------------------------------------------------------------------------------------


def units_of(
    kernels: Sequence[Kernel], workers: int, *, everything: bool
) -> tuple[list[list[Kernel]], list[Kernel]]:
    """Which kernels to compile together now, and which should wait for more.

    Kernels with one command line form a group. With nothing more to come, a group is divided evenly
    among the workers, where that pays.
    """
    groups: dict[tuple[str, ...], list[Kernel]] = {}
    units: list[list[Kernel]] = []
    for kernel in kernels:
        if kernel.command:
            groups.setdefault(kernel.command, []).append(kernel)
        else:
            units.append([kernel])
    left: list[Kernel] = []
    for group in groups.values():
        size = sum(kernel.size for kernel in group)
        if everything:
            parts = max(min(workers, size // WORTH_DIVIDING), -(-size // UNIT_SIZE), 1)
            units += _divided(group, parts)
        elif size >= UNIT_SIZE and workers > 1:
            units.append(group)
        else:
            left += group
    return units, left


def _divided(kernels: list[Kernel], parts: int) -> list[list[Kernel]]:
    """In parts of about equal size: the largest first, each to the part that has least."""
    units: list[list[Kernel]] = [[] for _ in range(parts)]
    for kernel in sorted(kernels, key=lambda kernel: (-kernel.size, kernel.target)):
        min(units, key=lambda unit: sum(k.size for k in unit)).append(kernel)
    return [unit for unit in units if unit]


def _workers() -> int:
    from torch._inductor.async_compile import get_compile_threads

    return get_compile_threads()


def _submit(job: Callable[[], None]) -> Future[None]:
    from torch._inductor.async_compile import AsyncCompile

    if _workers() > 1:
        submitted: Future[None] = AsyncCompile.pool().submit(job)
        return submitted
    done: Future[None] = Future()
    job()
    done.set_result(None)
    return done


def _build_unit(kernels: Sequence[Kernel]) -> None:
    """Compile kernels together and publish the library; where that fails, they are compiled alone later."""
    if not kernels[0].command:
        # A failure shows again, with its message, where the kernel is loaded.
        with contextlib.suppress(Exception):
            kernels[0].build()
        return
    try:
        _compile_and_publish(kernels)
    except Exception:  # noqa: BLE001 - whatever went wrong, the kernels alone will show what is wrong with them
        _log.info("%d kernels did not compile as one unit", len(kernels), exc_info=True)


def _compile_and_publish(kernels: Sequence[Kernel]) -> None:
    from torch._inductor.codecache import write

    command = kernels[0].command
    text = unit_source({kernel.key: kernel.source for kernel in kernels})
    _, source = write(text, "unit.cpp", extra=" ".join(command))
    # In a folder of its own: another process may be compiling the same unit. Beside the cache's
    # files, since hard links don't leave a file system.
    with tempfile.TemporaryDirectory(prefix="unit-", dir=os.path.dirname(source)) as folder:
        library = os.path.join(folder, "unit.so")
        replaced = {_SOURCE: source, _TARGET: library}
        _compile_and_load([replaced.get(token, token) for token in command], library, folder)
        for kernel in kernels:
            _publish(library, kernel)
    _log.debug("%d kernels compiled as one unit, %s", len(kernels), source)


def _compile_and_load(command: Sequence[str], library: str, folder: str) -> None:
    """Compile a library, and load it: one with a symbol that nobody has would fail all its kernels."""
    from torch._inductor.cpp_builder import run_compile_cmd

    quick = with_stubs(command)
    run_compile_cmd(shlex.join(quick), cwd=folder)
    if not is_whole(library):  # loading it could end the process
        raise OSError("the compiler left half a library")
    try:
        ctypes.CDLL(library)
    except OSError:
        if quick == list(command):
            raise
        os.remove(library)
        run_compile_cmd(shlex.join(command), cwd=folder)
        ctypes.CDLL(library)


def _publish(library: str, kernel: Kernel) -> None:
    """Link a library to a kernel's name, as Inductor would have built it: locked, and once."""
    from torch._inductor.codecache import LOCK_TIMEOUT
    from torch.utils._filelock import FileLock

    with FileLock(kernel.lock, timeout=LOCK_TIMEOUT):
        if os.path.exists(kernel.target):
            return
        try:
            os.link(library, kernel.target)
        except OSError:  # a file system without hard links
            copy = shutil.copy(library, f"{kernel.target}.{os.getpid()}.tmp")
            os.replace(copy, kernel.target)
