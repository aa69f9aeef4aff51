"""Generated code is run from its bytecode where this Python made it, and shows its source either way."""

from __future__ import annotations

import builtins
import importlib.util
import traceback

import pytest

from regional_inductor import bytecode

SOURCE = "def f(x):\n    return x / 0  # the line\n"


def run(code):
    names = {}
    exec(code, names)
    return names["f"]


def test_bytecode_runs_without_parsing_and_tracebacks_show_the_source(monkeypatch):
    data = bytecode.compiled(SOURCE, "graph")
    monkeypatch.setattr(builtins, "compile", lambda *_: pytest.fail("parsed"))
    with pytest.raises(ZeroDivisionError) as raised:
        run(bytecode.code_of(SOURCE, "graph", data))(1)
    assert "return x / 0  # the line" in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("data", [None, b"", bytecode.compiled(SOURCE, "graph")])
def test_without_bytecode_of_this_python_the_source_is_run(data, monkeypatch):
    monkeypatch.setattr(importlib.util, "MAGIC_NUMBER", b"of another Python")
    assert run(bytecode.code_of(SOURCE.replace("/ 0", "* 2"), "graph", data))(3) == 6


def test_equal_sources_have_one_name_in_every_process():
    names = {
        bytecode.code_of(SOURCE, "graph", data).co_filename
        for data in (None, bytecode.compiled(SOURCE, "graph"))
    }
    assert names == {bytecode.code_of(SOURCE, "graph", None).co_filename}
    assert names != {bytecode.code_of(SOURCE + "\n", "graph", None).co_filename}
