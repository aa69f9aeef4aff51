"""Memory: the compiled regions that a process keeps for later compiles."""

from __future__ import annotations

from regional_inductor.cache import Memory


def regions(count):
    return [lambda x, n=n: x + n for n in range(count)]


def test_what_was_not_used_for_longest_goes_first():
    memory = Memory(limit=2)
    first, second, third = regions(3)
    memory.put("first", first)
    memory.put("second", second)
    assert memory.get("first") is first  # used again: now the second is the older one
    memory.put("third", third)
    assert memory.get("second") is None
    assert memory.get("first") is first
    assert memory.get("third") is third


def test_a_region_put_again_counts_as_used():
    memory = Memory(limit=2)
    first, second, third = regions(3)
    memory.put("first", first)
    memory.put("second", second)
    memory.put("first", third)
    memory.put("third", third)
    assert memory.get("second") is None
    assert memory.get("first") is third


def test_nothing_is_left_after_clearing():
    memory = Memory()
    memory.put("a", regions(1)[0])
    memory.clear()
    assert memory.get("a") is None
