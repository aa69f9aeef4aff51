"""What a region asks of its arguments where no guards hold: one by one at first, then all in one step."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from regional_inductor.checked_calls import guarded_function
from regional_inductor.errors import RegionError
from regional_inductor.regions import Mark, RegionCall

CALL = RegionCall(
    "norm", "norm", Mark(0, None, None, {}), "forward", 1, ("aten.mul",), "m.py:1", ""
)


class Region:
    """`x * y` as a region, with what ran: "compiled" detaches, as a kernel would."""

    def __init__(self, *expected):
        self.ran = []
        self.eager = torch.fx.symbolic_trace(lambda x, y: (torch.mul(x, y),))
        self.eager.register_forward_pre_hook(lambda *_: self.ran.append("eager"))
        self.call = guarded_function(self.compiled, self.eager, expected, CALL)

    def compiled(self, x, y):
        self.ran.append("compiled")
        return (torch.mul(x.detach(), y.detach()),)

    def __call__(self, x, y):
        self.ran.clear()
        (result,) = self.call(x, y)
        assert len(self.ran) == 1
        return result


def pair(*size, **kind):
    return torch.rand(size, **kind), torch.rand(size, **kind)


@pytest.fixture
def looks(monkeypatch):
    """How often arguments were looked at one by one."""
    from regional_inductor import checked_calls

    found = []
    look = checked_calls._fit
    monkeypatch.setattr(checked_calls, "_fit", lambda *a: found.append(1) or look(*a))
    return found


def test_arguments_of_the_same_kinds_are_looked_at_once(looks):
    region = Region(*pair(2, 3))
    for _ in range(3):
        x, y = pair(2, 3)
        assert torch.equal(region(x, y), x * y)
    assert len(looks) == 1


def test_a_size_that_may_vary_is_not_looked_at_again(looks):
    traced = make_fx(torch.mul, tracing_mode="symbolic")(*pair(4, 3))
    expected = [n.meta["val"] for n in traced.graph.nodes if n.op == "placeholder"]
    region = Region(*expected)
    for rows in (4, 5, 6):
        x, y = pair(rows, 3)
        assert torch.equal(region(x, y), x * y)
    assert len(looks) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (2, 4)},
        {"size": (6,)},
        {"size": (2, 3), "dtype": torch.float64},
        {"size": (2, 3), "device": "meta"},
    ],
    ids=["size", "dimensions", "dtype", "device"],
)
@pytest.mark.parametrize("learnt", [False, True], ids=["first call", "later call"])
def test_a_wrong_kind_raises(wrong, learnt):
    region = Region(*pair(2, 3))
    if learnt:
        region(*pair(2, 3))
    right = torch.rand(2, 3)
    with pytest.raises(RegionError, match="argument 1 is a"):
        region(right, torch.empty(**wrong))
    assert region(*pair(2, 3)) is not None


@pytest.mark.parametrize("learnt", [False, True], ids=["first call", "later call"])
class TestWhatOnlyEagerCodeCanDo:
    def region(self, learnt):
        region = Region(*pair(2, 3))
        if learnt:
            region(*pair(2, 3))
            region(*pair(2, 3))
            assert region.ran == ["compiled"]
        return region

    def test_gradients(self, learnt):
        region = self.region(learnt)
        x, y = pair(2, 3, requires_grad=True)
        (grad,) = torch.autograd.grad(region(x, y).sum(), x)
        assert torch.equal(grad, y)
        with torch.no_grad():
            region(x, y)
        assert region.ran == ["compiled"]
        assert region(x, y).requires_grad

    def test_vmap(self, learnt):
        region = self.region(learnt)
        x, y = torch.rand(5, 2, 3), torch.rand(5, 2, 3)
        assert torch.equal(torch.vmap(region)(x, y), x * y)
        assert region.ran == ["eager"]

    def test_jvp_and_grad_of_functions(self, learnt):
        region = self.region(learnt)
        x, y = pair(2, 3)
        with torch.no_grad():
            _, tangent = torch.func.jvp(region, (x, y), (torch.ones(2, 3), torch.zeros(2, 3)))
        assert torch.equal(tangent, y)
        assert torch.equal(torch.func.grad(lambda x: region(x, y).sum())(x), y)

    def test_forward_mode_gradients(self, learnt):
        region = self.region(learnt)
        x, y = pair(2, 3)
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones(2, 3))
            assert torch.equal(forward_ad.unpack_dual(region(dual, y)).tangent, y)

    def test_fake_tensors(self, learnt):
        region = self.region(learnt)
        mode = FakeTensorMode()
        x, y = map(mode.from_tensor, pair(2, 3))
        assert region(x, y).shape == (2, 3)
        assert region.ran == ["eager"]


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["inference mode", "no_grad", "autocast"],
)
def test_other_modes_are_learnt_like_other_kinds(mode, looks):
    region = Region(*pair(2, 3))
    region(*pair(2, 3))
    with mode():
        for _ in range(3):
            x, y = pair(2, 3)
            assert torch.equal(region(x, y), x * y)
            assert region.ran == ["compiled"]
    region(*pair(2, 3))
    assert len(looks) <= 3


def test_parameters_are_learnt_like_tensors(looks):
    region = Region(*pair(2, 3))
    x, y = pair(2, 3)
    parameter = torch.nn.Parameter(y, requires_grad=False)
    for _ in range(3):
        assert torch.equal(region(x, parameter), x * y)
    assert len(looks) == 1


def test_one_tensor_twice_is_right():
    region = Region(*pair(2, 3))
    x, y = pair(2, 3)
    for _ in range(2):
        assert torch.equal(region(x, x), x * x)
    assert torch.equal(region(x, y), x * y)


def test_a_torch_that_tells_kinds_otherwise_is_asked_one_by_one(monkeypatch, looks):
    from regional_inductor._torch import tensor_kinds

    monkeypatch.setattr(tensor_kinds, "_tells_kinds_apart", lambda: False)
    region = Region(*pair(2, 3))
    for _ in range(2):
        x, y = pair(2, 3)
        assert torch.equal(region(x, y), x * y)
    assert len(looks) == 2
    with pytest.raises(RegionError, match="float64"):
        region(*pair(2, 3, dtype=torch.float64))


def test_this_torch_tells_kinds_apart():
    from regional_inductor._torch import tensor_kinds

    assert tensor_kinds._tells_kinds_apart()
    assert not torch.is_autocast_enabled("cpu")
