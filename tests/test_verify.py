"""`ri.verify`: each region next to eager and float64 on its real inputs; nothing of the user's changes."""

from __future__ import annotations

import gc
import json
import random
import re

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from regional_inductor import cli


@pytest.fixture
def verify(ri):
    def run(model_or_fn, *args, **kwargs):
        kwargs.setdefault("region_backend", "eager")
        kwargs.setdefault("show", False)
        return ri.verify(model_or_fn, *args, **kwargs)

    return run


@pytest.fixture
def miscompiled(monkeypatch):
    """Gives the "compiler" of regions a fault: `miscompiled(lambda outputs: ...)` changes results."""

    def plant(change, only=""):
        from regional_inductor.stages import compile as stage

        def build(module, options, call, settings):
            def run(*args):
                outputs = module(*args)
                return change(outputs) if only in call.name else outputs

            return run

        stage.forget_compiled_regions()
        monkeypatch.setitem(stage._BACKENDS, "eager", build)

    yield plant
    from regional_inductor.stages.compile import forget_compiled_regions

    forget_compiled_regions()


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class Blocks(nn.Module):
    def __init__(self, count, width):
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def blocks(ri, count=2, width=8):
    model = Blocks(count, width)
    ri.mark(model, "layers.*.norm", name="norm")
    return model


# --- what it finds --------------------------------------------------------------------------------


def test_each_region_is_compared_forward_and_backward_with_eager_and_float64(ri, verify):
    result = verify(blocks(ri), torch.randn(4, 8))
    assert [(r.name, r.direction, r.calls, r.bitwise) for r in result.regions] == [
        ("norm", "forward", 1, True),
        ("norm", "forward", 1, True),
        ("norm", "backward", 1, True),
        ("norm", "backward", 1, True),
    ]
    assert all(region.reference == "float64" for region in result.regions)
    assert all(region.further is False for region in result.regions)
    assert result.ok
    assert result.bitwise


def test_outputs_and_gradients_of_the_whole_model_are_compared(ri, verify):
    model = blocks(ri, count=1)
    result = verify(model, torch.randn(4, 8, requires_grad=True))
    assert [c.what for c in result.outputs] == ["output 0"]
    names = [name for name, _ in model.named_parameters()]
    assert sorted(c.what for c in result.gradients) == sorted([*names, "argument 0"])


def test_a_wrong_number_is_found_in_the_region_that_gives_it(ri, verify, miscompiled):
    miscompiled(lambda outputs: (outputs[0] * 1.001, *outputs[1:]), only="bad")
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    ri.mark(model, "0", name="good")
    ri.mark(model, "2", name="bad")
    result = verify(model, torch.randn(4, 8))
    assert {r.name for r in result.regions if not r.ok} == {"bad"}
    assert not result.ok
    (bad,) = [r for r in result.regions if not r.ok and r.direction == "forward"]
    assert bad.worst.max_rel == pytest.approx(1e-3, rel=0.01)
    assert bad.further
    text = str(result)
    assert text.startswith("NOT EQUAL: 4 regions verified")
    assert re.search(r"bad \(forward\): output 0: \d\d of 32 beyond the tolerance", text)


def test_a_nan_is_found_though_its_neighbours_are_equal(ri, verify, miscompiled):
    def with_nan(outputs):
        first = outputs[0].clone()
        first.view(-1)[3] = float("nan")
        return (first, *outputs[1:])

    miscompiled(with_nan)
    with torch.no_grad():
        result = verify(blocks(ri, count=1), torch.randn(4, 8))
    assert result.regions[0].worst.nonfinite == 1
    assert "output 0: 1 NaN or infinite in one only" in str(result)
    assert not result.ok


def test_equal_nans_and_infinities_are_equal(ri, verify):
    @ri.region("log")
    def fn(x):
        return x.log()

    result = verify(fn, torch.tensor([-1.0, 0.0, 1.0, float("inf")]))
    assert result.bitwise


def test_a_region_that_raises_is_found_and_the_run_goes_on(ri, verify, miscompiled):
    def fail(outputs):
        raise ValueError("no luck at run time")

    miscompiled(fail)
    with torch.no_grad():
        result = verify(blocks(ri), torch.randn(4, 8))
    assert [r.error for r in result.regions] == ["ValueError: no luck at run time"] * 2
    assert not result.ok
    assert all(c.bitwise for c in result.outputs)


def test_what_exceeds_the_tolerance_only_as_eager_itself_does_is_no_fault(ri, verify, miscompiled):
    """bfloat16: eager rounds after each operator, a fused kernel only once."""
    x = torch.randn(64, 64).bfloat16()

    @ri.region("chain")
    def fn(x):
        return (x * 3.1 + 1.7) * x - 1.3 * x

    def fused(outputs):
        y = x.double()
        return (((y * 3.1 + 1.7) * y - 1.3 * y).bfloat16(),)

    miscompiled(fused)
    result = verify(fn, x)
    (region,) = result.regions
    assert region.ok
    assert region.further is False
    assert region.worst.max_abs > 0
    strict = verify(fn, x, float64=False)
    assert not strict.regions[0].ok
    assert strict.regions[0].reference == "not asked for"


