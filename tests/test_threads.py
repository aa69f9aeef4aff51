"""Several threads that compile and run at once."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

import regional_inductor as ri
from regional_inductor.stages import compile as stage


def wave(x):
    with ri.region("wave"):
        return x.sin() * 2


def test_a_compiled_function_runs_while_another_thread_is_traced():
    """FX notes for the whole process that it traces, and AOTAutograd traces with FX."""
    compiled = ri.compile(wave, region_backend="eager")
    compiled(torch.ones(4))
    inside, done = threading.Event(), threading.Event()

    def traced(x):
        inside.set()
        assert done.wait(120)
        return x + 1

    other = threading.Thread(target=make_fx(traced), args=(torch.ones(4),))
    other.start()
    try:
        assert inside.wait(120)
        torch.testing.assert_close(compiled(torch.ones(4)), wave(torch.ones(4)))
    finally:
        done.set()
        other.join()


def test_a_compiled_function_still_refuses_to_be_traced():
    compiled = ri.compile(wave, region_backend="eager")
    with pytest.raises(RuntimeError, match="FX to symbolically trace"):
        symbolic_trace(lambda x: compiled(x))


def test_backward_graphs_are_compiled_while_no_other_thread_captures(monkeypatch):
    from torch._dynamo.convert_frame import compile_lock

    held = []

    def build(module, options, call, settings):
        held.append((call.direction, compile_lock._is_owned()))
        return module

    monkeypatch.setitem(stage._BACKENDS, "eager", build)
    stage.forget_compiled_regions()
    x = torch.ones(4, requires_grad=True)
    ri.compile(wave, region_backend="eager")(x).sum().backward()
    assert held == [("forward", True), ("backward", True)]
    stage.forget_compiled_regions()


def test_the_function_that_torch_asks_is_its_own_again():
    from torch.fx import _symbolic_trace

    before = _symbolic_trace.is_fx_symbolic_tracing
    ri.compile(wave, region_backend="eager")
    assert _symbolic_trace.is_fx_symbolic_tracing is before
