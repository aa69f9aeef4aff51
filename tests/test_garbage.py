"""Collection is paused or narrowed inside the block and as it was after it."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from regional_inductor.garbage import only_new_garbage, paused_collection


def test_collection_is_off_inside_and_on_after():
    assert gc.isenabled()
    with paused_collection():
        assert not gc.isenabled()
        with paused_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off():
    gc.disable()
    try:
        with paused_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_overlapping_threads_end_with_collection_on():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with paused_collection():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with paused_collection():
        thread.start()
        inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture
def nobody_else_collects():
    """Nothing is frozen, and no automatic collection comes between: their counts are another test's work."""
    gc.unfreeze()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("nobody_else_collects")
def test_only_what_is_made_inside_is_collected_inside():
    older = weakref.ref(Cycle())
    with only_new_garbage():
        newer = weakref.ref(Cycle())
        with only_new_garbage():
            pass
        gc.collect()
        assert newer() is None
        assert older() is not None
    gc.collect()
    assert older() is None
    assert gc.get_freeze_count() == 0


def test_what_somebody_has_frozen_stays_frozen():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with only_new_garbage():
            pass
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()


class Dropped:
    """Garbage of some size, as a graph is: thousands of objects that hold each other."""

    def __init__(self):
        self.parts = [[self] for _ in range(10_000)]


def test_a_process_that_only_compiles_has_its_full_collections_too():
    """Freezing sets back the counts by which Python knows that one is due."""
    made = []
    for _ in range(60):
        with only_new_garbage():
            pass
        made.append(weakref.ref(Dropped()))
    assert sum(dropped() is not None for dropped in made) < 40


def test_who_switched_collection_off_gets_none():
    gc.disable()
    try:
        made = []
        for _ in range(60):
            with only_new_garbage():
                pass
            made.append(weakref.ref(Dropped()))
        assert all(dropped() is not None for dropped in made)
    finally:
        gc.enable()
