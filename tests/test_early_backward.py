"""Backward regions compiled with the forward graph's, and what of that shows."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from support.compare import assert_trains_like_eager
from torch._inductor import config as inductor_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import annotate, preserve_node_meta

import regional_inductor as ri
from regional_inductor import pipeline, region_backends
from regional_inductor.early_backward import EarlyBackward
from regional_inductor.errors import OptionError, RegionCompileError, RegionWarning
from regional_inductor.region_requests import requests_of
from regional_inductor.regions import Settings
from regional_inductor.selection import VARIABLE, write_kept
from regional_inductor.stages import compile as compile_stage
from regional_inductor.stages.collect import collect
from regional_inductor.stages.outline import outline
from regional_inductor.stages.partition import partition


class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x):
        with ri.region("gate"):
            gated = F.silu(self.up(x)) * 2
        return self.down(gated)


@pytest.fixture(autouse=True)
def _nothing_known():
    torch._dynamo.reset()
    compile_stage.forget_compiled_regions()


@pytest.fixture
def batches(monkeypatch):
    """The directions of the regions of each batch that is compiled."""
    seen = []
    compile_batch = compile_stage._compile_batch

    def noted(requests, settings):
        seen.append(sorted(request.call.direction for request in requests))
        return compile_batch(requests, settings)

    monkeypatch.setattr(compile_stage, "_compile_batch", noted)
    return seen


@pytest.fixture
def failing(monkeypatch):
    """Set to directions whose regions are not to compile; counts the attempts."""
    directions, attempts = set(), []
    usual = region_backends.BACKENDS["eager"]

    def compile_region(module, options, call, settings):
        if call.direction in directions:
            attempts.append(call.direction)
            raise ValueError("not today")
        return usual(module, options, call, settings)

    monkeypatch.setitem(region_backends.BACKENDS, "eager", compile_region)
    return directions, attempts


def x():
    return torch.randn(4, 8)


def trained(model, **options):
    compiled = ri.compile(model, region_backend="eager", **options)
    compiled(x()).sum().backward()
    return compiled.report


def statuses(report):
    return [(region.direction, region.status) for region in report.regions]


def test_one_batch_has_the_regions_of_both_graphs(batches):
    report = trained(Gated(), backward="early")
    assert batches == [["backward", "forward"]]
    assert statuses(report) == [("forward", "compiled"), ("backward", "compiled")]


def test_late_backward_regions_are_a_batch_of_their_own(batches):
    trained(Gated(), backward="late")
    assert batches == [["forward"], ["backward"]]


def test_gradients_equal_eagers():
    model, compiled = Gated(), Gated()
    compiled.load_state_dict(model.state_dict())
    compiled = ri.compile(compiled, region_backend="eager", backward="early")
    assert_trains_like_eager(compiled, model, x().requires_grad_())


def test_by_default_training_mode_decides(batches):
    trained(Gated().train())
    assert batches.pop() == ["backward", "forward"]
    compile_stage.forget_compiled_regions()
    trained(Gated().eval())
    assert batches == [["forward"], ["backward"]]


def test_a_mode_that_changes_after_compile_counts_as_it_is_when_captured(batches):
    compiled = ri.compile(Gated(), region_backend="eager")
    compiled.eval()
    compiled(x())
    assert batches == [["forward"]]


def test_a_function_and_the_backend_compile_late_unless_asked(batches):
    def function(value, weight):
        with ri.region("product"):
            return (value * weight).sin()

    weight = torch.randn(8, requires_grad=True)
    ri.compile(function, region_backend="eager")(x(), weight)
    torch.compile(Gated(), backend="regional_inductor", options={"region_backend": "eager"})(x())
    assert batches == [["forward"], ["forward"]]
    options = {"region_backend": "eager", "backward": "early"}
    compile_stage.forget_compiled_regions()
    torch.compile(Gated(), backend="regional_inductor", options=options)(torch.randn(3, 8))
    assert batches[2:] == [["backward", "forward"]]


def test_without_gradients_there_is_nothing_early(batches):
    compiled = ri.compile(Gated(), region_backend="eager", backward="early")
    with torch.no_grad():
        compiled(x())
    assert batches == [["forward"]]


def test_a_report_says_what_waits_for_the_backward_graph():
    compiled = ri.compile(Gated(), region_backend="eager", backward="early")
    compiled(x())
    (forward,) = compiled.report.graphs
    assert forward.compiled_early == 1
    assert "compiled with it: 1 region of its backward graph" in str(compiled.report)


def test_nothing_is_early_where_the_forward_graph_has_all_its_regions(batches):
    trained(Gated(), backward="late")
    batches.clear()
    torch._dynamo.reset()
    report = trained(Gated(), backward="early")
    assert batches == []
    assert report.graphs[0].compiled_early == 0
    assert statuses(report) == [("forward", "memory"), ("backward", "memory")]


def test_a_region_that_fails_early_is_tried_again_and_warns_once(failing):
    directions, attempts = failing
    directions.add("backward")
    compiled = ri.compile(Gated(), region_backend="eager", backward="early")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compiled(x())
    with pytest.warns(RegionWarning, match="not today"):
        result.sum().backward()
    assert attempts == ["backward", "backward"]
    assert statuses(compiled.report) == [("forward", "compiled"), ("backward", "eager")]


def test_a_failure_raises_where_its_graph_is_compiled(failing):
    directions, _ = failing
    directions.add("backward")
    compiled = ri.compile(Gated(), region_backend="eager", backward="early", on_error="raise")
    result = compiled(x())
    with pytest.raises(RegionCompileError, match="not today"):
        result.sum().backward()


def test_what_changed_before_the_backward_graph_is_compiled_anew(batches):
    """A key holds the configuration that a region was compiled under."""
    compiled = ri.compile(Gated(), region_backend="eager", backward="early")
    result = compiled(x())
    with inductor_config.patch(max_fusion_size=7):
        result.sum().backward()
    assert batches == [["backward", "forward"], ["backward"]]


def test_keys_are_those_under_the_switches_of_a_backward_pass():
    def graph():
        with preserve_node_meta(), annotate({"compile_with_inductor": "tail"}):
            return make_fx(lambda a: a.sin().cos(), tracing_mode="fake")(torch.ones(4))

    settings = Settings(region_backend="eager")
    keys = []
    for around in (torch.enable_grad, torch.no_grad):
        early = EarlyBackward(settings)
        early.noting(lambda: (None, graph()))()
        with around(), torch.autocast("cpu", enabled=around is torch.enable_grad):
            keys.append([request.key for request in early.requests()])
    with torch.no_grad():
        stages = (collect, partition, outline)
        outlined = pipeline.run(graph(), (), settings, stages=stages)
        keys.append([request.key for request in requests_of(outlined, settings)])
    assert len(keys[0]) == 1
    assert keys[0] == keys[1] == keys[2]


def test_what_can_t_be_early_is_refused():
    with pytest.raises(OptionError, match="exclude each other"):
        ri.compile(Gated(), backward="early", cudagraphs="graph", capture="model")


def test_an_error_of_ours_in_an_early_region_is_its_graph_s(monkeypatch):
    usual = region_backends.BACKENDS["eager"]

    def compile_region(module, options, call, settings):
        if call.direction == "backward":
            raise OptionError("no such thing")
        return usual(module, options, call, settings)

    monkeypatch.setitem(region_backends.BACKENDS, "eager", compile_region)
    result = ri.compile(Gated(), region_backend="eager", backward="early")(x())
    with pytest.raises(OptionError, match="no such thing"):
        result.sum().backward()


@pytest.mark.parametrize("where", ["forward", "both"])
def test_under_autocast_backward_regions_are_found(batches, where):
    compiled = ri.compile(Gated(), region_backend="eager", backward="early")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compiled(x()).float().sum()
        if where == "both":
            result.backward()
    if where == "forward":
        result.backward()
    assert batches == [["backward", "forward"]]


def test_sizes_may_be_symbolic(batches):
    model = Gated()
    compiled = ri.compile(model, dynamic=True, region_backend="eager", backward="early")
    for rows in (4, 6):
        compiled(torch.randn(rows, 8)).sum().backward()
    assert batches == [["backward", "forward"]]


def test_nothing_is_early_while_something_is_bisected(batches, monkeypatch, tmp_path):
    write_kept(tmp_path, None)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    trained(Gated(), backward="early")
    assert batches == [["forward"], ["backward"]]
