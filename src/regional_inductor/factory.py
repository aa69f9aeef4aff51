"""Finding the model that a command line names: `SCRIPT_OR_MODULE:FACTORY`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .errors import did_you_mean

_WHAT_IT_RETURNS = (
    "return (model, args) or (model, args, kwargs): a module or function and a tuple of what to call "
    "it with"
)


class FactoryError(Exception):
    """The command line names nothing usable; the message says what, and what to do."""


@dataclass(frozen=True)
class Example:
    """A model and what to call it with."""

    model: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def load(target: str) -> Example:
    """Import a script or module and call the factory in it.

    Args:
        target: ``"model.py:build"``, ``"package.module:build"``, or an attribute path after the
            colon. What it names is called without arguments; a module isn't.

    Raises:
        FactoryError: No such script, module or attribute, or the factory returned something else.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise FactoryError(
            f"{target!r} names no factory: write SCRIPT_OR_MODULE:FACTORY, as in model.py:build"
        )
    with _current_folder_on_path():
        found: Any = _script(Path(where)) if _is_script(where) else _module(where)
        for part in name.split("."):
            if not hasattr(found, part):
                known = [known for known in vars(found) if not known.startswith("_")]
                hint = did_you_mean(part, known, f"it has {', '.join(known[:8]) or 'nothing'}")
                raise FactoryError(f"{where} has no {part!r}: {hint}")
            found = getattr(found, part)
        return _example(target, found)


def _example(target: str, found: Any) -> Example:
    given = found() if callable(found) and not isinstance(found, torch.nn.Module) else found
    if isinstance(given, (torch.fx.GraphModule, torch.export.ExportedProgram)):
        return Example(given)
    parts = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    usable = (
        len(parts) in (2, 3)
        and callable(parts[0])
        and isinstance(parts[1], (tuple, list))
        and isinstance(parts[-1], (Mapping, tuple, list))
    )
    if not usable:
        raise FactoryError(f"{target} gave {type(given).__qualname__}: {_WHAT_IT_RETURNS}")
    return Example(parts[0], tuple(parts[1]), dict(parts[2]) if len(parts) == 3 else {})


def _is_script(where: str) -> bool:
    return where.endswith(".py") or os.sep in where


def _script(path: Path) -> ModuleType:
    if not path.is_file():
        raise FactoryError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FactoryError(f"{path} is no Python script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickling look their module up
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise FactoryError(
            f"there is no module {name!r}, and a script's name ends in .py"
        ) from None


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
