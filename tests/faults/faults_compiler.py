"""A compiler that fails, is killed, hangs, or writes rubbish; other faults while regions compile."""

from __future__ import annotations

import os
import signal

import pytest

from .running import assert_works, finished


@pytest.mark.parametrize("fault", ["fails", "killed", "half-writes", "writes-nothing"])
def test_regions_stay_eager_and_the_next_run_compiles_them(subject, fault):
    faulty = subject.run(FAULT=fault)
    assert faulty["equal"]
    assert set(faulty["statuses"]) == {"eager"}
    assert len(faulty["warnings"]) == len(faulty["statuses"])
    assert_works(subject.run())


def test_a_compiler_that_hangs_ends_with_the_time_limit_and_leaves_nothing_running(subject):
    result = subject.run("--compile-timeout", "3", FAULT="hangs")
    assert result["equal"]
    assert set(result["statuses"]) == {"eager"}
    assert all("longer than 3 s" in reason for reason in result["reasons"])
    assert result["children"] == []
    assert_works(subject.run())


@pytest.mark.parametrize("size", [0, 4096], ids=["nothing fits", "a little fits"])
def test_a_full_disk_is_no_wrong_number(subject, size):
    """A limit of the size of files fails writes as a full disk does, in compilers too."""
    faulty = subject.run("--file-size", str(size))
    assert faulty["equal"]
    assert_works(subject.run())


def test_killed_in_the_middle_of_a_compile_and_started_again(subject):
    process = subject.start(FAULT="waits", start_new_session=True)
    subject.wait_for_compiler()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert_works(subject.run())


def test_only_the_program_is_killed_and_its_compiler_goes_on_beside_the_next_run(subject):
    process = subject.start(FAULT="waits")
    subject.wait_for_compiler()
    process.kill()
    process.communicate()
    assert_works(subject.run())


def test_ctrl_c_ends_the_program_and_its_compilers(subject):
    process = subject.start(FAULT="hangs", start_new_session=True)
    subject.wait_for_compiler()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert process.returncode not in (0, None)
    assert_works(subject.run())


def test_after_ctrl_c_the_same_process_can_compile(subject):
    """As in a notebook; only the program gets the signal, its compiler doesn't."""
    process = subject.start("--go-on", FAULT="waits")
    subject.wait_for_compiler()
    process.send_signal(signal.SIGINT)
    result = finished(process)
    assert result["interrupted"]
    assert_works(result)
