"""compile: one compile for each distinct region, and what happens to a region that fails."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.graphs import marked

import regional_inductor as ri


def two_places(x):
    with marked():
        a = (x.sin() + 1).exp()
    a = a @ a
    with marked():
        b = (a.sin() + 1).exp()
    return b @ b


@pytest.fixture
def fails(monkeypatch):
    """Makes every Inductor compile fail."""

    def standalone_compile(*args, **kwargs):
        raise ValueError("no such luck")

    import torch._inductor

    monkeypatch.setattr(torch._inductor, "standalone_compile", standalone_compile)


def compiled(fn, **options):
    return torch.compile(fn, backend="regional_inductor", fullgraph=True, options=options)


def test_equal_regions_are_compiled_once():
    from regional_inductor.stages.compile import forget_compiled_regions

    forget_compiled_regions()
    compiled(two_places, region_backend="eager")(torch.randn(4, 4))
    report = ri.last_report()
    assert [region.status for region in report.regions] == ["compiled", "shared"]
    assert [region.shared_by for region in report.regions] == [2, 2]
    assert (report.compiles, report.distinct) == (1, 1)


def test_a_later_compile_takes_regions_from_memory():
    compiled(two_places, region_backend="eager")(torch.randn(4, 4))
    torch._dynamo.reset()
    compiled(two_places, region_backend="eager")(torch.randn(4, 4))
    assert [r.status for r in ri.last_report().regions] == ["memory", "shared"]


def test_a_failing_region_stays_eager_with_one_warning(fails):
    x = torch.randn(4, 4)
    with pytest.warns(ri.RegionWarning, match="no such luck") as caught:
        out = compiled(two_places)(x)
    torch.testing.assert_close(out, two_places(x), rtol=0, atol=0)
    assert len(caught) == 1
    regions = ri.last_report().regions
    assert [region.status for region in regions] == ["eager", "eager"]
    assert all("no such luck" in region.reason for region in regions)


def test_a_failing_region_raises_if_asked_to(fails):
    with pytest.raises(Exception, match="no such luck") as caught:
        compiled(two_places, on_error="raise")(torch.randn(4, 4))
    cause = caught.value
    while cause is not None and not isinstance(cause, ri.RegionCompileError):
        cause = cause.__cause__ or getattr(cause, "inner_exception", None)
    assert isinstance(cause, ri.RegionCompileError)
    assert isinstance(cause.__cause__, ValueError)
    assert "test_compile.py:" in str(cause)
    assert "way out:" in str(cause)


def test_a_region_over_its_time_limit_stays_eager(monkeypatch):
    def slow(*args, **kwargs):
        while True:
            torch.ones(1)

    import torch._inductor

    monkeypatch.setattr(torch._inductor, "standalone_compile", slow)

    def fn(x):
        with ri.region("slow", compile_timeout=0.05):
            return x.sin()

    with pytest.warns(ri.RegionWarning, match="longer than 0.05 s"):
        out = compiled(fn)(torch.ones(3))
    torch.testing.assert_close(out, torch.ones(3).sin(), rtol=0, atol=0)


def test_a_patched_compiler_is_called_and_not_shared_with_the_real_one(monkeypatch):
    import torch._inductor

    real = torch._inductor.standalone_compile
    calls = []

    def patched(gm, inputs, **kwargs):
        calls.append(gm)
        return gm

    monkeypatch.setattr(torch._inductor, "standalone_compile", patched)

    def fn(x):
        with ri.region("patched"):
            return x.sin() * 2

    with warnings.catch_warnings():
        compiled(fn)(torch.ones(3))
    assert len(calls) == 1
    assert ri.last_report().regions[0].status == "compiled"
    assert real is not patched


@pytest.fixture
def numbers_of_missing(monkeypatch):
    """How many regions each batch compiled."""
    from regional_inductor.stages import compile as stage

    stage.forget_compiled_regions()
    found = []
    working = stage._compile_batch

    def batch(requests, settings):
        found.append(len(requests))
        return working(requests, settings)

    monkeypatch.setattr(stage, "_compile_batch", batch)
    yield found
    stage.forget_compiled_regions()


def test_the_distinct_regions_of_a_graph_that_nobody_compiled_yet_are_one_batch(
    numbers_of_missing,
):
    def known(x):
        with marked():
            return (x.sin() + 1).exp()

    def fn(x):
        for scale in (2, 3):
            with marked():
                x = (x.sin() + 1).exp()
            x = x @ x
            with marked():
                x = (x.cos() * scale).tanh()
            x = x @ x
        return x

    compiled(known, region_backend="eager")(torch.randn(4, 4))
    compiled(fn, region_backend="eager")(torch.randn(4, 4))
    statuses = [region.status for region in ri.last_report().regions]
    assert statuses == ["memory", "compiled", "shared", "compiled"]
    assert numbers_of_missing == [1, 2]


def test_the_failure_of_one_region_of_a_batch_is_its_own(monkeypatch):
    from regional_inductor.stages import compile as stage

    def refuses_cosines(module, options, call, settings):
        if any("cos" in op for op in call.ops):
            raise ValueError("no cosines")
        return module

    stage.forget_compiled_regions()
    monkeypatch.setitem(stage._BACKENDS, "eager", refuses_cosines)

    def fn(x):
        with marked():
            a = x.cos()
        a = a @ a
        with marked():
            a = a.sin()
        a = a @ a
        with marked():
            return a.cos()

    x = torch.randn(4, 4)
    with pytest.warns(ri.RegionWarning, match="no cosines") as caught:
        out = compiled(fn, region_backend="eager")(x)
    torch.testing.assert_close(out, fn(x), rtol=0, atol=0)
    assert [region.status for region in ri.last_report().regions] == ["eager", "compiled", "eager"]
    assert len(caught) == 1
    stage.forget_compiled_regions()


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        y = x.neg()
        with ri.region("scaled"):
            return y.cos() * self.scale


@pytest.mark.inductor
def test_a_float_of_a_module_is_captured_anew_as_the_constant_it_is():
    model = Scaled()
    compiled = ri.compile(model, dynamic=True, on_error="raise")
    x = torch.randn(5)
    for scale in (1.0, 2.5, -0.5):
        model.scale = scale
        torch.testing.assert_close(compiled(x), x.neg().cos() * scale)
    assert [region.status for region in ri.last_report().regions][-1] != "eager"
