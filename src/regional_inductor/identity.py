"""Numbers for objects that stay theirs for ever, unlike `id`, which the next object may get."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

_counter = itertools.count(1)
_asked = 0
_numbers: dict[int, tuple[weakref.ref[Any], int]] = {}


def identity_of(value: Any) -> int:
    """A number that no other object of this process has, has had or will have; 0 for None.

    An object that can't be referenced weakly gets a new number each time: a key made with it never
    matches another, which is the safe side.
    """
    global _asked
    if value is None:
        return 0
    _asked += 1
    address = id(value)
    known = _numbers.get(address)
    if known is not None and known[0]() is value:
        return known[1]
    number = next(_counter)
    try:
        _numbers[address] = (weakref.ref(value, lambda _: _numbers.pop(address, None)), number)
    except TypeError:
        pass
    return number


def identity_aside(value: Any) -> int:
    """The same number, for what a key says in another way as well where it is for other processes."""
    global _asked
    before = _asked
    number = identity_of(value)
    _asked = before
    return number


def times_asked() -> int:
    """How many numbers were given so far.

    A key made while this didn't change holds no such number, so it means the same in another process.
    Another thread may ask meanwhile: then a key counts as this process's own, which is the safe side.
    """
    return _asked
