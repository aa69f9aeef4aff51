"""Trials of single operators under numerics="eager", where nobody has compared the list with eager.

They run on any processor; that of a list that was proven is asked as if it weren't.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import regional_inductor as ri
from regional_inductor import op_trials
from regional_inductor._torch import (
    cuda_candidates,
    exact_cuda,
    exact_formulas,
    exact_ops,
    exact_trials,
)
from regional_inductor._torch.trial_inputs import dense_inputs
from regional_inductor.exactness import unequal_bits


def bits_equal(a, b):
    return not unequal_bits(a, b).any()


@pytest.fixture
def unproven(monkeypatch):
    """A machine for which nobody compared the list with eager."""
    monkeypatch.setattr(exact_ops, "PROVEN", ())
    exact_trials.forget()
    yield
    exact_trials.forget()


@pytest.mark.inductor
def test_where_nothing_is_proven_an_operator_that_differs_stays_eager_and_its_neighbours_do_not(
    unproven, monkeypatch
):
    wrong = exact_formulas.Formula("a.exp() + V(1e-7f)")
    monkeypatch.setitem(exact_formulas.MKL_UNARY, "exp", wrong)

    @ri.region("some", numerics="eager")
    def f(x):
        return (x.sin() + 1) * x.exp()

    x = torch.randn(50)
    compiled = ri.compile(f, on_error="raise")
    assert bits_equal(compiled(x), f(x))
    ops = [op for region in compiled.report.regions for op in region.ops]
    assert sorted(ops) == ["aten.add.Tensor", "aten.mul.Tensor", "aten.sin.default"]
    (finding,) = [f for f in compiled.report.findings if f.kind == "fallback"]
    assert finding.message.startswith(
        "`aten.exp.default` isn't equal to eager bit for bit on this machine: "
    )


@pytest.mark.inductor
def test_inductors_own_lowering_and_others_are_candidates_where_there_are_no_formulas(
    unproven, monkeypatch
):
    monkeypatch.setattr(exact_cuda, "DEVICES", frozenset({"cpu"}))
    wrong_and_right = [lambda x: x.abs(), lambda x: torch.where(x < 0, 0 * x, x)]
    monkeypatch.setitem(cuda_candidates.CANDIDATES, "aten.abs.default", wrong_and_right[1:])
    monkeypatch.setitem(cuda_candidates.CANDIDATES, "aten.neg.default", wrong_and_right[:1])

    @ri.region("some", numerics="eager")
    def f(x):
        return x.neg() + x.abs(), x.cumsum(0)

    x = torch.randn(50)
    compiled = ri.compile(f, on_error="raise")
    assert all(map(bits_equal, compiled(x), f(x)))
    (region,) = compiled.report.regions
    assert region.ops == ("aten.neg.default", "aten.abs.default", "aten.add.Tensor")
    choices = {key[0]: found.choice for key, found in exact_trials._verdicts.items()}
    assert choices["aten.neg.default"] == choices["aten.abs.default"] == 1
    (finding,) = [f for f in compiled.report.findings if f.kind == "fallback"]
    assert "`aten.cumsum.default` isn't computed element by element" in finding.message


def test_an_operator_of_single_numbers_only_is_tried_on_many(unproven):
    graph = torch.fx.Graph()
    mode = FakeTensorMode()
    x, y, row = (graph.placeholder(name) for name in "xyr")
    with mode:
        x.meta["val"], y.meta["val"], row.meta["val"] = (
            torch.ones(()),
            torch.ones(()),
            torch.ones(5),
        )
        alone, mixed = (
            graph.call_function(torch.ops.aten.hypot.default, (x, other)) for other in (y, row)
        )
        alone.meta["val"], mixed.meta["val"] = torch.ones(()), torch.ones(5)
    shapes = [
        [operand.meta["val"].dim() for operand in exact_trials.alone(node, mode).all_input_nodes]
        for node in (alone, mixed)
    ]
    assert shapes == [[1, 1], [0, 1]]
    assert exact_trials.signature(alone) != exact_trials.signature(mixed)


def test_an_operator_that_no_trial_can_call_stays_eager_and_is_named(unproven, monkeypatch):
    def refuse(*_):
        raise ValueError("sizes must be even")

    monkeypatch.setattr(exact_trials, "alone", refuse)

    @ri.region("some", numerics="eager")
    def f(x):
        return x.sin()

    compiled = ri.compile(f, on_error="raise")
    compiled(torch.ones(3))
    (finding,) = [f for f in compiled.report.findings if f.kind == "fallback"]
    assert "can't be tried by itself: ValueError: sizes must be even" in finding.message


def test_a_dry_run_tries_nothing(unproven, monkeypatch):
    def refuse(*_):
        raise AssertionError("a dry run compiles")

    monkeypatch.setattr(op_trials, "lowered_exactly", refuse)

    @ri.region("some", numerics="eager")
    def f(x):
        return x.sin() + 1

    (region,) = ri.explain(f, torch.ones(3)).regions
    assert region.ops == ("aten.sin.default", "aten.add.Tensor")


def test_trials_see_every_value_of_16_bits_and_many_patterns_of_32():
    fakes = [torch.empty((1 << 16) + 5, dtype=t) for t in (torch.bfloat16, torch.float32)]
    low, high = dense_inputs(fakes, [0, 0], 0)
    assert len(set(low.view(torch.int16).tolist())) == 1 << 16
    assert len(set(high.view(torch.int32).tolist())) > 1 << 15
    exponents = (high.view(torch.int32) >> 23) & 0xFF
    assert len(set(exponents.tolist())) == 256


def test_an_operator_is_tried_with_the_same_numbers_whatever_is_tried_beside_it():
    many, few = torch.empty((1 << 16) + 5), torch.empty(())
    alone = dense_inputs([many, many], [0, 1], 3)
    beside = dense_inputs([few, many, many, many], [0, 0, 0, 1], 3)
    assert torch.equal(alone[0].view(torch.int32), beside[1].view(torch.int32))
    assert torch.equal(alone[1].view(torch.int32), beside[3].view(torch.int32))
    assert beside[1] is beside[2]  # drawn once
    assert not torch.equal(alone[0].view(torch.int32), alone[1].view(torch.int32))


_CALLS = {
    "sigmoid": (), "silu": (), "silu_backward": (...,), "sigmoid_backward": (...,),
    "tanh_backward": (...,), "gelu": (), "gelu_backward": (...,), "mish": (),
    "mish_backward": (...,), "softplus": (1.5, 3.0), "softplus_backward": (..., 1.5, 3.0),
    "elu": (1.5, 0.7, 1.2), "elu_backward": (1.5, 0.7, 1.2, False, ...), "hardswish": (),
    "hardsigmoid": (), "hardswish_backward": (...,), "hardsigmoid_backward": (...,),
    "add": (...,), "sub": (...,), "addcdiv": (..., ...), "lerp": (..., ...), "logaddexp": (...,),
    "log_sigmoid_backward": (..., ...), "pow": (3.0,), "div": (0.3,), "reciprocal": (), "neg": (),
    "relu": (), "maximum": (...,), "minimum": (...,), "fmax": (...,), "fmin": (...,),
    "clamp": (..., ...), "threshold": (0.1, 0.3), "threshold_backward": (..., 0.1),
    "remainder": (...,), "floor_divide": (...,), "mse_loss": (..., 0),
    "mse_loss_backward": (..., ..., 0),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(cuda_candidates.CANDIDATES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_candidates_for_cuda_compute_what_their_operator_does(name, dtype):
    """Up to rounding; which of them equals eager on CUDA is for a trial there to find out."""
    packet, overload = name.split(".")[1:]
    operator = getattr(getattr(torch.ops.aten, packet), overload)
    generator = torch.Generator().manual_seed(0)
    rest = _CALLS.get(packet, ())
    if name == "aten.lerp.Scalar":
        rest = (..., 0.7)
    elif overload == "Scalar":
        rest = (0.7,)
    elif overload == "Tensor_mode":
        rest = (...,)
    args = [
        torch.randn(500, generator=generator).to(dtype) if a is ... else a for a in (..., *rest)
    ]
    kwargs = {"alpha": 0.3} if packet in ("add", "sub") else {}
    if overload == "Tensor_mode":
        kwargs = {"rounding_mode": "floor"}
    if packet == "log_sigmoid_backward":  # the CPU's reads what its forward kept
        args[2] = torch.ops.aten.log_sigmoid_forward(args[1])[1]
    expected = operator(*args, **kwargs).float()
    for candidate in cuda_candidates.CANDIDATES[name]:
        result = candidate(*args, **kwargs)
        assert result.dtype is operator(*args, **kwargs).dtype
        tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(
            result.float(), expected, atol=tolerance, rtol=tolerance, equal_nan=True
        )


def test_what_a_trial_may_take_for_equal_stays_eager_on_cuda(unproven, monkeypatch):
    monkeypatch.setattr(exact_cuda, "DEVICES", frozenset({"cpu"}))

    @ri.region("some", numerics="eager")
    def f(x):
        return torch.atan2(x, x + 1)

    report = ri.explain(f, torch.ones(3))
    (finding,) = [f for f in report.findings if f.kind == "fallback"]
    assert finding.message.startswith("`aten.atan2.default` differs from eager for a few of very")