def test_tolerances_can_be_given_for_all_or_by_dtype(ri, verify, miscompiled):
    miscompiled(lambda outputs: (outputs[0] * 1.001, *outputs[1:]))
    with torch.no_grad():
        x = torch.randn(4, 8)
        model = blocks(ri, count=1)
        assert not verify(model, x, tolerances=(1e-4, 0.0)).ok
        assert verify(model, x, tolerances=(2e-3, 1e-3)).ok
        assert not verify(model, x, tolerances={torch.bfloat16: (2e-3, 1e-3)}).ok


@pytest.mark.parametrize("wrong", [0.1, (1, 2, 3), {"float32": (0, 0)}])
def test_tolerances_that_are_none_raise(ri, verify, wrong):
    with pytest.raises(ri.OptionError, match=r"is no tolerance\n  way out: give \(relative"):
        verify(blocks(ri), torch.randn(4, 8), tolerances=wrong)


def test_a_region_left_eager_says_why(ri, verify, monkeypatch):
    from regional_inductor import region_requests

    model = blocks(ri, count=1)
    monkeypatch.setattr(region_requests, "why_eager", lambda call, settings: "told not to")
    result = verify(model, torch.randn(4, 8))
    assert [(r.status, r.calls) for r in result.regions] == [("eager", 0), ("eager", 0)]
    assert result.ok
    text = str(result)
    assert text.startswith("OK: 0 regions verified, 0 bitwise equal, 2 left eager")
    assert "norm (backward) is left eager: told not to" in text


def test_a_region_that_writes_to_its_input_gets_it_unwritten_each_time(ri, verify):
    @ri.region("count")
    def fn(x, counter):
        counter.add_(1)
        return x * counter

    counter = torch.zeros(())
    result = verify(fn, torch.randn(4), counter)
    assert result.ok
    assert counter.item() == 0
    assert [c.what for c in result.written] == ["argument 1"]


def test_random_draws_start_from_one_generator_state(ri, verify):
    @ri.region("noise")
    def fn(x):
        return x + torch.rand_like(x)

    result = verify(fn, torch.randn(8))
    assert result.bitwise
    assert "fallback_random=True" in result.regions[0].note


def test_casts_in_the_graph_stay_float64_in_the_reference(ri, verify):
    @ri.region("mixed")
    def fn(x):
        return (x.to(torch.bfloat16) * 3 + torch.full((8,), 0.1, dtype=torch.bfloat16)).float()

    (region,) = verify(fn, torch.randn(8)).regions
    assert region.reference == "float64"
    assert 1e-4 < region.worst.eager_error < 0.1


def test_without_a_float64_form_the_reason_is_told(ri, verify):
    @ri.region("bits")
    def fn(x):
        return (x * 2).view(torch.int32) >> 3

    result = verify(fn, torch.randn(8))
    assert result.ok
    assert "bits (forward) has no float64 reference: it reads the bits of a number" in str(result)


def test_a_function_without_marks_verifies_its_results(ri, verify):
    result = verify(lambda x: x.sin(), torch.randn(3))
    assert (result.ok, result.regions) == (True, ())


# --- what it leaves alone -------------------------------------------------------------------------


def test_nothing_of_the_models_is_changed(ri, verify):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    ri.mark(model, "1", name="norm")
    model[0].weight.grad = torch.ones(4, 4)
    model.calls = 0

    def count(module, args):
        module.calls += 1

    model.register_forward_pre_hook(count)
    x = torch.randn(8, 4, requires_grad=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    states = torch.get_rng_state(), random.getstate()
    result = verify(model, x)
    assert result.ok
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameters[name] is value for name, value in model.named_parameters())
    assert torch.equal(model[0].weight.grad, torch.ones(4, 4))
    assert model[0].bias.grad is None
    assert x.grad is None
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_what_was_compiled_before_stays_compiled_and_keeps_its_report(ri, verify):
    model = ri.compile(blocks(ri), region_backend="eager")
    x = torch.randn(4, 8)
    model(x)
    frames, report = dict(counters["frames"]), ri.last_report()
    captured = report.captures
    result = verify(model, x)
    assert len(result.regions) == 4
    assert ri.last_report() is report
    assert report.captures == captured
    assert dict(counters["frames"]) == frames
    with torch.compiler.set_stance("fail_on_recompile"):
        model(x)


def test_something_compiled_is_verified_as_it_was_compiled(ri, verify):
    def fn(x):
        with ri.region("a"):
            y = x.sin()
        with ri.region("b"):
            z = x.roll(1).cos()
        return y.cumsum(0) + z

    x = torch.randn(4)
    ours = ri.compile(fn, merge="all", region_backend="eager")
    theirs = torch.compile(
        fn, backend="regional_inductor", options={"merge": "all", "region_backend": "eager"}
    )
    for compiled in (ours, theirs):
        assert len(verify(compiled, x, region_backend=None).regions) == 1
        assert len(verify(compiled, x, merge="scope").regions) == 2


