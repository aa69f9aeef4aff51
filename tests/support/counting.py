"""Counters that no machine changes: what runs how often, never how long it takes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_started: list[list[str]] = []
_watching = False


def _take_down_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "subprocess.Popen":
        command = arguments[1]
        _started.append([command] if isinstance(command, (str, bytes)) else list(map(str, command)))


sys.addaudithook(_take_down_processes)  # one for the whole process: hooks can't be taken out again


@contextmanager
def compiler_runs() -> Iterator[list[list[str]]]:
    """Command lines of C++ compiler runs that made a shared library, whoever started them.

    An audit hook sees every process that Python starts, so this holds whichever way kernels are built.
    Probes of the compiler and precompiled headers make no library.
    """
    global _watching
    runs: list[list[str]] = []
    _started.clear()
    _watching = True
    try:
        yield runs
    finally:
        _watching = False
        runs += [c for c in _started if _makes_library(c)]


def _makes_library(command: list[str]) -> bool:
    compiler = os.path.basename(command[0]).split("-")[0] not in ("python", "python3")
    sources = any(part.endswith((".cpp", ".cc")) for part in command)
    output = command[command.index("-o") + 1] if "-o" in command[:-1] else ""
    return compiler and sources and output.endswith(".so")


@contextmanager
def calls_of(owner: Any, name: str) -> Iterator[list[Any]]:
    """Takes down the calls of a function or method (their first arguments) without changing them."""
    original = getattr(owner, name)
    calls: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0] if args else None)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


def python_calls(function: Callable[..., Any], *args: Any) -> Counter[str]:
    """How often each Python function is called while a function runs; C functions as `c:name`."""
    found: Counter[str] = Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1
        elif event == "c_call":
            found[f"c:{argument.__name__}"] += 1

    sys.setprofile(profile)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    found.pop("c:setprofile", None)
    return found
