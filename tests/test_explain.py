"""`ri.explain`: a dry run that says what a compile would do, and leaves nothing behind."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta


@pytest.fixture
def explain(ri):
    def run(model_or_fn, *args, **kwargs):
        kwargs.setdefault("region_backend", "eager")
        return ri.explain(model_or_fn, *args, **kwargs)

    return run


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class Blocks(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def blocks(ri, count=3):
    model = Blocks(count)
    ri.mark(model, "layers.*.norm", name="norm")
    return model


def summary(report):
    return [(r.name, r.direction, r.status) for r in report.regions]


# --- what it shows --------------------------------------------------------------------------------


def test_a_module_shows_its_forward_and_backward_regions_and_which_share_a_compile(ri, explain):
    report = explain(blocks(ri), torch.randn(2, 8))
    assert summary(report) == [
        ("norm", "forward", "planned"),
        ("norm", "forward", "shared"),
        ("norm", "forward", "shared"),
        *[("norm", "backward", status) for status in ("planned", "shared", "planned")],
    ]
    assert [graph.direction for graph in report.graphs] == ["forward", "backward"]
    assert report.dry_run
    assert report.compiles == 0


def test_without_gradients_there_is_one_inference_graph(ri, explain):
    with torch.no_grad():
        report = explain(blocks(ri), torch.randn(2, 8))
    assert [(graph.direction, len(graph.regions)) for graph in report.graphs] == [("inference", 3)]


def test_a_plain_function_and_keyword_arguments(ri, explain):
    @ri.region("scale")
    def scale(x, by):
        return x * by + 1

    report = explain(lambda x, by: scale(x, by).cos(), torch.randn(3), by=2)
    assert summary(report) == [("scale", "forward", "planned")]
    assert report.graphs[0].nodes == 3
    assert report.graphs[0].marked == 2
    assert report.graphs[0].eager == 1


def test_an_exported_program(ri, explain):
    model = blocks(ri, 2)
    program = ri.export(model, (torch.randn(2, 8),))
    report = explain(program)
    assert {region.name for region in report.regions} == {"norm"}
    assert report.graphs[0].marked == 2


def captured(ri):
    def f(x):
        with ri.region("tail"):
            y = x.sin().cos()
        return y + 1

    with preserve_node_meta():
        return make_fx(f, tracing_mode="fake")(torch.ones(4))


def test_an_fx_graph_is_read_and_left_as_it_is(ri, explain):
    gm = captured(ri)
    before, code = [n.format_node() for n in gm.graph.nodes], gm.code
    report = explain(gm, torch.ones(4))
    assert summary(report) == [("tail", "forward", "planned")]
    assert [n.format_node() for n in gm.graph.nodes] == before
    assert gm.code == code
    assert dict(gm.named_children()) == {}


def test_an_fx_graph_is_grouped_as_the_drop_in_pass_would_unless_told_otherwise(ri, explain):
    @ri.region("part")
    def part(x):
        return x.sin() + 1

    def f(x):
        return part(x) @ x, part(x.t()) @ x

    with preserve_node_meta():
        gm = make_fx(f, tracing_mode="fake")(torch.ones(4, 4))
    assert len(explain(gm).regions) == 1
    assert len(explain(gm, merge="scope").regions) == 2


def test_each_graph_between_graph_breaks_is_a_section(ri, explain):
    @ri.region("part")
    def part(x):
        return x.sin() + 1

    def f(x):
        x = part(x)
        torch._dynamo.graph_break()
        return part(x) * 2

    report = explain(f, torch.randn(4))
    assert [(graph.capture, len(graph.regions)) for graph in report.graphs] == [(0, 1), (1, 1)]
    assert report.captures == 2
    text = str(report)
    assert "graph 0 inference: 2 nodes, 2 marked, 1 region, 0 run eagerly" in text
    assert "graph 1 inference: 3 nodes, 2 marked, 1 region, 1 run eagerly" in text


def test_data_dependent_control_flow_is_followed(ri, explain):
    def f(x):
        with ri.region("a"):
            y = x.sin() + 1
        if y.sum() > 0:
            with ri.region("b"):
                return y.cos() + 1
        return y

    assert [region.name for region in explain(f, torch.ones(4)).regions] == ["a", "b"]


def test_symbolic_sizes_are_shown_by_their_symbol(ri, explain):
    report = explain(blocks(ri, 1), torch.randn(2, 8), dynamic=True)
    (value,) = [v for v in report.regions[0].inputs if len(v.shape) == 2]
    assert isinstance(value.shape[0], str)
    assert value.shape[1] == 8
    assert report.regions[0].bytes_read is not None


def test_its_keys_are_those_of_the_compile_that_follows(ri, explain):
    model, x = blocks(ri), torch.randn(2, 8)
    expected = [(r.name, r.direction, r.key) for r in explain(model, x).regions]
    ri.compile(model, region_backend="eager")
    model(x).sum().backward()
    assert [(r.name, r.direction, r.key) for r in model.report.regions] == expected


@pytest.mark.inductor
def test_its_keys_are_those_of_a_compile_by_inductor(ri):
    def f(x):
        with ri.region("wave"):
            return x.sin() + 1

    (expected,) = ri.explain(f, torch.ones(3)).regions
    compiled = ri.compile(f)
    compiled(torch.ones(3))
    (region,) = compiled.report.regions
    assert region.key == expected.key


def test_options_are_as_for_compile(ri, explain):
    model = nn.Sequential(nn.Linear(8, 8), nn.SiLU())
    ri.mark(model, "1", name="activation")
    report = explain(model, torch.randn(2, 8), options={"max_autotune": True}, merge="all")
    assert [region.options for region in report.regions] == [{"max_autotune": True}] * 2
    planned = {region.key for region in report.regions}
    report = explain(
        model, torch.randn(2, 8), numerics="eager"
    )  # no region where it can't be exact
    assert planned.isdisjoint(region.key for region in report.regions)
    with pytest.raises(ri.OptionError, match="did you mean"):
        explain(model, torch.randn(2, 8), options={"max_autotun": True})


def test_what_is_no_model_is_refused(ri, explain):
    with pytest.raises(ri.MarkError, match="takes a module, a function or a graph, not int"):
        explain(3)


def test_nothing_is_compiled(ri, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    assert summary(ri.explain(blocks(ri, 1), torch.randn(2, 8))) == [
        ("norm", "forward", "planned"),
        ("norm", "backward", "planned"),
    ]


# --- what it leaves behind: nothing ---------------------------------------------------------------


def test_parameters_gradients_and_buffers_are_as_before(ri, explain):
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.5))
    ri.mark(model, "0", name="norm")
    model(torch.randn(4, 8)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    x = torch.randn(4, 8)
    assert explain(model, x).regions
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for name, parameter in model.named_parameters():
        same, values = gradients[name]
        assert parameter.grad is same
        assert torch.equal(same, values)


def test_arguments_that_are_written_to_are_put_back(ri, explain):
    def f(x, cache):
        with ri.region("update"):
            cache[1:3].copy_(x.sin() + 1)
        torch._dynamo.graph_break()
        cache.add_(1)
        return cache.sum()

    cache = torch.zeros(4)
    explain(f, torch.ones(2), cache)
    assert torch.equal(cache, torch.zeros(4))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_backward_pass_inside_the_function_leaves_no_gradients(ri, explain):
    model = blocks(ri, 1)

    def step(x):
        loss = model(x).sum()
        loss.backward()
        return loss

    report = explain(step, torch.randn(2, 8))
    assert [region.direction for region in report.regions] == ["forward", "backward"]
    assert [p.grad for p in model.parameters()] == [None] * 4


def test_random_number_generators_are_as_before(ri, explain):
    @torch._dynamo.disable
    def draw():
        random.random()

    def f(x):
        draw()
        with ri.region("noise"):
            return x + torch.rand(3) * 2

    x = torch.randn(3)
    states = torch.get_rng_state(), random.getstate()
    explain(f, x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_the_mode_and_hooks_of_the_model_are_as_before(ri, explain):
    model = blocks(ri, 1).eval()
    attributes = set(vars(model)), set(vars(model.layers[0]))
    explain(model, torch.randn(2, 8))
    assert not model.training
    assert (set(vars(model)), set(vars(model.layers[0]))) == attributes


def test_compiled_code_stays_compiled_and_counters_stay(ri, explain):
    compiles = []

    def backend(gm, inputs):
        compiles.append(gm)
        return gm.forward

    def inner(x):
        torch._dynamo.graph_break()
        return x.cos()

    def f(x):
        return inner(x.sin()) + 1

    compiled = torch.compile(f, backend=backend)
    compiled(torch.ones(4))
    before = len(compiles)
    counted = {name: dict(values) for name, values in counters.items()}
    explain(f, torch.ones(4))
    explain(f, torch.ones(5))
    assert {name: dict(values) for name, values in counters.items()} == counted
    compiled(torch.ones(4))
    assert len(compiles) == before
    compiled(torch.ones(5))
    assert len(compiles) > before


def test_a_dry_run_does_not_make_the_next_compile_dynamic(ri, explain):
    shapes = []

    def backend(gm, inputs):
        shapes.append([type(size) for i in inputs if hasattr(i, "shape") for size in i.shape])
        return gm.forward

    def f(x):
        return x.sin()

    explain(f, torch.ones(4))
    torch.compile(f, backend=backend)(torch.ones(6))
    assert shapes == [[int]]


def test_many_dry_runs_use_up_no_recompiles(ri, explain):
    def inner(x):
        torch._dynamo.graph_break()
        return x.cos()

    def f(x):
        return inner(x.sin()) + 1

    for size in range(2, 30):
        explain(f, torch.ones(size), dynamic=False)
    compiles = []

    def backend(gm, inputs):
        compiles.append(gm)
        return gm.forward

    compiled = torch.compile(f, backend=backend, dynamic=False)
    for size in range(2, 8):
        compiled(torch.ones(size))
    assert len(compiles) >= 12  # two graphs for each size: none was refused


def test_a_compile_after_it_still_warns_of_a_graph_break_inside_a_region(ri, explain):
    def f(x):
        with ri.region("broken"):
            y = x.sin()
            torch._dynamo.graph_break()
            return y + 1

    explain(f, torch.ones(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ri.compile(f, region_backend="eager")(torch.ones(4))
    assert ["graph break lies inside" in str(w.message) for w in caught] == [True]


def test_it_works_on_a_model_that_is_compiled_in_place_and_compiles_nothing_of_it(ri, explain):
    model = ri.compile(blocks(ri), region_backend="eager")
    x = torch.randn(2, 8)
    model(x)
    before = len(model.report.graphs)
    report = explain(model, x)
    assert len(report.regions) == 6
    assert len(model.report.graphs) == before
    assert not report.findings
    model(x)
    assert len(model.report.graphs) == before


def test_the_last_report_is_that_of_the_last_compile(ri, explain):
    model = ri.compile(blocks(ri), region_backend="eager")
    model(torch.randn(2, 8))
    explain(blocks(ri), torch.randn(2, 8))
    assert ri.last_report() is model.report


def test_an_error_in_the_model_comes_through_and_everything_is_put_back(ri, explain):
    bn = nn.BatchNorm1d(8)
    ri.mark(bn)

    def f(x):
        bn(x)
        torch._dynamo.graph_break()
        raise KeyError("model's own")

    before = bn.running_mean.clone()
    with pytest.raises(KeyError, match="model's own"):
        explain(f, torch.randn(4, 8))
    assert torch.equal(bn.running_mean, before)
