"""Triton's kernels of a bundled region: what its cache folder holds for them, taken out and put back.

Generated code holds each kernel as source. Loading that source asks Triton, whose own key (source, options,
compiler, environment) finds the binary in its cache folder, or compiles where it doesn't: so putting files
there can save a compile and never change what is run. The choice among several configurations is Inductor's;
it is made when a kernel first runs, and kept in a file beside the kernel's source.

Checked by reading torch 2.11 and 2.13 with Triton 3.6: `CachingAutotuner` (`compile_results`, `launchers`,
`inductor_meta`, `triton_meta`, `save_cache_hook`, `precompile`), `AutotuneCache.local_cache`, `triton_cache_dir`,
`triton_hash_to_path_key`, `PyCodeCache.load`, the files of `triton.runtime.cache.FileCacheManager`,
`triton.compiler.compiler.get_cache_key`, `triton.backends.nvidia.compiler.get_ptxas_version`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger("regional_inductor")

_PTXAS = "TRITON_PTXAS_PATH"
_GROUP = "__grp__"  # a file that names the others by their full paths
_FOLDER = re.compile(r"[A-Za-z0-9_-]{16,128}")
_NAME = re.compile(r"[\w.\-]+")


class UnknownKernelError(Exception):
    """A kernel of a kind, or in a state, that can't be taken out of its process."""


def files_of(kernels: Iterable[Any], *, chosen_only: bool = False) -> dict[str, bytes]:
    """What Triton's cache folder holds for some kernels, as ``FOLDER/NAME``, free of paths.

    Args:
        kernels: As generated code holds them once they are compiled.
        chosen_only: Leave out what they were compiled with before they ran.

    Raises:
        UnknownKernelError: One has no files, or isn't a kernel of the kind that is known.
    """
    found: dict[str, bytes] = {}
    for kernel in kernels:
        for folder in _folders_of(kernel, chosen_only):
            files = dict(_files_in(folder))
            if not files:
                raise UnknownKernelError(f"Triton's cache lacks {_name_of(kernel)}")
            found |= files
    return found | _files_of_the_driver()


def put_back(files: Mapping[str, bytes], device: int) -> None:
    """Put files of `files_of` where Triton will look for them; a folder that has some stays as it is.

    Raises:
        ValueError: A name that isn't one of a file in a folder of Triton's cache.
    """
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir

    base = Path(triton_cache_dir(device))
    folders: dict[str, dict[str, bytes]] = {}
    for path, data in files.items():
        folder, _, name = path.partition("/")
        if not _FOLDER.fullmatch(folder) or not _NAME.fullmatch(name) or name in (".", ".."):
            raise ValueError(f"{path!r} is no file of Triton's cache")
        folders.setdefault(folder, {})[name] = data
    base.mkdir(parents=True, exist_ok=True)
    for folder, contents in folders.items():
        _publish(base / folder, contents)


def load(name: str, source: str) -> Any:
    """A kernel from its source, ready to be launched; compiled only where Triton's cache lacks it."""
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime import compile_tasks

    for prepare in ("_set_triton_ptxas_path", "_set_triton_libdevice_path"):
        # What generated code is compiled with, which Triton's key sees.
        getattr(compile_tasks, prepare, lambda: None)()
    kernel = getattr(PyCodeCache.load(source), name)
    if not getattr(kernel, "launchers", None):
        with _whatever_ptxas_was_asked_first():
            kernel.precompile(warm_cache_only=False)
    return kernel


