"""Libraries in Inductor's cache that were not written to their end, headers and sources likewise.

The compiler writes them in place: a process that is killed, a full disk or a copied cache leaves the
beginning of one. Loading that can end the process (a page behind the end of the file), and a damaged
precompiled header fails every later kernel. With damaged libraries of the questions that Inductor asks
about the processor, it has no vector instructions, for which the code in its cache is written: every
kernel fails. Here they are removed, so that they are made anew. The same goes for sources, Python modules
among them, which Inductor writes only where there is no file of their name: an empty one was imported.

Checked on torch 2.11, 2.12 and 2.13: `codecache._worker_compile_cpp(lock_path, cpp_builders)`, which
makes whatever files are missing, and is looked up when a kernel is asked for;
`cpu_vec_isa.VecISA.check_build(code)`, which makes a library if it is missing, asks
`CppBuilder.get_target_file_path` for its path, and says no where another process can't load it; its
lock; `exc.CppCompileError`. On 2.13 only: `codecache.write(content, extension, ...)`, which names a file by
its content unless it is given a `key`; `output_code.CompiledFxGraph.write_to_disk`, with `cache_key` and
`source_code`. Where a version lacks one of these, it is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .versions import is_one_of

CHECKED_VERSIONS = ((2, 11), (2, 12), (2, 13))

_lock = threading.Lock()
_users = 0
_usual: dict[str, Any] = {}
_thread = threading.local()

_HEADER = re.compile(r"(?:^|\s)-include\s+(\S+)")


@contextlib.contextmanager
def mending() -> Iterator[None]:
    """Have Inductor make damaged libraries and precompiled headers anew while this is open."""
    if not is_one_of(CHECKED_VERSIONS):
        yield
        return
    global _users
    with _lock:
        if _users == 0:
            for owner, name, replacement in _places():
                _usual[name] = getattr(owner, name)
                setattr(owner, name, replacement)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            for owner, name, replacement in _places() if _users == 0 else ():
                if getattr(owner, name) is replacement:
                    setattr(owner, name, _usual[name])


def _places() -> tuple[tuple[Any, str, Callable[..., Any]], ...]:
    """What is replaced while libraries are mended: where, its name, and by what."""
    from torch._inductor import codecache, cpp_builder, cpu_vec_isa, output_code

    sources = (
        (codecache, "write", _write_whole),
        (output_code.CompiledFxGraph, "write_to_disk", _write_graph_whole),
    )
    return (
        (codecache, "_worker_compile_cpp", _make_whole),
        (cpu_vec_isa.VecISA, "check_build", _check_build),
        (cpp_builder.CppBuilder, "get_target_file_path", _noted_target),
        *(place for place in sources if hasattr(*place[:2])),
    )


def usual_worker() -> Callable[..., None]:
    """What makes missing files where nothing is mended: Inductor's, unless somebody else has patched it."""
    from torch._inductor import codecache

    current: Callable[..., None] = codecache._worker_compile_cpp
    return _usual["_worker_compile_cpp"] if current is _make_whole else current


