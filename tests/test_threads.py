"""Several threads that compile and run at once."""

from __future__ import annotations

import threading
from contextlib import ExitStack, nullcontext

import pytest
import torch
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import annotate, preserve_node_meta

import regional_inductor as ri
from regional_inductor import block_capture
from regional_inductor._torch import in_place
from regional_inductor._torch.annotate import annotated_value
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
        # Dynamo disables FX's tracer too, and what it disables shares a code object.
        torch.compiler.disable(lambda: compiled(torch.ones(4)))()
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


# --- blocks ---------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def forward(self, x):
        with ri.region("wave"):
            x = x.sin() * 2
        return x + 1


class Blocks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))

    def happens(self):
        """In the model's own code, which isn't compiled; for a test to replace."""

    def forward(self, x):
        self.happens()
        x = x * 1.5
        for layer in self.layers:
            x = layer(x)
        return x


class Captured:
    """Another thread that captures a graph while the block lasts, with annotations, as AOTAutograd does."""

    def __init__(self, mark=None):
        self.mark = mark
        self.inside, self.done = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._capture)

    def _capture(self):
        def traced(x):
            x = x + 1
            self.inside.set()
            assert self.done.wait(120)
            return x + 2

        with preserve_node_meta(), annotate(self.mark) if self.mark else nullcontext():
            self.graph = make_fx(traced)(torch.ones(4)).graph

    def __enter__(self):
        self.thread.start()
        assert self.inside.wait(120)
        return self

    def __exit__(self, *error):
        self.ends()

    def ends(self):
        self.done.set()
        self.thread.join()

    def marks(self):
        return [node.meta.get("custom") for node in self.graph.nodes if node.op == "call_function"]


def blocks():
    return ri.compile(Blocks(), capture="blocks", region_backend="eager")


@pytest.mark.parametrize(
    "mark", [None, {"compile_with_inductor": "another's"}], ids=["unmarked", "marked"]
)
@pytest.mark.parametrize("when", ["before the call", "during the call"])
def test_blocks_are_compiled_while_another_thread_captures(mark, when):
    """What torch notes of a capture, it notes for the whole process; here it is another thread's."""
    model, x = blocks(), torch.ones(4)
    expected = Blocks()(x)
    with ExitStack() as stack:
        if when == "before the call":
            stack.enter_context(Captured(mark))
        else:
            model.happens = lambda: stack.enter_context(Captured(mark))
        torch.testing.assert_close(model(x), expected)
    assert model.report.captures == 1
    assert [r.name for r in model.report.regions] == ["wave"]
    assert [finding.kind for finding in model.report.findings] == []


def test_marks_of_code_that_runs_get_into_no_graph_of_another_thread():
    class Inline(Blocks):
        def forward(self, x):
            with ri.region("inline"):
                self.happens()
                return self.layers[0](x)

    model = ri.compile(Inline(), capture="blocks", region_backend="eager")
    for run in (model, Inline()):
        with Captured() as other:
            run.happens = other.ends
            run(torch.ones(4))
        assert other.marks() == [None, None]
    assert not annotated_value("compile_with_inductor", None)


def test_each_thread_watches_for_itself(monkeypatch):
    """Two make the first call at once: what one watches with doesn't see the other's blocks."""
    both = threading.Barrier(2, timeout=120)

    class Ways(set):
        def add(self, way):
            both.wait()  # here both know that nobody has called the model this way yet
            super().add(way)

    model = blocks()
    model.happens = both.wait  # and here both watch
    block_capture.capture_in_place(model)._ways_seen = Ways()
    seen = []
    monkeypatch.setattr(
        block_capture.BlockCapture, "_operator_ran", lambda _, name: seen.append(name)
    )
    assert in_threads(2, lambda: model(torch.ones(4))) == [None, None]
    assert seen == ["aten.mul.Tensor"] * 2


def test_first_calls_of_one_block_at_once_are_those_of_one_block(monkeypatch):
    count = in_place.recompile_limit()
    all_of_them = threading.Barrier(count, timeout=120)
    first_call = block_capture._Place._first_call
    arrived = threading.local()

    def together_once(place, *args):
        if not getattr(arrived, "once", False):
            arrived.once = True
            all_of_them.wait()
        return first_call(place, *args)

    monkeypatch.setattr(block_capture._Place, "_first_call", together_once)
    model = blocks()
    assert in_threads(count, lambda: model(torch.ones(4))) == [None] * count
    assert [finding.kind for finding in model.report.findings] == []


def in_threads(count, function):
    """What each of several threads raised, warnings included, or None."""
    raised = [None] * count

    def run(number):
        try:
            function()
        except Exception as error:  # noqa: BLE001 - given back
            raised[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised
