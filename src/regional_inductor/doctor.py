"""`regional-inductor doctor`: whether this machine can compile regions, and what to do if not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from . import toolchain

Verdict = Literal["ok", "note", "bad"]

OLDEST_TORCH = (2, 11)
_MEBIBYTE = 1 << 20
_ENOUGH_DISK = 1024 * _MEBIBYTE


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What.
        verdict: ``"ok"``; ``"note"``, works but is worth knowing; ``"bad"``, regions won't compile.
        detail: What was found, on one line.
        remedy: What to do about it; empty for ``"ok"``.
    """

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at everything; a check that fails itself is a finding too."""
    checks = []
    for look in CHECKS:
        try:
            checks += list(look())
        except Exception as error:  # noqa: BLE001 - a broken machine breaks in ways nobody foresaw
            what = f"could not be checked: {type(error).__name__}: {error}"
            checks.append(
                Check(look.__name__.strip("_"), "note", what, "see whether torch itself works")
            )
    return checks


def exit_code(checks: list[Check]) -> int:
    """1 if something is bad, else 0."""
    return int(any(check.verdict == "bad" for check in checks))


def text(checks: list[Check], width: int = 100) -> str:
    """The checks as a table of at most `width` columns, with a summary."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        detail = check.detail + (f"\nway out: {check.remedy}" if check.remedy else "")
        table.add_row(Text(check.verdict), Text(check.name), Text(detail))
    console = Console(width=width, color_system=None, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*lines, "", _summary(checks)])


def _summary(checks: list[Check]) -> str:
    bad = [check.name for check in checks if check.verdict == "bad"]
    if bad:
        return f"regions can't be compiled here: {', '.join(bad)}"
    notes = sum(check.verdict == "note" for check in checks)
    return "regions can be compiled here" + (f"; {notes} notes above" if notes else "")


# --- versions -------------------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    oldest, newest = toolchain.PYTHON_VERSIONS
    version = sys.version_info[:2]
    detail = f"{platform.python_implementation()} {platform.python_version()}"
    if not oldest <= version <= newest:
        supported = f"{_dotted(oldest)} to {_dotted(newest)}"
        yield Check("Python", "bad", detail, f"use Python {supported}")
    elif sysconfig.get_config_var("Py_GIL_DISABLED"):
        yield Check("Python", "bad", f"{detail}, free-threaded", "use a build with the GIL")
    else:
        yield Check("Python", "ok", detail)


def _torch() -> Iterator[Check]:
    version = torch.__version__
    if _version(version) < OLDEST_TORCH:
        oldest = _dotted(OLDEST_TORCH)
        yield Check("torch", "bad", version, f"pip install 'torch>={oldest}'")
    else:
        yield Check("torch", "ok", version)
    yield Check("regional-inductor", "ok", _installed("regional-inductor") or "not installed")


def _entry_point() -> Iterator[Check]:
    found = importlib.metadata.entry_points(group="torch_dynamo_backends", name="regional_inductor")
    if found:
        yield Check("backend", "ok", 'torch.compile(..., backend="regional_inductor") finds it')
    else:
        yield Check(
            "backend",
            "note",
            'torch.compile(..., backend="regional_inductor") does not find it: the package is on the '
            "path, but not installed",
            "pip install it, or use regional_inductor.compile",
        )


# --- compilers ------------------------------------------------------------------------------------


def _compiler() -> Iterator[Check]:
    problem = toolchain.missing_tool()
    if problem is None:
        compiler = " ".join(toolchain.cxx_compiler())
        yield Check("C++ compiler", "ok", f"{compiler}, with Python's headers")
        return
    what, _, remedy = problem.partition(". ")
    # On a GPU too: Triton compiles the launchers of its kernels with it.
    yield Check("C++ compiler", "bad", what, remedy or "see the message")


def _gpu() -> Iterator[Check]:
    if not torch.cuda.is_available():
        yield from _no_gpu()
        return
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        if major < 7 and torch.version.cuda:
            yield Check(
                f"GPU {index}",
                "bad",
                name,
                "Triton needs 7.0 or newer: run marked models on the CPU or on a newer GPU",
            )
        else:
            yield Check(f"GPU {index}", "ok", name)
    triton = _installed("triton") or _installed("pytorch-triton-rocm")
    if triton is None:
        yield Check(
            "Triton",
            "bad",
            "not installed, and Inductor needs it for a GPU",
            "pip install triton, in the version that torch's package names",
        )
    else:
        yield Check("Triton", "ok", triton)


def _no_gpu() -> Iterator[Check]:
    built_for = torch.version.cuda or torch.version.hip
    if built_for is None:
        has_one = any(Path("/dev").glob("nvidia[0-9]*"))
        if has_one:
            yield Check(
                "GPU",
                "note",
                "this machine has one, and this torch is built for the CPU only",
                "install torch from the index for your CUDA version (https://pytorch.org)",
            )
        else:
            yield Check("GPU", "ok", "none, and this torch is built for the CPU")
        return
    yield Check(
        "GPU",
        "note",
        f"torch is built for {'CUDA' if torch.version.cuda else 'ROCm'} {built_for}, and sees no GPU",
        "nvidia-smi shows whether the driver does; a driver older than torch's CUDA doesn't count",
    )


