"""Collection is paused inside the block and as it was after it."""

from __future__ import annotations

import gc
import threading

from regional_inductor.garbage import paused_collection


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
