"""Eager operators of a stitching graph are called without detours, and are the same operators."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from regional_inductor._torch import eager_calls

X, Y = torch.rand(4, 4), torch.rand(4, 4)
ARGUMENTS = {
    "addmm.default": (X, X, X),
    "add.Tensor": (X, X),
    "baddbmm.default": (X[None], X[None], X[None]),
    "bmm.default": (X[None], X[None]),
    "cat.default": ([X, X], 1),
    "clone.default": (X.t(),),
    "div.Tensor": (X, X),
    "embedding.default": (X, torch.tensor([1, 2]), -1, False, False),
    "expand.default": (X[None], [3, 4, 4]),
    "mean.dim": (X, [1], True),
    "mm.default": (X, X),
    "mul.Tensor": (X, 2.5),
    "permute.default": (X, [1, 0]),
    "pow.Tensor_Scalar": (X, 2),
    "select.int": (X, 0, 1),
    "squeeze.dim": (X[None], 0),
    "sub.Tensor": (X, X),
    "sum.dim_IntList": (X, [0]),
    "transpose.int": (X, 0, 1),
    "unsqueeze.default": (X, -1),
    "view.default": (X, [2, 8]),
}
KEYWORDS = {
    "add.Tensor": {"alpha": 3},
    "clone.default": {"memory_format": torch.contiguous_format},
    "mean.dim": {"dtype": torch.float64},
    "sub.Tensor": {"alpha": 3},
    "addmm.default": {"beta": 2, "alpha": 3},
}


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((str(func), args, kwargs or {}))
        return result


@pytest.mark.parametrize("name", sorted(eager_calls.c_functions()))
def test_a_c_function_runs_the_overload_it_stands_for_and_nothing_else(name):
    operator, overload = name.split(".")
    target = getattr(getattr(torch.ops.aten, operator), overload)
    args, kwargs = ARGUMENTS.get(name, (X,)), KEYWORDS.get(name, {})
    seen = []
    for function in (target, eager_calls.c_functions()[name]):
        with torch.no_grad(), Seen() as mode:
            result = function(*args, **kwargs)
        seen.append((mode.calls, result))
    (expected, right), (found, mine) = seen
    assert [call[0] for call in found] == [call[0] for call in expected] == [f"aten.{name}"]
    assert str(found) == str(expected)  # the same arguments, defaults left out alike
    assert torch.equal(mine, right)
    assert mine.stride() == right.stride()
    assert mine.dtype == right.dtype
    assert (mine._base is None) == (right._base is None)


def test_calls_of_operators_are_rewritten_and_other_lines_stay():
    body = [
        "mm = torch.ops.aten.mm.default(x, w)",
        ";  x = w = None\n",
        "u = torch.ops.aten._unsafe_view.default(mm, [1, 4])",
        "h = torch.ops.higher_order.flex_attention(x)",
        "w = torch.ops.c10d_functional.wait_tensor.default(u)",
    ]
    assert eager_calls.with_direct_calls(body) == [
        "mm = _eager_operators.mm_default(x, w)",
        ";  x = w = None\n",
        "u = _eager_operators._unsafe_view_default(mm, [1, 4])",
        *body[3:],
    ]
    assert eager_calls.EAGER.mm_default is torch._C._VariableFunctions.mm
    assert torch.equal(eager_calls.EAGER._unsafe_view_default(X, [2, 8]), X.view(2, 8))


def tailed(ri):
    tail = ri.region("tail")(lambda x: x.sin() + 1)
    return lambda x, w: tail((x @ w).unsqueeze(0).transpose(1, 2)).sum([1]).expand(3, 4)


def stitched(monkeypatch):
    """Whatever stitching graphs are made from here on."""
    from regional_inductor import backend

    made = []
    set_convention = backend.set_calling_convention

    def spy(module, settings):
        set_convention(module, settings)
        made.append(module)

    monkeypatch.setattr(backend, "set_calling_convention", spy)
    return made


def test_a_compiled_function_calls_its_eager_operators_directly_and_its_graph_names_them(
    ri, monkeypatch
):
    made = stitched(monkeypatch)
    function = tailed(ri)
    compiled = ri.compile(function, region_backend="eager")
    torch.testing.assert_close(compiled(X, X), function(X, X))
    (module,) = made
    assert "torch.ops.aten" not in module.code
    assert "_eager_operators.mm_default(" in module.code
    targets = [node.target for node in module.graph.nodes]
    assert torch.ops.aten.mm.default in targets


def test_operators_that_run_are_those_of_the_graph_in_its_order(ri, monkeypatch):
    made = stitched(monkeypatch)
    with torch.no_grad():
        ri.compile(tailed(ri), region_backend="eager")(X, Y)
        (module,) = made
        seen = []
        for call in (module, torch.fx.Interpreter(module).run):
            with Seen() as mode:
                call(X, Y)
            seen.append([name for name, _, _ in mode.calls])
    assert seen[0] == seen[1]
    assert "aten.mm.default" in seen[0]


def test_the_code_of_a_graph_in_the_user_s_hands_reads_as_the_graph_does(ri):
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.traceback import preserve_node_meta

    with preserve_node_meta():
        module = make_fx(tailed(ri), tracing_mode="fake")(X, X)
    module = ri.regional_inductor(module, region_backend="eager")
    assert "torch.ops.aten.mm.default(" in module.code
    torch.testing.assert_close(module(X, X), tailed(ri)(X, X))
