"""What Inductor needs on the machine besides Python packages: a C++ compiler and Python's headers.

`make` runs this file as a script before it sets anything up, the command line calls `missing_tool` before it
compiles. So it uses the standard library only and imports nothing from the package.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig

PYTHON_VERSIONS = ((3, 10), (3, 13))

# Uses both, so that a compiler without its standard library, or headers that don't fit, show here too.
_PROBE = "#include <Python.h>\n#include <vector>\nstd::vector<PyObject*> probe;\n"


def missing_tool(python_version: tuple[int, int] = sys.version_info[:2]) -> str | None:
    """Returns one line that says what is missing and what to install, or None when all is there."""
    oldest, newest = PYTHON_VERSIONS
    if not oldest <= python_version <= newest:
        return (
            f"Python {_dotted(python_version)} is not supported: {_dotted(oldest)} to {_dotted(newest)} are. "
            f"Choose one with `make PYTHON=python{_dotted(newest)}`."
        )
    compiler = cxx_compiler()
    if shutil.which(compiler[0]) is None:
        return (
            f"No C++ compiler: `{compiler[0]}` is not on the PATH. Install one "
            f"({_how_to_install('g++', 'gcc-c++')}), or name yours in the environment variable CXX."
        )
    include = sysconfig.get_path("include")
    if not os.path.isfile(os.path.join(include, "Python.h")):
        return (
            f"No Python headers: {os.path.join(include, 'Python.h')} does not exist. Install them "
            f"({_how_to_install(f'python{_dotted(python_version)}-dev', 'python3-devel')})."
        )
    probe = subprocess.run(
        [*compiler, "-x", "c++", "-std=c++17", "-fsyntax-only", f"-I{include}", "-"],
        input=_PROBE,
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        first_error = next(
            (line for line in probe.stderr.splitlines() if "error" in line), "no message"
        )
        return (
            f"The C++ compiler `{shlex.join(compiler)}` can't compile a file that includes Python.h and <vector>: "
            f"{first_error.strip()}. Install it anew ({_how_to_install('g++', 'gcc-c++')}), or set CXX."
        )
    return None


def missing_venv() -> str | None:
    """Returns one line when this Python can't create a virtual environment (Debian packs that apart)."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = f"python{_dotted(sys.version_info[:2])}-venv"
        return f"Python can't create virtual environments. Install its venv module ({_how_to_install(package, 'python3')})."
    return None


def cxx_compiler() -> list[str]:
    """The command that Inductor would run: CXX, else the platform's usual one."""
    return shlex.split(os.environ.get("CXX", "")) or [
        "clang++" if sys.platform == "darwin" else "g++"
    ]


def _how_to_install(debian: str, fedora: str) -> str:
    if sys.platform == "darwin":
        return "macOS: xcode-select --install"
    return f"Debian, Ubuntu: apt install {debian}; Fedora: dnf install {fedora}"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(missing_tool() or missing_venv())
