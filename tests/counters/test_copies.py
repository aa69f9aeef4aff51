"""Compiled regions copy no tensors that eager doesn't."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import _models

pytestmark = pytest.mark.inductor

COPIES = ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous", "aten::resize_")
SHAPE = _models.Shape(2, hidden=16, heads=2, mlp=24, sequence=8, batch=1)


def copies(function) -> dict[str, int]:
    """How often each copying operator runs; those inside another of them count too."""
    function()
    # Without acc_events torch 2.11 warns that a second cycle, which there is none of, forgets the first.
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        function()
    return {e.key: e.count for e in profiled.key_averages() if e.key in COPIES}


def of_llama(backend: str, train: bool) -> dict[str, int]:
    torch._dynamo.reset()
    model, x = _models.Llama(SHAPE), _models.inputs(SHAPE, train)
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def step():
        _models.run_once(compiled, x, train)
        model.zero_grad(set_to_none=True)

    return copies(step)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_a_llama_copies_no_more_than_its_graph_run_eagerly(train):
    eager = of_llama("aot_eager", train)
    ours = of_llama("regional_inductor", train)
    assert {name for name in ours if ours[name] > eager.get(name, 0)} == set(), (ours, eager)


def test_a_region_takes_strided_inputs_as_they_are_and_returns_its_own_outputs():
    import regional_inductor as ri

    @ri.region("scale")
    def scale(x):
        return x.sin() * 2

    def function(x):
        return scale(x.neg())

    compiled = torch.compile(function, backend="regional_inductor", fullgraph=True)
    x = torch.randn(6, 8).t()
    with torch.no_grad():
        assert copies(lambda: compiled(x)) == {}
