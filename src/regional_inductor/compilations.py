"""What `compile` returned, and what it was called with so far: all that saving it takes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ._torch.called import Called
from ._torch.calls import CapturedCall
from .errors import SaveError
from .regions import Settings

_ATTRIBUTE = "regional_inductor_compilation"


@dataclass
class Compilation:
    """One call of `compile`.

    Attributes:
        of: Gives the module or function.
        settings: What was asked for.
        arguments: The other arguments of `compile`.
        called: What the model is called with while its blocks are captured, each by itself; None where the
            whole is captured.
        captured: The captures of the whole so far, in order.
    """

    of: Callable[[], Any]
    settings: Settings
    arguments: Mapping[str, Any]
    called: Called | None = None
    captured: list[CapturedCall] = field(default_factory=list)

    def start_over(self) -> None:
        """Forget what was captured of blocks: the whole is captured from here on."""
        self.called = None
        self.captured.clear()

    def remember(self, call: CapturedCall | None) -> None:
        """Add a capture."""
        if call is not None and self.called is None:
            self.captured.append(call)

    @property
    def calls(self) -> list[CapturedCall]:
        """The calls that a file is to serve."""
        return self.captured if self.called is None else self.called.calls

    @property
    def original(self) -> Any:
        """The module or function itself."""
        found = self.of()
        assert found is not None, "asked through the module, which is there then"
        return found

    @property
    def function(self) -> Callable[..., Any]:
        """What Dynamo captures: the function itself, or the module's `forward`."""
        if isinstance(self.original, torch.nn.Module):
            return self.original.forward
        return self.original  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        return str(getattr(self.original, "__qualname__", type(self.original).__qualname__))

    @property
    def source(self) -> str:
        """Where the function or `forward` is written, as ``file:line``, or ``""``."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


class _Attached:
    """Holds a compilation on what was compiled; copies and pickles, which are not compiled, hold none."""

    def __init__(self, compilation: Compilation | None = None) -> None:
        self.compilation = compilation

    def __reduce__(self) -> tuple[Any, ...]:
        return _Attached, ()


def attach(compiled: Any, compilation: Compilation) -> None:
    """Let `compilation_of` find it on what `compile` returns."""
    setattr(compiled, _ATTRIBUTE, _Attached(compilation))


def compilation_of(compiled: Any) -> Compilation | None:
    """What `compile` was called with for something it returned; None for anything else."""
    found = getattr(compiled, _ATTRIBUTE, None)
    return found.compilation if isinstance(found, _Attached) else None


class CopiedSave:
    """What `.save` becomes where a model is copied or pickled: the copy is not compiled."""

    def __call__(self, path: str | os.PathLike[str]) -> None:
        raise SaveError(
            "this is a copy, which is not compiled",
            hint="compile it with regional_inductor.compile, call it and save it then",
        )
