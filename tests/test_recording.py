"""cudagraphs="graph": what can be said without a device; tests/gpu/test_cuda_graphs.py records for real."""

from __future__ import annotations

import pytest
import torch

import regional_inductor
from regional_inductor._torch import cudagraphs


def tailed(ri, options=None):
    tail = ri.region("tail", options=options)(lambda x: x.sin() + 1)
    return lambda x: tail(x * 2)


def test_a_graph_on_the_cpu_runs_unrecorded_and_the_report_says_why(ri):
    compiled = ri.compile(tailed(ri), capture="model", cudagraphs="graph", region_backend="eager")
    x = torch.randn(4)
    torch.testing.assert_close(compiled(x), (x * 2).sin() + 1)
    (finding,) = [f for f in compiled.report.findings if f.kind == "cudagraphs"]
    assert finding.message == (
        "the inference graph is not recorded as a CUDA graph: cpu device (arg0_1)"
    )
    assert finding.remedy.startswith("it runs launch by launch")


def test_training_on_the_cpu_says_it_once_for_both_passes(ri):
    compiled = ri.compile(tailed(ri), capture="model", cudagraphs="graph", region_backend="eager")
    x = torch.randn(4, requires_grad=True)
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x * 2).cos())
    found = [f.message for f in compiled.report.findings if f.kind == "cudagraphs"]
    assert found == ["the forward graph is not recorded as a CUDA graph: cpu device (primals_1)"]


@pytest.mark.parametrize("capture", ["auto"])
def test_a_whole_recording_needs_a_whole_capture(ri, capture):
    with pytest.raises(regional_inductor.OptionError) as caught:
        ri.compile(tailed(ri), capture=capture, cudagraphs="graph")
    assert str(caught.value).startswith(
        "cudagraphs=\"graph\" records a whole capture, and capture='auto' may make many"
    )
    assert 'pass capture="model" as well' in str(caught.value)


def test_an_unknown_choice_is_named(ri):
    with pytest.raises(regional_inductor.OptionError, match="cudagraphs='regions' is not a choice"):
        ri.compile(tailed(ri), capture="model", cudagraphs="regions")


# --- with a recorder that only takes down what it is asked -----------------------------------------


@pytest.fixture
def recordings(monkeypatch):
    """As if every graph could be recorded: what would be handed to the trees."""
    made = []

    def replaying(call, arguments, plan, direction):
        made.append((direction, plan))
        return call

    monkeypatch.setattr(cudagraphs, "why_not", lambda graph: "")
    monkeypatch.setattr(cudagraphs, "_replaying", replaying)
    monkeypatch.setattr(
        "torch._dynamo.backends.cudagraphs.get_device_node_mapping",
        lambda graph: {torch.device("cuda", 0): None},
    )
    return made


def test_parameters_are_static_and_so_is_what_the_forward_pass_saves(ri, recordings):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)

        def forward(self, x):
            return self.norm(self.linear(x))

    model = Model()
    ri.mark(model, "norm")
    compiled = ri.compile(model, capture="model", cudagraphs="graph", region_backend="eager")
    x = torch.randn(2, 4)
    expected = torch.nn.functional.layer_norm(model.linear.forward(x), (4,))
    out = compiled(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    (forward, plan), (backward, behind) = recordings
    assert (forward, backward) == ("forward", "backward")
    names = [p.name for p in plan.placeholders]
    assert len(plan.static) == len(names) - 1  # all but x
    assert len(behind.static) == len(behind.placeholders) - 1  # all but the tangent
    assert not plan.mutated


def test_a_buffer_that_is_written_to_is_static_and_an_input_that_is_gets_a_finding(ri, recordings):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x):
            with ri.region("count"):
                y = x.sin() + 1
            self.total.add_(y)
            return y

    counter = Counter()
    compiled = ri.compile(counter, capture="model", cudagraphs="graph", region_backend="eager")
    with torch.no_grad():
        compiled(torch.ones(3))
    assert set(recordings[0][1].mutated) <= set(recordings[0][1].static)
    assert [f for f in compiled.report.findings if f.kind == "cudagraphs"] == []

    @ri.region("write")
    def write(x):
        return x.add_(1) * 2

    compiled = ri.compile(write, capture="model", cudagraphs="graph", region_backend="eager")
    compiled(torch.ones(3))
    (finding,) = [f for f in compiled.report.findings if f.kind == "cudagraphs"]
    assert "writes to inputs that are neither parameters nor buffers" in finding.message
    assert "mark_static_address" in finding.remedy


