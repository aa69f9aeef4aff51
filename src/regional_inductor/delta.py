"""The smallest part of a list that still fails a test: delta debugging.

After Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2),
2002, with halves first, so that one culprit among n takes about log2(n) tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def smallest_failing(
    items: Sequence[_T], fails: Callable[[Sequence[_T]], bool | None]
) -> tuple[_T, ...]:
    """A part that fails and of which no item can be left out.

    Args:
        items: What fails as a whole, in order.
        fails: The test: whether a part fails; None where that can't be told, which counts as "not
            known to fail".

    Returns:
        The items that are left, in order. Leaving out any single one of them makes the test pass, or
        no longer tell.

    Example:
        >>> from regional_inductor.delta import smallest_failing
        >>> smallest_failing(range(8), lambda part: 2 in part and 5 in part)
        (2, 5)
    """
    items = tuple(items)
    seen: dict[tuple[int, ...], bool] = {}

    def failing(part: tuple[int, ...]) -> bool:
        if part not in seen:
            seen[part] = bool(fails([items[index] for index in part]))
        return seen[part]

    current = tuple(range(len(items)))
    pieces = 2
    while len(current) > 1:
        parts = _split(current, pieces)
        smaller = next((part for part in parts if failing(part)), None)
        if smaller is not None:
            current, pieces = smaller, 2
            continue
        rests = [tuple(i for i in current if i not in part) for part in parts]
        rest = next((rest for rest in rests if pieces > 2 and failing(rest)), None)
        if rest is not None:
            current, pieces = rest, max(pieces - 1, 2)
        elif pieces >= len(current):
            break
        else:
            pieces = min(2 * pieces, len(current))
    return tuple(items[index] for index in current)


def _split(items: tuple[int, ...], pieces: int) -> list[tuple[int, ...]]:
    """Parts of nearly equal length."""
    ends = [len(items) * (number + 1) // pieces for number in range(pieces)]
    return [items[start:end] for start, end in zip([0, *ends], ends, strict=False)]
