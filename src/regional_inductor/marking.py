"""What every mark placed from outside has: a handle that takes it away again, and the wrapper it sits on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .options import parse_mark
from .scope import Value, mark_calls, switch

_H = TypeVar("_H", bound="Handle")
_SITE = "_regional_inductor_site"  # on a wrapper of ours: its Site


class Handle:
    """Takes marks away again: `remove()`, or the end of a `with` block."""

    def remove(self) -> None:
        """Take the mark away.  Doing so twice, or in any order with other handles, is fine."""
        raise NotImplementedError

    def _undo(self) -> None:
        """Undo what the call that made this handle changed, which may be nothing."""
        self.remove()

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo()


@dataclass(eq=False)
class Site:
    """A wrapper of ours and the marks that were put there; the last of them rules."""

    inner: Callable[..., Any]
    values: tuple[Value, ...]
    calls_class: bool = False  # of a module: there was no forward on the instance before
    wrapper: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        self.wrapper = mark_calls(self.inner, self.values[-1])
        setattr(self.wrapper, _SITE, self)

    def has_on_top(self, value: Value) -> bool:
        return bool(self.values) and same(self.values[-1], value)

    def become(self, values: tuple[Value, ...]) -> None:
        """Change the marks in place, for a wrapper that can't be taken out any more."""
        self.values = values
        switch(self.wrapper, values[-1] if values else None)


def same(a: Value, b: Value) -> bool:
    return parse_mark(a) == parse_mark(b)


def without(values: tuple[Value, ...], value: Value) -> tuple[Value, ...]:
    return tuple(kept for kept in values if not same(kept, value))


def find_site(function: Any) -> tuple[Site | None, bool]:
    """Our site on a function or beneath later wrappers of others, and whether it is on top."""
    on_top = True
    while function is not None:
        function = getattr(function, "__func__", function)
        site = getattr(function, _SITE, None)
        # functools.wraps copies __dict__, so a wrapper around ours carries our attribute as well.
        if isinstance(site, Site) and site.wrapper is function:
            return site, on_top
        on_top = False
        function = getattr(function, "__wrapped__", getattr(function, "func", None))
    return None, False