def test_a_region_s_own_recording_gives_way_to_its_graph_s(ri, recordings):
    compiled = ri.compile(
        tailed(ri, {"triton.cudagraphs": True}),
        capture="model",
        cudagraphs="graph",
        region_backend="eager",
    )
    compiled(torch.randn(4))
    (finding,) = [f for f in compiled.report.findings if f.kind == "cudagraphs"]
    assert finding.message == (
        'the region is recorded with its whole graph, as cudagraphs="graph" asks'
    )
    assert finding.region == "tail"
    assert [dict(r.options) for r in compiled.report.regions] == [{}]


def test_no_more_sizes_are_recorded_than_the_limit(monkeypatch):
    ran = []
    monkeypatch.setattr(
        cudagraphs,
        "_replaying",
        lambda call, arguments, plan, direction: lambda a: ran.append(("replay", a[0])),
    )
    plan = cudagraphs.Plan(0, (), (), (), ())
    run = cudagraphs.recorded(lambda a: ran.append(("plain", a[0])), plan, "inference", most=2)
    for size in (1, 2, 3, 1):
        run([size, None])
    assert ran == [("replay", 1), ("replay", 2), ("plain", 3), ("replay", 1)]


@pytest.mark.inductor
def test_regions_that_record_themselves_share_one_compile_and_are_recorded_at_each_call(
    ri, recordings
):
    tail = ri.region("tail", options={"triton.cudagraphs": True})(lambda x, w: x.sin() * w)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((4,), 2.0))

        def forward(self, x):
            return tail(tail(x, self.weight) @ x, self.weight)

    model = Model()
    compiled = ri.compile(model)
    x = torch.randn(4, 4)
    with torch.no_grad():
        for _ in range(2):
            expected = ((x.sin() * 2) @ x).sin() * 2
            torch.testing.assert_close(compiled(x), expected)
    assert [r.status for r in compiled.report.regions] == ["compiled", "shared"]
    assert [dict(r.options) for r in compiled.report.regions] == [{"triton.cudagraphs": True}] * 2
    assert [direction for direction, _ in recordings] == ["inference", "inference"]
    for _, plan in recordings:
        assert len(plan.static) == 1  # the parameter
        assert len(plan.placeholders) == 2


@pytest.mark.inductor
def test_a_region_on_the_cpu_runs_without_its_recording_and_says_why(ri):
    compiled = ri.compile(tailed(ri, {"triton.cudagraphs": True}))
    x = torch.randn(4)
    torch.testing.assert_close(compiled(x), (x * 2).sin() + 1)
    (finding,) = [f for f in compiled.report.findings if f.kind == "cudagraphs"]
    assert finding.message.startswith("the region is not recorded as a CUDA graph: cpu device")
    assert finding.region == "tail"


@pytest.mark.inductor
def test_a_region_whose_sizes_no_argument_names_is_recorded_once_a_size(ri, recordings):
    """The trees tell sizes apart by integers, and would replay one size's recording for another."""
    compiled = ri.compile(tailed(ri, {"triton.cudagraphs": True}), dynamic=True)
    for rows in (3, 5, 3, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(compiled(x), (x * 2).sin() + 1)
    assert [plan.resized for _, plan in recordings] == [(0,), (0,)]


def test_a_whole_graph_gets_its_sizes_as_arguments(ri, recordings):
    compiled = ri.compile(
        tailed(ri), capture="model", cudagraphs="graph", region_backend="eager", dynamic=True
    )
    compiled(torch.randn(3, 4))
    assert [plan.resized for _, plan in recordings] == [()]


def test_no_more_sizes_of_tensors_are_recorded_than_the_limit(monkeypatch):
    ran = []

    def replaying(call, arguments, plan, direction):
        recorded = len(arguments[0])
        return lambda a: ran.append(("replay", recorded, len(a[0])))

    monkeypatch.setattr(cudagraphs, "_replaying", replaying)
    plan = cudagraphs.Plan(0, (), (), (), (), resized=(0,))
    run = cudagraphs.recorded(lambda a: ran.append(("plain", len(a[0]))), plan, "inference", most=2)
    for size in (1, 2, 3, 1):
        run([torch.ones(size)])
    assert ran == [("replay", 1, 1), ("replay", 2, 2), ("plain", 3), ("replay", 1, 1)]