@contextlib.contextmanager
def _whatever_ptxas_was_asked_first() -> Iterator[None]:
    """Let Triton find binaries whose key names the other one of two ptxas.

    Torch brings a ptxas along and Triton another one. A process that generates code asks Triton's for its
    version, which is in all its keys from then on, and assembles with torch's; a process that only compiles, or
    loads, asks torch's. One and the same binary so has two keys.
    """
    try:
        from triton.compiler import (  # type: ignore[import-not-found, unused-ignore]
            compiler as triton_compiler,
        )

    except ImportError:
        triton_compiler = None
    if not hasattr(triton_compiler, "get_cache_key"):
        yield
        return

    def key(source: Any, backend: Any, options: Any, env_vars: Any) -> Any:
        asked: Any = usual(source, backend, options, env_vars=env_vars)
        try:
            if not _is_cached(asked):
                for other in _with_other_versions(backend):
                    found = usual(source, other, options, env_vars=env_vars)
                    if _is_cached(found):
                        return found
        except Exception:  # then Triton compiles
            log.debug("Triton's cache is asked under its own key alone", exc_info=True)
        return asked

    with _patching:  # before the usual one is looked up, or it would be another thread's
        usual = triton_compiler.get_cache_key
        triton_compiler.get_cache_key = key
        try:
            yield
        finally:
            triton_compiler.get_cache_key = usual


_patching = threading.RLock()


def _is_cached(key: str) -> bool:
    from torch._inductor.runtime.runtime_utils import triton_hash_to_path_key
    from triton import knobs  # type: ignore[import-not-found, unused-ignore]

    digest = hashlib.sha256(key.encode()).hexdigest()
    return (Path(knobs.cache.dir) / triton_hash_to_path_key(digest)).is_dir()


class _OtherVersion:
    """A backend of Triton's as far as its key goes, with another ptxas."""

    def __init__(self, version: str, target: Any) -> None:
        self._hash = f"{version}-{target.arch}"

    def hash(self) -> str:
        return self._hash


def _with_other_versions(backend: Any) -> Iterator[_OtherVersion]:
    for version in _ptxas_versions(backend.target.arch):
        other = _OtherVersion(version, backend.target)
        if other.hash() != backend.hash():
            yield other


@cache
def _ptxas_versions(arch: Any) -> tuple[str, ...]:
    """What the ptxas that Triton would use says of itself, with torch's own and without."""
    from triton.backends.nvidia import (  # type: ignore[import-not-found, unused-ignore]
        compiler as nvidia,
    )

    ask = nvidia.get_ptxas_version.__wrapped__  # which keeps what it was told first
    chosen = os.environ.get(_PTXAS)
    versions = [str(ask(arch))]
    try:
        if os.environ.pop(_PTXAS, None) is not None:
            versions.append(str(ask(arch)))
    finally:
        if chosen is not None:
            os.environ[_PTXAS] = chosen
    return tuple(dict.fromkeys(versions))


def device_of(kernel: Any) -> int:
    """The index of the device that a kernel was compiled for."""
    return int(kernel.triton_meta.get("device") or 0)


# --- choices among configurations -----------------------------------------------------------------


