"""What trials of operators found out is kept, as far as it holds for the next process."""

from __future__ import annotations

import pytest
import torch

import regional_inductor as ri
from regional_inductor import op_trials, trial_store
from regional_inductor._torch import exact_formulas, exact_ops, exact_trials
from regional_inductor.cache import memory
from regional_inductor.exactness import unequal_bits

pytestmark = pytest.mark.inductor


@pytest.fixture(autouse=True)
def unproven(monkeypatch, tmp_path):
    """A machine for which nobody compared the list with eager, and an empty store."""
    monkeypatch.setattr(exact_ops, "PROVEN", ())
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE", "1")
    monkeypatch.setenv("REGIONAL_INDUCTOR_CACHE_DIR", str(tmp_path / "store"))
    yield
    exact_trials.forget()


def new_process(monkeypatch, compiler):
    """As if this were one: nothing was tried yet, nor compiled."""
    exact_trials.forget()
    memory.clear()
    torch._dynamo.reset()
    monkeypatch.setattr(op_trials, "lowered_exactly", compiler)


def compiled_operators(f, x):
    compiled = ri.compile(f, on_error="raise")
    assert not any(unequal_bits(a, b).any() for a, b in zip(compiled(x), f(x), strict=True))
    return sorted(op for region in compiled.report.regions for op in region.ops)


def test_the_next_process_tries_no_operator_again_and_believes_no_failure(
    monkeypatch,
):
    monkeypatch.setitem(
        exact_formulas.MKL_UNARY, "exp", exact_formulas.Formula("a.exp() + V(1e-7f)")
    )
    usual = op_trials.lowered_exactly

    @ri.region("some", numerics="eager")
    def f(x):
        return x.sin() + 1, x.exp()

    def broken(*args):
        raise OSError("no compiler")

    x = torch.randn(50)
    for compiler, expected in (
        (broken, []),  # as without a compiler: everything stays eager, and nothing of it is kept
        (usual, ["aten.add.Tensor", "aten.sin.default"]),
        (broken, ["aten.add.Tensor", "aten.sin.default"]),
    ):
        new_process(monkeypatch, compiler)
        assert compiled_operators(f, x) == expected
    message = next(f.message for f in ri.last_report().findings if f.kind == "fallback")
    assert message.startswith("`aten.exp.default` isn't equal to eager bit for bit")


def test_a_trial_says_nothing_of_another_build_or_another_switch(monkeypatch):
    tried = []
    usual = op_trials.lowered_exactly

    def counted(*args):
        tried.append(1)
        return usual(*args)

    @ri.region("some", numerics="eager")
    def f(x):
        return (x.sin(),)

    x = torch.randn(50)
    counts = []
    for build in ({"cpu": "one"}, {"cpu": "one"}, {"cpu": "another"}):
        new_process(monkeypatch, counted)
        monkeypatch.setattr(trial_store.machine, "build", lambda build=build: build)
        assert compiled_operators(f, x) == ["aten.sin.default"]
        counts.append(len(tried))
    torch.use_deterministic_algorithms(True)
    try:
        new_process(monkeypatch, counted)
        assert compiled_operators(f, x) == ["aten.sin.default"]
        counts.append(len(tried))
    finally:
        torch.use_deterministic_algorithms(False)
    assert counts == [1, 1, 2, 3]
