"""Compile marked regions of a PyTorch model with TorchInductor; run everything else eagerly.

Importing the package imports neither Inductor nor Dynamo.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    ConflictError,
    LoadError,
    MarkError,
    MissingValueError,
    OptionError,
    RegionCompileError,
    RegionError,
    RegionWarning,
    SaveError,
    UnsavedCallError,
)
from .function_marks import mark_function
from .module_marks import mark
from .node_marks import mark_nodes
from .scope import eager, region

if TYPE_CHECKING:
    from . import rules
    from .backend import compile_regions, outline_regions, regional_inductor
    from .bisecting import bisect
    from .bisection import Bisection
    from .compiling import compile
    from .explaining import explain
    from .exporting import export
    from .loading import load
    from .report import Report, last_report
    from .saving import save
    from .verification import Verification
    from .verifying import verify

_LAZY = {
    "bisect": "bisecting",
    "Bisection": "bisection",
    "compile": "compiling",
    "compile_regions": "backend",
    "explain": "explaining",
    "export": "exporting",
    "last_report": "report",
    "load": "loading",
    "outline_regions": "backend",
    "regional_inductor": "backend",
    "Report": "report",
    "Verification": "verification",
    "rules": "rules",
    "save": "saving",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    """Load what needs the compiler's machinery when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LAZY[name]}", __name__)
    value = module if name == "rules" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "Bisection",
    "ConflictError",
    "LoadError",
    "MarkError",
    "MissingValueError",
    "OptionError",
    "RegionCompileError",
    "RegionError",
    "RegionWarning",
    "Report",
    "SaveError",
    "UnsavedCallError",
    "Verification",
    "bisect",
    "compile",
    "compile_regions",
    "eager",
    "explain",
    "export",
    "last_report",
    "load",
    "mark",
    "mark_function",
    "mark_nodes",
    "outline_regions",
    "region",
    "regional_inductor",
    "rules",
    "save",
    "verify",
]
