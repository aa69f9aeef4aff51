"""Linking against torch's libraries without reading them.

The linker reads all symbols of libtorch_cpu, half a million, to resolve a handful: 0.35 s of 1.4 s for ten
kernels. A shared object may as well leave symbols undefined, as long as it says which libraries it needs:
the loader finds these by name among those that are loaded. An empty library of the same name is enough
for the linker to write that down.

Checked on torch 2.11 and 2.13: torch's libraries lie in `torch/lib` and are called what their files are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import torch


def with_stubs(command: Sequence[str], folder: str) -> list[str]:
    """A compiler's command line that links against empty libraries in place of torch's.

    What is linked this way may have symbols that nobody defines, which only shows when it is loaded.

    Args:
        command: Compiles and links with g++ or clang.
        folder: Where the empty libraries are put; they are not needed later.

    Returns:
        The command line as it was where it links none of torch's libraries, or not on Linux.
    """
    libraries = [f"lib{token[2:]}.so" for token in command if token.startswith("-l")]
    torchs = os.path.join(os.path.dirname(torch.__file__), "lib")
    stubbed = [name for name in libraries if os.path.exists(os.path.join(torchs, name))]
    if not stubbed or not sys.platform.startswith("linux"):
        return list(command)
    for name in stubbed:
        subprocess.run(
            [
                *(command[0], "-shared", "-nostdlib", f"-Wl,-soname,{name}"),
                *("-o", os.path.join(folder, name), "-x", "c++", os.devnull),
            ],
            check=True,
            capture_output=True,
        )
    # Some distributions' compilers leave out libraries that define nothing that is used.
    return [command[0], f"-L{folder}", "-Wl,--no-as-needed", *command[1:]]
