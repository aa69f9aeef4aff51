"""Numbers for objects that stay theirs for ever, unlike `id`, which the next object may get."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

_counter = itertools.count(1)
_numbers: dict[int, tuple[weakref.ref[Any], int]] = {}


def identity_of(value: Any) -> int:
    """A number that no other object of this process has, has had or will have; 0 for None.

    An object that can't be referenced weakly gets a new number each time: a key made with it never
    matches another, which is the safe side.
    """
    if value is None:
        return 0
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
