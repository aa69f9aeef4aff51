"""A time limit stops Python code, reports itself, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from regional_inductor.timelimit import TimeLimitError, time_limit


def spin(limit):
    with time_limit(limit):
        while True:
            time.sleep(0.001)


def test_code_that_takes_too_long_is_stopped():
    with pytest.raises(TimeLimitError, match=r"longer than 0\.05 s"):
        spin(0.05)


def test_code_within_its_time_is_left_alone():
    with time_limit(60):
        value = sum(range(1000))
    assert value == 499500


def test_no_limit_is_no_limit():
    with time_limit(None):
        pass


def test_an_error_of_the_code_itself_is_passed_on():
    def divide():
        with time_limit(60):
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        divide()


def test_code_that_swallows_the_exception_still_fails():
    def swallowing():
        with time_limit(0.02), contextlib.suppress(Exception):
            while True:
                time.sleep(0.001)

    with pytest.raises(TimeLimitError):
        swallowing()


def test_nothing_arrives_after_the_block():
    for _ in range(20):
        with contextlib.suppress(TimeLimitError), time_limit(0.001):
            time.sleep(0.001)
    for _ in range(100):
        time.sleep(0.0001)


def test_a_profiler_goes_on_after_a_limit_was_reached():
    """CPython 3.11 hangs under a profile function if an exception on its way is taken back."""
    with contextlib.suppress(TimeLimitError):
        spin(0.01)
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    try:
        sorted([3, 1, 2], key=lambda value: -value)
    finally:
        sys.setprofile(None)
    assert calls


# --- processes ------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def driver(tmp_path, signals=""):
    """A command that waits for a process of its own, as a compiler's driver does."""
    script = tmp_path / "driver"
    script.write_text(f"#!/bin/sh\n{signals}\nsleep 600 & echo $! > {tmp_path}/inner\nwait\nwait\n")
    script.chmod(0o755)
    return [str(script)]


@linux
@pytest.mark.parametrize("signals", ["", "trap '' TERM"], ids=["ends when asked", "ignores it"])
def test_a_process_that_is_waited_for_ends_with_all_that_it_started(tmp_path, signals):
    def build():
        with time_limit(1):
            subprocess.run(driver(tmp_path, signals), stdout=subprocess.PIPE, check=True)

    with pytest.raises(TimeLimitError):
        build()
    started = tmp_path / "inner"
    if started.exists():  # else a busy machine had not got there
        wait_until(lambda: not alive(int(started.read_text())))


@linux
def test_processes_started_before_or_by_other_threads_go_on():
    others = [subprocess.Popen(["sleep", "600"])]
    started, leave = threading.Event(), threading.Event()

    def another():
        others.append(subprocess.Popen(["sleep", "600"]))
        started.set()
        leave.wait(60)  # the children of a thread that ends pass to another one

    thread = threading.Thread(target=another)
    try:
        with contextlib.suppress(TimeLimitError), time_limit(0.3):
            thread.start()
            started.wait(60)
            subprocess.run(["sleep", "600"], check=False)
        assert [other.poll() for other in others] == [None, None]
    finally:
        leave.set()
        for other in others:
            other.kill()
            other.wait()
        thread.join()


@linux
def test_compilers_that_inductors_threads_wait_for_end_and_later_work_finds_threads():
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    def build():
        with config.patch(compile_threads=2), time_limit(0.3):
            waiting = [
                AsyncCompile.submit(lambda: subprocess.run(["sleep", "600"])) for _ in "1234"
            ]
            for future in waiting:
                future.result()

    with pytest.raises(TimeLimitError):
        build()
    with config.patch(compile_threads=2):
        assert AsyncCompile.submit(lambda: 3).result(60) == 3
        AsyncCompile.pool().shutdown()
        AsyncCompile.pool.cache_clear()