def choices_of(kernels: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What was chosen for kernels so far: for each variable, the text of the file that says so, by name."""
    found = {}
    for variable, kernel in kernels.items():
        path = _choice_file(kernel)
        if path is None:
            continue
        with contextlib.suppress(OSError):
            found[variable] = {path.name: path.read_text()}
    return found


def put_choice_back(source: str, choice: Mapping[str, str]) -> None:
    """Let a kernel that will be loaded from `source` find what was chosen for it."""
    from torch._inductor.codecache import PyCodeCache

    _, path = PyCodeCache.write(source)
    for name, text in choice.items():
        if not _NAME.fullmatch(name) or not name.endswith(".best_config"):
            raise ValueError(f"{name!r} is no file of Inductor's choices")
        file = Path(path).parent / name
        if not file.exists():
            with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as unfinished:
                unfinished.write(text)
            os.replace(unfinished.name, file)


def when_chosen(kernels: Iterable[Any], then: Callable[[], None]) -> None:
    """Have `then` called after a configuration was chosen for one of the kernels."""
    for kernel in kernels:
        usual = getattr(kernel, "save_cache_hook", None)
        if isinstance(usual, _Noted):
            usual.listeners.append(then)
        elif usual:
            kernel.save_cache_hook = _Noted(usual, kernel, then)


class _Noted:
    """Stands for the function that saves a kernel's choice, and tells others of it."""

    def __init__(
        self, usual: Callable[..., None], kernel: Any, listener: Callable[[], None]
    ) -> None:
        self.usual = usual
        self.kernel = kernel
        self.listeners = [listener]
        self.hashes: list[str] = []

    def __call__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.usual(config, *args, **kwargs)
        try:
            if kwargs.get("found_by_coordesc"):
                # One that none of the precompiled is: by now it is in Triton's cache.
                self.hashes.append(self.kernel._precompile_config(config).kernel.hash)
            for listener in self.listeners:
                listener()
        except Exception:
            log.debug("the choice for %s isn't stored", _name_of(self.kernel), exc_info=True)

    def __reduce__(self) -> Any:
        # Kernels are pickled on their way into other caches: as if nobody had listened.
        return _itself, (self.usual,)


def _itself(value: Any) -> Any:
    return value


def _choice_file(kernel: Any) -> Path | None:
    hook = getattr(kernel, "save_cache_hook", None)
    cache = getattr(hook.usual if isinstance(hook, _Noted) else hook, "__self__", None)
    local = getattr(cache, "local_cache", None)
    return Path(local[1]) if local else None


# --- files ----------------------------------------------------------------------------------------


def _folders_of(kernel: Any, chosen_only: bool) -> Iterator[Path]:
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir
    from torch._inductor.runtime.runtime_utils import triton_hash_to_path_key

    if type(kernel).__name__ != "CachingAutotuner" or not kernel.compile_results:
        raise UnknownKernelError(f"it has a {type(kernel).__name__} among its kernels")
    base = Path(triton_cache_dir(device_of(kernel)))
    hook = getattr(kernel, "save_cache_hook", None)
    hashes = [] if chosen_only else [result.kernel.hash for result in kernel.compile_results]
    hashes += hook.hashes if isinstance(hook, _Noted) else ()
    for digest in dict.fromkeys(hashes):
        yield base / triton_hash_to_path_key(digest)


def _files_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name == "lock":
            continue
        data = path.read_bytes()
        if path.name.startswith(_GROUP):
            group = json.loads(data)
            group["child_paths"] = {
                child: os.path.basename(place) for child, place in group["child_paths"].items()
            }
            data = json.dumps(group).encode()
        yield f"{folder.name}/{path.name}", data


def _publish(folder: Path, contents: Mapping[str, bytes]) -> None:
    """All files of one kernel, seen by others at once or not at all."""
    if folder.is_dir() and any(folder.iterdir()):
        return
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="tmp.") as unfinished:
        whole = Path(unfinished) / "whole"
        whole.mkdir()
        for name, data in contents.items():
            if name.startswith(_GROUP):
                group = json.loads(data)
                group["child_paths"] = {
                    child: str(folder / os.path.basename(place))
                    for child, place in group["child_paths"].items()
                }
                data = json.dumps(group).encode()
            (whole / name).write_bytes(data)
        with contextlib.suppress(OSError):  # somebody else was faster
            whole.replace(folder)


def _files_of_the_driver() -> dict[str, bytes]:
    """Triton's library for CUDA's driver, which it compiles once for each cache folder."""
    try:
        from triton.runtime.driver import driver  # type: ignore[import-not-found, unused-ignore]

        library = Path(driver.active.utils.load_binary.__self__.__file__)
        return dict(_files_in(library.parent)) if _FOLDER.fullmatch(library.parent.name) else {}
    except Exception:
        log.debug("Triton's library for the driver isn't found", exc_info=True)
        return {}


def _name_of(kernel: Any) -> str:
    return str(getattr(kernel, "inductor_meta", {}).get("kernel_name", "a kernel"))
