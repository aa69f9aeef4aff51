"""Linking against torch's libraries without reading them.

The linker reads all symbols of libtorch_cpu, half a million, to resolve a handful: 0.35 s of 1.4 s for ten
kernels. A shared object may as well leave symbols undefined, as long as it says which libraries it needs:
the loader finds these by name among those that are loaded. An empty library of the same name is enough
for the linker to write that down.

Checked on torch 2.11 and 2.13: torch's libraries lie in `torch/lib` and are called what their files are.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

import torch


def with_stubs(command: Sequence[str]) -> list[str]:
    """A compiler's command line that links against empty libraries in place of torch's.

    What is linked this way may have symbols that nobody defines, which only shows when it is loaded.

    Args:
        command: Compiles and links with g++ or clang.

    Returns:
        The command line as it was where it links none of torch's libraries, or not on Linux.
    """
    libraries = [f"lib{token[2:]}.so" for token in command if token.startswith("-l")]
    torchs = os.path.join(os.path.dirname(torch.__file__), "lib")
    stubbed = [name for name in libraries if os.path.exists(os.path.join(torchs, name))]
    if not stubbed or not sys.platform.startswith("linux"):
        return list(command)
    folder = _folder_of_stubs(command[0], tuple(stubbed))
    # Some distributions' compilers leave out libraries that define nothing that is used.
    return [command[0], f"-L{folder}", "-Wl,--no-as-needed", *command[1:]]


def _folder_of_stubs(compiler: str, names: tuple[str, ...]) -> str:
    """Made once a process, since every unit waits for three runs of the compiler here.

    A forked process makes its own, since its parent may end first; so does one whose folder somebody
    has cleaned up.
    """
    made = (os.getpid(), compiler, names)
    with _lock:
        folder = _folders.get(made)
        if folder is None or not all(os.path.exists(os.path.join(folder, name)) for name in names):
            folder = tempfile.mkdtemp(prefix="regional-inductor-stubs-")
            atexit.register(_remove, folder, os.getpid())
            for name in names:
                _make_stub(compiler, os.path.join(folder, name))
            _folders[made] = folder
        return folder


def _remove(folder: str, maker: int) -> None:
    if os.getpid() == maker:  # what a forked process inherits isn't its own to remove
        shutil.rmtree(folder, ignore_errors=True)


def _make_stub(compiler: str, path: str) -> None:
    subprocess.run(
        [
            *(compiler, "-shared", "-nostdlib", f"-Wl,-soname,{os.path.basename(path)}"),
            *("-o", path, "-x", "c++", os.devnull),
        ],
        check=True,
        capture_output=True,
    )


_lock = threading.Lock()
_folders: dict[tuple[int, str, tuple[str, ...]], str] = {}
