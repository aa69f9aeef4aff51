"""What holds for the repository as a whole: what an import costs, who reaches into torch, what belongs together."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from regional_inductor import toolchain

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "regional_inductor"
OUTSIDE_TORCH_FOLDER = [
    path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "_torch" not in path.parents
]


def modules_added_by(statement: str) -> set[str]:
    """Which modules a statement adds to those that `import torch` brings, in a fresh process."""
    code = f"import torch, sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# --- imports -------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_neither_inductor_nor_dynamo_nor_what_it_may_never_need():
    heavy = {
        "torch._inductor",
        "torch._dynamo",
        "torch._functorch",
        "transformers",
        "rich",
        "jinja2",
    }
    added = modules_added_by("import regional_inductor")
    assert (
        sorted(
            name
            for name in added
            if heavy & {name, name.partition(".")[0], ".".join(name.split(".")[:2])}
        )
        == []
    )


def test_importing_the_package_adds_few_modules():
    added = modules_added_by("import regional_inductor")
    others = {name for name in added if not name.startswith("regional_inductor")}
    assert len(others) <= 10, sorted(others)


def test_the_command_line_starts_without_inductor_dynamo_and_transformers():
    added = modules_added_by("import regional_inductor.cli")
    assert not added & {"torch._inductor", "torch._dynamo", "transformers"}


def test_all_public_names_resolve_and_are_listed_once():
    package = importlib.import_module("regional_inductor")
    assert len(set(package.__all__)) == len(package.__all__)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


# --- the layout ----------------------------------------------------------------------------------------------------


def test_stages_and_the_files_in_stages_are_the_same_set():
    from regional_inductor.pipeline import STAGES

    files = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    names = [stage.__module__.rpartition(".")[2] for stage in STAGES]
    assert set(names) == files
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "path", OUTSIDE_TORCH_FOLDER, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_only_the_torch_folder_uses_private_parts_of_torch(path: Path):
    found = private_torch(path.read_text())
    assert found == [], (
        "a private torch API belongs in _torch/, with the versions it was checked on"
    )


def test_the_search_for_private_parts_of_torch_finds_them():
    code = """
import torch._dynamo
from torch._inductor import config
from torch import _C
import torch.fx._symbolic_trace
torch._functorch.config.debug_partitioner
torch.fx.traceback.annotate
torch.__version__
"""
    assert private_torch(code) == [
        "line 2: torch._dynamo",
        "line 3: torch._inductor",
        "line 4: torch._C",
        "line 5: torch.fx._symbolic_trace",
        "line 6: torch._functorch",
    ]


def private_torch(code: str) -> list[str]:
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=aliases):
                used = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                used = [f"{module}.{alias.name}" for alias in aliases]
            case ast.Attribute(lineno=_):
                used = [ast.unparse(node)]
            case _:
                continue
        for name in used:
            if private := re.match(r"torch(\.[a-z]\w*)*\._(?!_)\w+", name):
                found[node.lineno] = f"line {node.lineno}: {private.group()}"
    return [found[line] for line in sorted(found)]


# --- packaging -----------------------------------------------------------------------------------------------------


def test_torch_finds_the_backend_through_the_entry_point():
    (backend,) = entry_points(group="torch_dynamo_backends", name="regional_inductor")
    assert callable(backend.load())


def test_constraints_pin_torch_exactly_and_hold_no_cuda_package():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert "torch==2.13.0" in lines
    assert [line for line in lines if "==" not in line] == []
    assert [line for line in lines if re.match("nvidia|cuda|triton", line)] == []


def test_no_tracked_text_names_a_path_of_one_machine():
    texts = [
        ROOT / "README.md",
        ROOT / "Makefile",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("src/**/*.py"),
    ]
    assert [
        str(path) for path in texts if re.search(r"/(home|work|root)/\w", path.read_text())
    ] == []


# --- the check before set-up -----------------------------------------------------------------------------------------


def test_this_machine_has_what_inductor_needs():
    assert toolchain.missing_tool() is None


def test_an_unsupported_python_is_named_with_the_way_out():
    line = toolchain.missing_tool(python_version=(3, 9))
    assert (
        line
        == "Python 3.9 is not supported: 3.10 to 3.13 are. Choose one with `make PYTHON=python3.13`."
    )


def test_a_missing_compiler_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    line = toolchain.missing_tool()
    assert line is not None
    assert line.startswith("No C++ compiler: `no-such-compiler` is not on the PATH. Install one (")
    assert "CXX" in line
    assert "\n" not in line


def test_missing_python_headers_are_named_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    line = toolchain.missing_tool()
    assert line is not None
    assert line.startswith(f"No Python headers: {tmp_path}/Python.h does not exist. Install them (")


def test_a_compiler_that_fails_is_named_with_its_first_error(monkeypatch, tmp_path):
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: vector: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    line = toolchain.missing_tool()
    assert line is not None
    assert (
        f"`{compiler}` can't compile a file that includes Python.h and <vector>: fatal error: vector"
        in line
    )


def test_make_stops_at_a_missing_compiler_with_that_one_line(tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        [make, "--no-print-directory", "-C", str(ROOT), f"VENV={tmp_path / 'venv'}", "demo"],
        env={"PATH": "/usr/bin:/bin", "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert not (tmp_path / "venv").exists()
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert lines[0].startswith("No C++ compiler: `no-such-compiler`")
