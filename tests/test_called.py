"""Calls of a model, described kind by kind: what varies between calls of one kind is symbolic."""

from __future__ import annotations

import pytest
import torch
from support.counting import python_calls

from regional_inductor._torch.called import Called


class Model(torch.nn.Module):
    def forward(self, x, n=1, *, pair=None):
        return x


def noted(*calls, dynamic=None):
    called, model = Called(dynamic), Model()
    for args, kwargs in calls:
        called.note(model, args, kwargs)
    return [
        (call.arguments["x"].size, set(call.arguments["x"].dynamic), call.dynamic)
        for call in called.calls
    ]


def ones(*size):
    return (torch.ones(size),), {}


def test_the_second_size_is_symbolic_and_serves_all_later_ones():
    assert noted(ones(4, 8), ones(5, 8), ones(6, 8), ones(4, 8)) == [
        ((4, 8), set(), ()),
        ((5, 8), {0}, ()),
    ]


def test_what_varies_later_joins_what_varied_before():
    assert noted(ones(4, 8), ones(5, 8), ones(5, 9))[-1] == ((5, 9), {0, 1}, ())


def test_static_sizes_are_kept_apart_and_dynamic_ones_are_one():
    calls = ones(4, 1), ones(5, 1)
    assert noted(*calls, dynamic=False) == [((4, 1), set(), ()), ((5, 1), set(), ())]
    assert noted(*calls, dynamic=True) == [((4, 1), {0}, ())]


def test_numbers_that_vary_are_symbolic():
    x = torch.ones(3)
    calls = [((x, n), {}) for n in (2, 3, 4, 5)]
    assert noted(*calls) == [((3,), set(), ()), ((3,), set(), ("L['n']",))]
    assert len(noted(((x, True), {}), ((x, False), {}))) == 2


def test_modes_types_and_shared_tensors_make_other_kinds():
    x, y = torch.ones(3), torch.ones(3)
    called, model = Called(None), Model()
    called.note(model, (x,), {"pair": (x, y)})
    called.note(model, (x,), {"pair": (x, x)})
    called.note(model, (x.double(),), {"pair": (x, y)})
    with torch.no_grad():
        called.note(model, (x,), {"pair": (x, y)})
    called.note(model.eval(), (x,), {"pair": (x, y)})
    assert len(called.calls) == 5
    assert all(not call.dynamic for call in called.calls)


def test_a_call_of_a_kind_that_is_known_is_described_no_more(monkeypatch):
    from regional_inductor._torch import called as module

    called, model, x = Called(None), Model(), torch.ones(3)
    called.note(model, (x,), {})
    monkeypatch.setattr(module, "described_call", None)
    called.note(model, (torch.zeros(3),), {})
    assert len(called.calls) == 1


def test_a_call_like_an_earlier_one_costs_two_calls_of_python():
    called, model, x = Called(None), Model(), torch.ones(3, requires_grad=True)
    arguments = model, (x, 2), {"pair": x.detach()}
    called.note(*arguments)
    with torch.no_grad():
        called.note(*arguments)
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            found = python_calls(called.note, *arguments)
        functions = {name for name in found if not name.startswith("c:")}
        assert functions == {"note", "_glance_at", "_glance"}
        assert found["_glance"] == 2
        assert sum(found.values()) <= 30
    called.note(model, (x, (x, [x])), {})
    found = python_calls(called.note, model, (x, (x, [x])), {})
    assert found["_glance"] == 4
    assert found["tree_flatten"] == 0


x, y = torch.ones(3, 3), torch.ones(3, 3)
LIKE_NO_OTHER = [
    ((x,), {}),
    ((x, 2), {}),
    ((x, 2.0), {}),
    ((x, True), {}),
    ((x, 1), {}),
    ((x,), {"n": 1}),
    ((x,), {"pair": 1}),
    ((), {"x": x, "n": 1}),
    ((x,), {"pair": x}),
    ((x,), {"pair": y}),
    ((x,), {"pair": (x, y)}),
    ((x,), {"pair": (y, y)}),
    ((x,), {"pair": [x, y]}),
    ((x,), {"pair": [(x, y)]}),
    ((x,), {"pair": [(x,), y]}),
    ((x,), {"pair": [(), x, y]}),
    ((x.t(),), {}),
    ((x.double(),), {}),
    ((x.to("meta"),), {}),
    ((torch.nn.Parameter(x),), {}),
    ((x.clone().requires_grad_(),), {}),
    ((x[:2],), {}),
    ((x.to_mkldnn(),), {}),
    (({"a": x},), {}),
    (({"b": x},), {}),
]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_call_is_taken_for_another_at_a_glance(mode):
    """Each of them is told apart as it is where every call is looked at in full."""
    called, full, model = Called(None), Called(None), Model()
    full._remember = lambda glance: None
    for training in (True, False):
        model.train(training)
        for _ in range(2):
            for args, kwargs in LIKE_NO_OTHER:
                with mode():
                    called.note(model, args, kwargs)
                    full.note(model, args, kwargs)
    assert len(called._seen) == len(full._seen) == 2 * len(LIKE_NO_OTHER)
    assert len(called.calls) == len(full.calls)


def test_a_call_under_autocast_is_none_without():
    called, model = Called(None), Model()
    for _ in range(2):
        called.note(model, (x,), {})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            called.note(model, (x,), {})
    assert len(called.calls) == 2


def test_no_tensor_is_held():
    import gc
    import weakref

    called, model = Called(None), Model()
    x = torch.ones(3)
    gone = weakref.ref(x)
    called.note(model, (x,), {})
    del x
    gc.collect()
    assert gone() is None
