"""Generated Python source with its bytecode beside it: run again without being parsed again.

Bytecode of another Python is not run; the source then is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import marshal
import types


def compiled(source: str, what: str) -> bytes:
    """The bytecode of a module, for `code_of`."""
    code = compile(source, _file(source, what), "exec")
    return importlib.util.MAGIC_NUMBER + marshal.dumps(code)


def code_of(source: str, what: str, bytecode: bytes | None) -> types.CodeType:
    """A module's code object, with which tracebacks show the source.

    Args:
        source: The module's source.
        what: What it is, for tracebacks.
        bytecode: What `compiled` gave for it, from a source that is trusted: it is executed.
    """
    file = _file(source, what)
    # None as time says that there is no file to compare with.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    magic = importlib.util.MAGIC_NUMBER
    if bytecode is not None and bytecode.startswith(magic):
        code = marshal.loads(bytecode[len(magic) :])
        assert isinstance(code, types.CodeType)
        return code
    return compile(source, file, "exec")


def _file(source: str, what: str) -> str:
    """The same in every process, since it is part of the bytecode."""
    return f"<regional_inductor {what} {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
