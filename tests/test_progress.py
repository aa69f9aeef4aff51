"""The progress line: on a terminal, after a moment, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time

import pytest
import torch

from regional_inductor import progress


class Terminal:
    """A pseudo-terminal, and what was written to it."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        self.file = os.fdopen(theirs, "w", buffering=1)
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # what a closed terminal reads as
            while chunk := os.read(self._ours, 65536):
                self._chunks.append(chunk)

    @property
    def raw(self) -> str:
        return b"".join(self._chunks).decode()

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw)

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.text:
            assert time.monotonic() < deadline, self.raw
            time.sleep(0.01)

    def close(self) -> None:
        self.file.close()
        self._reader.join()
        os.close(self._ours)


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress, "_DELAY", 0.01)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("REGIONAL_INDUCTOR_PROGRESS", "LOCAL_RANK", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield terminal
    terminal.close()


@contextlib.contextmanager
def compiling(terminal, total=1):
    # Not in the fixture: pytest puts its own standard error back before the test runs.
    with contextlib.redirect_stderr(terminal.file), progress.compiling(total):
        yield


def compile_for_a_while(terminal, seconds=0.3):
    with compiling(terminal, 2), progress.in_hand("norm"):
        time.sleep(seconds)


def test_it_counts_regions_and_names_the_one_in_hand(terminal):
    with compiling(terminal, 3):
        with progress.in_hand("norm"):
            terminal.wait_for("0/3 0:00:00 norm")
        with progress.in_hand("rope[0]"):
            terminal.wait_for("1/3 0:00:00 rope[0]")
        with progress.in_hand("C++ of 2 regions", regions=2):
            terminal.wait_for("2/3 0:00:00 C++ of 2 regions")


def test_a_region_that_waits_for_the_compilers_is_not_done(terminal):
    with compiling(terminal, 2):
        for name in ("norm", "rope"):
            with progress.in_hand(name) as step:
                terminal.wait_for(f"0/2 0:00:00 {name}")
                step.done, step.waiting = 0, 1
        with progress.in_hand("compilers, 2 regions", 2) as step:
            step.waiting = -2
            terminal.wait_for("0/2 0:00:00 compilers, 2 regions")
        with progress.in_hand("the rest", 0):
            terminal.wait_for("2/2 0:00:00 the rest")


@pytest.mark.inductor
def test_a_batch_counts_its_regions_when_their_compilers_are_done(ri, terminal, monkeypatch):
    @ri.region("sines")
    def sines(x):
        return x.sin() * 5 + 3

    @ri.region("cosines")
    def cosines(x):
        return x.cos() * 7 + 3

    said = []
    usual = progress._Line.refresh

    def refresh(line):
        usual(line)
        said.append((line.in_hand, line.done, line.waiting))

    monkeypatch.setattr(progress._Line, "refresh", refresh)
    compiled = ri.compile(lambda x: sines(cosines(x) @ x))
    with (
        contextlib.redirect_stderr(terminal.file),
        torch._inductor.config.patch(fx_graph_cache=False),
    ):
        compiled(torch.ones(5, 5))
    assert said[0] == ("cosines", 0, 0)
    assert ("compilers, 2 regions", 0, 2) in said
    assert said[-1] == ("compilers, 2 regions", 2, 0)


def test_it_is_gone_at_the_end_and_the_cursor_is_back(terminal):
    compile_for_a_while(terminal)
    print("the user's next line", file=terminal.file)
    terminal.wait_for("the user's next line")
    last_line = terminal.raw.rpartition("compiling regions")[2]
    assert "\x1b[2K" in last_line  # erased
    assert "\x1b[?25h" in last_line  # cursor shown


def test_it_goes_away_when_a_compile_fails(terminal):
    def fail():
        with compiling(terminal, 1), progress.in_hand("norm"):
            terminal.wait_for("0/1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not progress._on_screen.locked()


def test_what_is_printed_meanwhile_stays_readable(terminal):
    with compiling(terminal, 1), progress.in_hand("norm"):
        terminal.wait_for("0/1")
        print("a warning", file=sys.stderr)
    terminal.wait_for("a warning\r\n")


def test_standard_output_that_is_no_terminal_is_left_alone(terminal, capsys):
    with compiling(terminal, 1), progress.in_hand("norm"):
        terminal.wait_for("0/1")
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in terminal.text


def test_a_short_compile_shows_nothing(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 60)
    compile_for_a_while(terminal, 0.01)
    assert terminal.raw == ""
    assert [
        t
        for t in threading.enumerate()
        if isinstance(t, threading.Timer) and not t.finished.is_set()
    ] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("REGIONAL_INDUCTOR_PROGRESS", "0"), ("TERM", "dumb"), ("LOCAL_RANK", "1")],
)
def test_it_can_be_switched_off(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    compile_for_a_while(terminal)
    assert terminal.raw == ""


def test_without_a_terminal_not_even_a_timer_is_started(monkeypatch):
    monkeypatch.setattr(progress.threading, "Timer", None)
    with progress.compiling(2), progress.in_hand("norm"):
        pass


def test_it_leaves_the_screen_to_a_bar_of_tqdms(terminal):
    tqdm = pytest.importorskip("tqdm")
    with tqdm.tqdm(total=1, file=terminal.file):
        compile_for_a_while(terminal)
    assert "compiling" not in terminal.text
    compile_for_a_while(terminal)
    terminal.wait_for("compiling regions")


def test_it_leaves_the_screen_to_a_bar_of_richs(terminal):
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=terminal.file)) as bars:
        bars.add_task("training")
        compile_for_a_while(terminal)
    assert "compiling" not in terminal.text


def test_of_two_compiles_at_a_time_one_has_the_line(terminal):
    with compiling(terminal, 1), progress.in_hand("norm"):
        terminal.wait_for("norm")
        other = threading.Thread(target=compile_for_a_while, args=(terminal,))
        other.start()
        other.join()
    assert "0/2" not in terminal.text


def test_a_compile_tells_it_which_region_is_in_hand(ri, terminal, monkeypatch):
    from regional_inductor.stages import compile as stage

    def slow(*args):
        terminal.wait_for("scale")
        return args[0]

    monkeypatch.setitem(stage._BACKENDS, "eager", slow)

    @ri.region("scale")
    def scale(x):
        return x * 2 + 1

    compiled = ri.compile(scale, region_backend="eager")
    with contextlib.redirect_stderr(terminal.file):
        assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0))
