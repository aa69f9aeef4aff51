"""Marks on functions by path, where code can't be changed."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import MarkError, did_you_mean, warn
from .marking import Handle, Site, find_site, without
from .options import Collectives, Numerics
from .scope import Value, caller_line, check_function, checked, make_value, qualname, with_defaults

__all__ = ["FunctionHandle", "mark_function"]


class FunctionHandle(Handle):
    """What :func:`mark_function` returns.

    Attributes:
        path: The dotted path of the marked function.
    """

    def __init__(self, path: str, place: _Place, value: Value, is_new: bool) -> None:
        self.path = path
        self._place = place
        self._value = value
        self._is_new = is_new

    def remove(self) -> None:
        """Take the mark away from the function, whichever call put it there."""
        site, on_top = find_site(_inner_function(self._place.read()))
        if site is None:
            return
        site.become(without(site.values, self._value))
        if on_top and not site.values:
            self._place.restore(site)

    def _undo(self) -> None:
        if self._is_new:
            self.remove()

    def __repr__(self) -> str:
        return f"<marked function: {self.path}>"


@dataclass(frozen=True)
class _Place:
    """An attribute of a module or a class that holds a function."""

    owner: Any
    attribute: str

    def read(self) -> Any:
        """What is there as it is stored: a staticmethod object, not the function in it."""
        return inspect.getattr_static(self.owner, self.attribute)

    def write(self, stored: Any) -> None:
        setattr(self.owner, self.attribute, stored)

    def is_inherited(self) -> bool:
        return self.attribute not in vars(self.owner)

    def patch(self, site: Site) -> None:
        stored = self.read()
        _ORIGINALS[self, site.wrapper] = _INHERITED if self.is_inherited() else stored
        is_descriptor = isinstance(stored, (staticmethod, classmethod))
        self.write(type(stored)(site.wrapper) if is_descriptor else site.wrapper)

    def restore(self, site: Site) -> None:
        # Where the wrapper came by a later import, it was never patched in: there it may stay.
        original = _ORIGINALS.pop((self, site.wrapper), site.wrapper)
        if original is _INHERITED:
            delattr(self.owner, self.attribute)
        else:
            self.write(original)


_INHERITED = object()
_ORIGINALS: dict[tuple[_Place, Callable[..., Any]], Any] = {}  # what a wrapper replaced, as stored


def mark_function(
    path: str,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    id: Hashable = None,
    numerics: Numerics | None = None,
    compile_timeout: float | None = None,
    collectives: Collectives | None = None,
) -> FunctionHandle:
    """Mark a function that isn't yours, by its dotted path, until the handle is removed.

    The attribute that the path names is replaced by a marked function that calls the original.
    Code that looks the function up there, as functions of the same module do, is marked from then
    on.  Code that imported the function by name earlier still holds the original: a warning names
    those places, and each can be marked by its own path.

    Marking again with the same arguments changes nothing; with other arguments the later mark rules
    until it is removed.

    Args:
        path: ``"package.module.function"`` or ``"package.module.Class.method"``; for a subclass of
            ``torch.nn.Module``, ``"package.module.Class"`` means its ``forward``.
        name: A label for reports; by default the function's ``__qualname__``.
        options: As in :func:`region`.
        id: As in :func:`region`.
        numerics: As in :func:`region`.
        compile_timeout: As in :func:`region`, in seconds.
        collectives: As in :func:`region`.

    Returns:
        A handle with the ``path`` and ``remove()``; also a context manager.

    Raises:
        MarkError: Nothing at that path (near names are suggested), or no function.
        OptionError: An option that Inductor doesn't have, or a value of the wrong type.

    Warns:
        RegionWarning: Other loaded modules hold the function under a name of their own.

    Example:
        >>> import regional_inductor as ri
        >>> with ri.mark_function("torch.nn.RMSNorm.forward", options={"max_autotune": True}) as handle:
        ...     handle.path
        'torch.nn.RMSNorm.forward'
    """
    source = caller_line()
    value = make_value(name, options, id, numerics, compile_timeout, collectives)
    value = checked(value, source)
    place = _find_place(path, source)
    function = _inner_function(place.read())
    _check_marked_function(path, function, source)
    value = with_defaults(value, qualname(function), "code", source)
    site, _ = find_site(function)
    if site is not None and place.is_inherited():
        # Marking Sub.method must not mark Base.method, nor leave the mark of that one inside.
        function, site = site.inner, None
    if site is not None:
        is_new = not site.has_on_top(value)
        site.become((*without(site.values, value), value))
        return FunctionHandle(path, place, value, is_new)
    place.patch(Site(function, (value,)))
    _warn_of_other_references(path, function, place, source)
    return FunctionHandle(path, place, value, is_new=True)


def _inner_function(stored: Any) -> Any:
    return stored.__func__ if isinstance(stored, (staticmethod, classmethod)) else stored


def _find_place(path: str, source: str) -> _Place:
    owner, rest = _import_prefix(path, source)
    for depth, part in enumerate(rest):
        if not hasattr(owner, part):
            known = [known for known in dir(owner) if not known.startswith("__")]
            raise MarkError(
                f"nothing at {path!r}: {_name_of(owner)} has no {part!r}",
                source=source,
                hint=did_you_mean(part, known, "check the path; it is one that Python can import"),
            )
        if depth < len(rest) - 1:
            owner = getattr(owner, part)
    target = getattr(owner, rest[-1]) if rest else owner
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _Place(target, "forward")
    if not rest:
        raise MarkError(
            f"{path!r} is a module, not a function", source=source, hint="name a function in it"
        )
    return _Place(owner, rest[-1])


def _import_prefix(path: str, source: str) -> tuple[Any, list[str]]:
    """The module that the longest importable prefix of a path names, and what is left of the path."""
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise MarkError(
            f"{path!r} is no dotted path",
            source=source,
            hint='for example "package.module.function"',
        )
    module = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Something else missing is the module's own trouble, and the user has to see it.
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            if module is None:
                near = did_you_mean(parts[0], (known for known in sys.modules if "." not in known))
                raise MarkError(
                    f"nothing at {path!r}: no module named {parts[0]!r}",
                    source=source,
                    hint=near or "check the path, or install what it belongs to",
                ) from error
            return module, parts[depth - 1 :]
        if depth < len(parts) and _holds_function(module, parts[depth]):
            # torch has both a function and a submodule of some names; the function is meant.
            return module, parts[depth:]
    return module, []


def _holds_function(module: types.ModuleType, name: str) -> bool:
    return callable(vars(module).get(name))


def _check_marked_function(path: str, function: Any, source: str) -> None:
    if not callable(function) or isinstance(function, (type, nn.Module)):
        raise MarkError(
            f"{path!r} is no function but {type(function).__qualname__}",
            source=source,
            hint="name a function, a method or a subclass of torch.nn.Module",
        )
    check_function(function, source)


def _warn_of_other_references(path: str, function: Any, place: _Place, source: str) -> None:
    others = sorted(_other_references(function, place))
    if others:
        listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        warn(
            f"the mark on {path} does not reach code that holds the function itself: {listed}",
            source=source,
            hint=f'mark those too, as in regional_inductor.mark_function("{others[0]}")',
            stacklevel=3,
        )


def _other_references(function: Any, place: _Place) -> Iterator[str]:
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("torch._C"):
            continue  # no code there looks anything up by name
        # vars(), as getattr would make lazy modules import what they offer.
        namespace = getattr(module, "__dict__", None) if module is not place.owner else None
        for name, held in list((namespace or {}).items()):
            if held is function:
                yield f"{module_name}.{name}"


def _name_of(owner: Any) -> str:
    return str(getattr(owner, "__qualname__", None) or getattr(owner, "__name__", owner))