# --- caches ---------------------------------------------------------------------------------------


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where Inductor keeps what it compiled, without asking Inductor."""
    named = environment.get("TORCHINDUCTOR_CACHE_DIR")
    if named:
        return Path(named)
    import getpass
    import re

    try:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    except (KeyError, OSError):  # a container whose user has no name
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


def _cache() -> Iterator[Check]:
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    where = f"{folder}" + ("" if existing == folder else " (not there yet)")
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Check(
            "cache",
            "bad",
            f"{where} can't be written",
            "set TORCHINDUCTOR_CACHE_DIR to a folder of yours",
        )
        return
    if os.statvfs(existing).f_flag & getattr(os, "ST_NOEXEC", 0):
        yield Check(
            "cache",
            "bad",
            f"{where} is mounted noexec: compiled kernels there can't be loaded",
            "set TORCHINDUCTOR_CACHE_DIR to a folder on another file system",
        )
        return
    free = shutil.disk_usage(existing).free
    detail = f"{where}, {free // _MEBIBYTE:,} MiB free"
    if free < _ENOUGH_DISK:
        yield Check("cache", "note", detail, "make room, or set TORCHINDUCTOR_CACHE_DIR")
    else:
        yield Check("cache", "ok", detail)


def _store() -> Iterator[Check]:
    from .disk import FOLDER, SWITCH, Disk
    from .errors import RegionError

    try:
        disk = Disk.from_environment()
    except RegionError as error:
        yield Check("store", "bad", error.what, error.hint or "unset it")
        return
    if disk is None:
        yield Check(
            "store",
            "note",
            f"{SWITCH}=0: each process compiles its regions again",
            f"unset {SWITCH}",
        )
        return
    trouble = disk.trouble()
    if trouble is not None:
        what, remedy = str(trouble), f"set {FOLDER} to a folder of yours"
        if isinstance(trouble, RegionError):
            what, remedy = trouble.what, trouble.hint or remedy
        yield Check("store", "note", f"{disk.folder} is not used: {what}", remedy)
        return
    entries = disk.entries()
    used = sum(stored.size for stored in entries) / _MEBIBYTE
    where = f"{disk.folder}" + ("" if disk.folder.exists() else " (not there yet)")
    regions = f"{len(entries)} region" + ("" if len(entries) == 1 else "s")
    yield Check(
        "store", "ok", f"{where}, {regions}, {used:,.0f} of {disk.limit // _MEBIBYTE:,} MiB"
    )


def _remote_store() -> Iterator[Check]:
    from .errors import RegionError, RegionWarning
    from .remote import URL, Remote

    try:
        remote = Remote.from_environment()
    except RegionError as error:
        yield Check("remote store", "bad", error.what, error.hint or f"unset {URL}")
        return
    if remote is None:
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RegionWarning)
        remote.get("doctor")
    if said:
        what = next(iter(str(said[0].message).splitlines()))
        yield Check("remote store", "note", what, f"start the server, or unset {URL}")
    else:
        yield Check("remote store", "ok", f"{URL} answers")


# --- known-bad combinations -----------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """Something that is known not to work, or not to do what one expects."""

    name: str
    verdict: Verdict
    applies: Callable[[], bool]
    detail: str
    remedy: str


def _is_on(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false")


KNOWN_BAD: tuple[Combination, ...] = (
    Combination(
        "TORCH_COMPILE_DISABLE",
        "bad",
        lambda: _is_on("TORCH_COMPILE_DISABLE") or _is_on("TORCHDYNAMO_DISABLE"),
        "TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE is set: torch.compile does nothing",
        "unset it",
    ),
    Combination(
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES",
        "note",
        lambda: _is_on("TORCHINDUCTOR_FORCE_DISABLE_CACHES"),
        "Inductor's caches are off: every process compiles everything again",
        "unset TORCHINDUCTOR_FORCE_DISABLE_CACHES",
    ),
    Combination(
        "PYTHONOPTIMIZE",
        "note",
        lambda: sys.flags.optimize > 1,
        "python -OO drops docstrings, which parts of torch read",
        "use -O, or neither",
    ),
    Combination(
        "CUDA_LAUNCH_BLOCKING",
        "note",
        lambda: _is_on("CUDA_LAUNCH_BLOCKING"),
        "CUDA_LAUNCH_BLOCKING is set: right results, useless timings",
        "unset it before measuring",
    ),
    Combination(
        "OMP_NUM_THREADS",
        "note",
        lambda: os.environ.get("OMP_NUM_THREADS") == "1" and (os.cpu_count() or 1) > 4,
        "OMP_NUM_THREADS=1 keeps regions on the CPU to one of several cores",
        "unset OMP_NUM_THREADS, or set it to the number of cores",
    ),
    Combination(
        "Windows",
        "bad",
        lambda: sys.platform == "win32",
        "Windows is not supported",
        "use Linux, or WSL",
    ),
)


def _known_bad() -> Iterator[Check]:
    found = [bad for bad in KNOWN_BAD if bad.applies()]
    for bad in found:
        yield Check(bad.name, bad.verdict, bad.detail, bad.remedy)
    if not found:
        yield Check("combinations", "ok", f"none of {len(KNOWN_BAD)} that are known to be trouble")


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    _python,
    _torch,
    _entry_point,
    _compiler,
    _gpu,
    _cache,
    _store,
    _remote_store,
    _known_bad,
)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


def _dotted(version: Any) -> str:
    return ".".join(map(str, version))
