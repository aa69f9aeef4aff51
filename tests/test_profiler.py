"""torch.profiler shows compiled regions under their names, and they cost nothing without one."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

X = torch.rand(4, 4)


def ranges(function, *args):
    """How often each name that a user gave, rather than torch, was entered."""
    # Without acc_events torch 2.11 warns that a second cycle, which there is none of, forgets the first.
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        function(*args)
    return {e.key: e.count for e in profiled.key_averages() if e.is_user_annotation}


def marked(ri):
    @ri.region("wave")
    def wave(x):
        return x.sin() * 2 + 1

    return lambda x: wave(wave(x) @ x)


def compiled_by(ri, way):
    """A function with two regions named wave, or one for a graph, by one of the entry points."""
    if way == "compile":
        return ri.compile(marked(ri))
    if way == "backend":
        return torch.compile(marked(ri), backend="regional_inductor")
    gm = make_fx(lambda x: (x.sin() * 2 + 1) @ x)(X)
    ri.mark_nodes(gm, [torch.ops.aten.sin, torch.ops.aten.mul, torch.ops.aten.add], name="wave")
    return ri.regional_inductor(gm, X)


def waves(found):
    return sum(count for name, count in found.items() if name.startswith("wave"))


@pytest.mark.inductor
@pytest.mark.parametrize(("way", "regions"), [("compile", 2), ("backend", 2), ("drop-in", 1)])
def test_a_region_is_a_range_under_its_name_from_the_first_call_on(ri, way, regions, monkeypatch):
    compiled = compiled_by(ri, way)
    assert [waves(ranges(compiled, X)) for _ in range(3)] == [regions] * 3

    made = []
    monkeypatch.setattr(torch.profiler, "record_function", made.append)
    compiled(X)  # and without a profiler none is made
    assert made == []


@pytest.mark.inductor
def test_backward_regions_are_ranges_too(ri):
    compiled = ri.compile(marked(ri))

    def step():
        compiled(X.clone().requires_grad_()).sum().backward()

    step()
    assert waves(ranges(step)) == 4