def is_whole(path: str) -> bool:
    """Whether a library is all there: everything that its headers announce lies within the file.

    Of other formats than ELF only that there is something.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(64)
            if sys.platform != "linux":
                return bool(start)
            if len(start) < 64 or start[:4] != b"\x7fELF":
                return False
            order = "<" if start[5] == 1 else ">"
            if start[4] == 1:  # 32 bits
                at, sections = struct.unpack_from(f"{order}2I", start, 28)
                counts = struct.unpack_from(f"{order}4H", start, 42)
                form, offset_at, size_at = f"{order}8I", 1, 4
            else:
                at, sections = struct.unpack_from(f"{order}2Q", start, 32)
                counts = struct.unpack_from(f"{order}4H", start, 54)
                form, offset_at, size_at = f"{order}2I6Q", 2, 5
            entry_size, entries, section_size, section_count = counts
            if sections + section_size * section_count > size:
                return False
            if at + entry_size * entries > size or entry_size < struct.calcsize(form):
                return False
            file.seek(at)
            table = file.read(entry_size * entries)
    except OSError:
        return False
    segments = [struct.unpack_from(form, table, number * entry_size) for number in range(entries)]
    return all(segment[offset_at] + segment[size_at] <= size for segment in segments)


def _make_whole(lock_path: str, cpp_builders: Sequence[Any]) -> None:
    from torch._inductor.exc import CppCompileError

    libraries = [
        path
        for path in (builder.get_target_file_path() for builder in cpp_builders)
        if path.endswith(".so")
    ]
    _remove_damaged(lock_path, libraries)
    try:
        _made(lock_path, cpp_builders)
    except CppCompileError as error:
        if not _remove_headers(error):
            raise
        _made(lock_path, cpp_builders)
    for path in _remove_damaged(lock_path, libraries):
        raise OSError(f"the compiler reported no error and left half a library, {path}")


def _made(lock_path: str, cpp_builders: Sequence[Any]) -> None:
    usual: Callable[..., None] = _usual["_worker_compile_cpp"]
    usual(lock_path, cpp_builders)


def _check_build(isa: Any, code: str) -> bool:
    """Whether code for a processor can be compiled and loaded; a damaged library is no answer."""
    from torch._inductor.codecache import get_lock_dir

    def asked() -> tuple[bool, list[str]]:
        targets: list[str] = []
        _thread.targets = targets
        try:
            answer: bool = _usual["check_build"](isa, code)
            return answer, targets
        finally:
            _thread.targets = None

    answer, libraries = asked()
    for path in () if answer else libraries:
        key = os.path.basename(path).removesuffix(".so")
        if _remove_damaged(os.path.join(get_lock_dir(), f"{key}.lock"), [path]):
            answer, _ = asked()
    return answer


def _noted_target(builder: Any) -> str:
    target: str = _usual["get_target_file_path"](builder)
    noted: list[str] | None = getattr(_thread, "targets", None)
    if noted is not None and target.endswith(".so") and target not in noted:
        noted.append(target)
    return target


def _write_whole(content: Any, *args: Any, **options: Any) -> tuple[str, str]:
    """Write a source that is missing; a file that has its name and holds something else is replaced."""
    written: tuple[str, str] = _usual["write"](content, *args, **options)
    if isinstance(content, str) and options.get("key") is None and len(args) < _POSITION_OF_KEY:
        _replace_damaged(written[1], content)
    return written


_POSITION_OF_KEY = 5  # among the arguments of `codecache.write` after the first


def _write_graph_whole(graph: Any) -> str:
    """The same for the module of a compiled graph that was found in Inductor's cache."""
    path: str = _usual["write_to_disk"](graph)
    if isinstance(graph.source_code, str):
        _replace_damaged(path, graph.source_code)
    return path


def _replace_damaged(path: str, content: str) -> None:
    """See to it that a file holds a text, but for white space around it, which is no part of its name."""
    from torch._inductor.codecache import write_atomic

    try:
        with open(path) as file:
            is_whole_text = file.read().strip() == content.strip()
    except UnicodeDecodeError:
        is_whole_text = False
    if not is_whole_text:
        write_atomic(path, content)


def _remove_damaged(lock_path: str, libraries: Sequence[str]) -> list[str]:
    """Remove libraries that aren't whole; others may be waiting for one that is being written."""
    from torch._inductor.codecache import LOCK_TIMEOUT
    from torch.utils._filelock import FileLock

    if all(is_whole(path) or not os.path.exists(path) for path in libraries):
        return []
    removed = []
    with FileLock(lock_path, timeout=LOCK_TIMEOUT):
        for path in libraries:
            if os.path.exists(path) and not is_whole(path):
                os.unlink(path)
                removed.append(path)
    return removed


def _remove_headers(error: Any) -> bool:
    """Remove the precompiled headers that a compile failed with; the compiler does without them."""
    text = str(error)
    if "PCH" not in text and ".gch" not in text:
        return False
    removed = False
    for header in _HEADER.findall(text):
        for path in (f"{header}.gch", f"{header}.pch"):
            with contextlib.suppress(OSError):
                os.unlink(path)
                removed = True
    return removed