def test_arguments_with_a_state_of_their_own_are_as_they_were(ri, verify):
    class Cache:
        def __init__(self):
            self.seen = []

    @ri.region("step")
    def fn(x, cache):
        cache.seen.append(x)
        return x * len(cache.seen)

    cache = Cache()
    assert verify(fn, torch.randn(3), cache).ok
    assert cache.seen == []


# Of the graph that Dynamo captures after a break at `backward()`.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_function_that_runs_its_own_backward(ri, verify):
    model = blocks(ri, count=1)

    def step(x):
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    result = verify(step, torch.randn(4, 8))
    assert result.ok
    assert len(result.gradients) == 4
    assert all(p.grad is None for p in model.parameters())


def test_memory_does_not_grow_with_the_number_of_regions(ri, verify, miscompiled):
    """Counted in bytes of live tensors that weren't there before, looked at while a region runs."""
    peaks = []

    def live_storages():
        seen = {}
        for value in gc.get_objects():
            if type(value) in (torch.Tensor, nn.Parameter) and value.numel() > 1000:
                storage = value.untyped_storage()
                seen[storage._cdata] = storage  # kept: a freed one's address may come again
        return seen

    def look(outputs):
        new = [storage for key, storage in live_storages().items() if key not in before]
        peaks[-1] = max(peaks[-1], sum(storage.nbytes() for storage in new))
        return outputs

    miscompiled(look)

    @ri.region("wave")
    def wave(x):
        return x.sin() + 1

    def chain(count):
        def fn(x):
            for _ in range(count):
                x = wave(x).roll(1)
            return x

        return fn

    for count in (2, 12):
        gc.collect()
        before = live_storages()
        peaks.append(0)
        assert verify(chain(count), torch.randn(4096)).ok
    assert peaks[1] <= peaks[0]
    assert peaks[0] <= 12 * 4 * 4096


# --- how it tells ---------------------------------------------------------------------------------


def test_the_text_fits_and_names_what_matters(ri, verify):
    text = str(verify(blocks(ri, count=4), torch.randn(4, 8)))
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[0] == "OK: 8 regions verified, 8 bitwise equal"
    (forward,) = [line for line in lines if "norm" in line and "forward" in line]
    assert forward.split()[:4] == ["norm", "forward", "layers.*.norm", "4"]
    assert "and " in text  # twelve rows of tensors, then how many more


def test_json_holds_the_verdicts(ri, verify):
    document = json.loads(verify(blocks(ri, count=1), torch.randn(4, 8)).to_json())
    assert document["ok"] is True
    assert document["regions"][0]["ok"] is True
    assert document["regions"][0]["outputs"][0]["max_abs"] == 0.0


def test_it_prints_unless_told_not_to(ri, verify, capsys):
    verify(blocks(ri, count=1), torch.randn(4, 8), show=True)
    assert capsys.readouterr().out.startswith("OK: 2 regions verified")


def test_what_is_no_model_raises(ri):
    with pytest.raises(ri.MarkError, match="takes a module or a function, not int"):
        ri.verify(3)


SCRIPT = """
import torch
def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), (torch.ones(2, 4),)
"""


@pytest.mark.parametrize(("fault", "code"), [(False, 0), (True, 1)])
def test_the_command_line_says_it_by_its_exit_code(
    ri, tmp_path, capsys, monkeypatch, miscompiled, fault, code
):
    from regional_inductor.stages import compile as stage

    miscompiled(
        lambda outputs: tuple(o + 1 if fault and o.dtype.is_floating_point else o for o in outputs)
    )
    monkeypatch.setitem(stage._BACKENDS, "inductor", stage._BACKENDS["eager"])
    (tmp_path / "script.py").write_text(SCRIPT)
    target = f"{tmp_path}/script.py:build"
    assert cli.main(["verify", target, "--mark", "1", "--json", f"{tmp_path}/out.json"]) == code
    assert capsys.readouterr().out.startswith("NOT EQUAL" if fault else "OK")
    assert json.loads((tmp_path / "out.json").read_text())["ok"] is not fault


def test_the_command_line_complains_about_patterns_without_a_match(tmp_path, capsys):
    (tmp_path / "script.py").write_text(SCRIPT)
    assert cli.main(["verify", f"{tmp_path}/script.py:build", "--mark", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.inductor
def test_a_model_compiled_by_inductor(ri):
    """LayerNorm is reduced in another order than eager's: near, not bitwise, and the table says so."""
    model = blocks(ri, count=2, width=64)
    result = ri.verify(model, torch.randn(8, 64), show=False)
    assert result.ok
    assert {region.status for region in result.regions} <= {"compiled", "shared", "memory", "disk"}
    assert all(region.calls == 1 for region in result.regions)


@pytest.mark.inductor
def test_a_fault_of_inductors_own_is_found(ri):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    ri.mark(model, "1", name="relu", options={"cpp.inject_relu_bug_TESTING_ONLY": "accuracy"})
    with torch.no_grad():
        result = ri.verify(model, torch.randn(4, 8), show=False)
    assert [(region.name, region.ok) for region in result.regions] == [("relu", False)]
