"""numerics="eager": compiled regions that equal eager bit for bit.

The whole table is `python -m tests.numerics`; here are one graph of many operators for each type, and
what happens when something can't be equal.
"""

import os
import random
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import regional_inductor as ri
from regional_inductor._torch import (
    exact_formulas,
    exact_ops,
    loops,
)
from regional_inductor.exactness import unequal_bits

pytestmark = pytest.mark.skipif(
    torch.__version__.split("+")[0].rsplit(".", 1)[0] not in ("2.13",)
    or torch.backends.cpu.get_cpu_capability() != "AVX512"
    or not torch.backends.mkl.is_available(),
    reason="nothing is known to be exact on this torch and processor: all is left eager",
)


def bits_equal(a, b):
    return a.stride() == b.stride() and not unequal_bits(a, b).any()


def awkward(*shape, dtype=torch.float32, seed=0):
    """Values of all magnitudes, with special ones in between."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 10 ** (
        torch.randint(-6, 4, shape, generator=generator).float()
    )
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 1.0, -3.0])
    chosen = special[torch.randint(len(special), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.2, chosen, values).to(dtype)


# --- which elements eager computes with its scalar code ---------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=2)
    | st.lists(st.integers(1, 11), min_size=3, max_size=3),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 2]),
)
def test_the_scalar_positions_of_a_layout_are_those_of_eager(shape, randomness, threads):
    """sigmoid's vector and scalar code differ: where eager runs which is seen in its results."""
    x = _laid_out(shape, randomness)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = torch.sigmoid(x)
    finally:
        torch.set_num_threads(before)
    step = 2 * exact_ops._vector_bytes() // 4
    positions = loops.scalar_positions(tuple(x.shape), [_strides_of(x)], step)
    in_vector, in_scalar = _by_vector(x), _by_scalar(x)
    if len(positions) < 2:
        expected = in_scalar if positions == loops.ALL_SCALAR else in_vector
    else:
        number = sum(
            torch.arange(size).reshape([-1] + [1] * (x.dim() - 1 - dim)) * positions[3 + dim]
            for dim, size in enumerate(x.shape)
        )
        scalar = torch.tensor(
            [
                loops.is_scalar(int(p), positions, threads)
                for p in number.broadcast_to(x.shape).flatten()
            ]
        ).reshape(x.shape)
        expected = torch.where(scalar, in_scalar, in_vector)
    assert torch.equal(actual, expected)


def _laid_out(shape, randomness):
    """A tensor of some shape in some layout: permuted, with gaps, broadcast, or large."""
    if randomness.random() < 0.05:
        shape = randomness.choice([[40_001], [3, 13_001]])
    steps = [randomness.choice([1, 1, 1, 2]) for _ in shape]
    order = list(range(len(shape)))
    randomness.shuffle(order)
    generator = torch.Generator().manual_seed(randomness.randrange(1000))
    base = torch.randn([shape[dim] * steps[dim] for dim in order], generator=generator) * 4
    x = base[tuple(slice(None, None, steps[dim]) for dim in order)]
    x = x.permute([order.index(dim) for dim in range(len(shape))])
    if randomness.random() < 0.2:
        x = x[..., :1].expand(x.shape)
    return x


def _strides_of(x):
    return exact_ops._broadcast_strides(x, x.shape)


def _by_vector(x):
    flat = x.reshape(-1)
    padded = torch.zeros(-(-flat.numel() // 64) * 64)
    padded[: flat.numel()] = flat
    return torch.cat([torch.sigmoid(part) for part in padded.split(64)])[: flat.numel()].reshape(
        x.shape
    )


def _by_scalar(x):
    every_second = torch.stack([x, x], -1)[..., 0]
    if every_second.is_contiguous():
        return torch.sigmoid(x)
    return torch.sigmoid(every_second).contiguous()


# --- compiled and equal -----------------------------------------------------------------------------


def many_operators(x, y, row):
    """Operators whose kernels differ: MKL's, vector and scalar code, contracted, rounded in between."""
    turned, strided = x.t(), y[:, ::2]
    return (
        torch.tanh(x) * 0.3 + F.silu(y),
        (torch.sigmoid(turned) + torch.exp(turned)).rsqrt(),
        torch.expm1(strided) - torch.erf(strided) / 3,
        torch.addcmul(x, y, row, value=0.7),
        torch.lerp(x, y, row.sigmoid()),
        torch.add(x, y, alpha=0.3),
        F.softplus(x) * F.gelu(y, approximate="tanh"),
        torch.atan2(x, y).where(x > 0.3, x.pow(3)),
        torch.remainder(x, 0.7).clamp(-0.3, 0.2),
        F.elu(row).cosh(),
    )


@pytest.mark.inductor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_operators_in_many_layouts_are_equal_to_eager(dtype):
    marked = ri.region("all", numerics="eager")(many_operators)
    x, y = awkward(37, 65, dtype=dtype), awkward(37, 65, dtype=dtype, seed=1)
    row = awkward(65, dtype=dtype, seed=2)
    compiled = ri.compile(marked)
    for number, (a, b) in enumerate(
        zip(compiled(x, y, row), many_operators(x, y, row), strict=True)
    ):
        assert bits_equal(a, b), number
    (region,) = compiled.report.regions
    assert region.status == "compiled"


@pytest.mark.inductor
def test_forward_and_backward_around_what_stays_eager_are_equal_and_fused():
    class Norm(torch.nn.Module):
        def forward(self, x, gain):
            h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return F.silu(h * gain) * h

    def run(model):
        x = awkward(5, 33).nan_to_num(0.5, 2.0, -2.0).clamp(-9, 9).requires_grad_()
        gain = torch.linspace(-1, 2, 33).requires_grad_()
        out = model(x, gain)
        out.backward(torch.ones_like(out) / 3)
        return out.detach(), x.grad, gain.grad

    model = Norm()
    ri.mark(model, "", name="norm", numerics="eager")
    compiled = ri.compile(model)
    results = run(compiled)
    assert all(map(bits_equal, results, run(Norm())))
    assert {region.status for region in compiled.report.regions} == {"compiled"}
    left = {f.message.split("`")[1] for f in compiled.report.findings if f.kind == "fallback"}
    assert left == {"aten.mean.dim", "aten.sum.dim_IntList"}
    kernels = [len(region.kernels) for region in compiled.report.regions]
    assert max(kernels) == 1, kernels


@pytest.mark.inductor
def test_signalling_nans_and_zeros_of_both_signs_are_as_in_eager():
    @ri.region("extrema", numerics="eager")
    def f(x, y):
        return torch.fmax(x, y), torch.fmin(x, y), torch.maximum(x, y), x.relu() + 0.0, 0 - x

    x, y = awkward(3, 500), awkward(3, 500, seed=1)
    x.view(torch.int32)[0, ::7] = 0x7F800001
    x[1], y[1, ::2], y[1, 1::2] = 0.0, -0.0, 0.0
    x[2], y[2, ::2], y[2, 1::2] = -0.0, -0.0, 0.0
    compiled = ri.compile(f)
    assert all(map(bits_equal, compiled(x, y), f(x, y)))
    assert compiled.report.regions[0].status == "compiled"


@pytest.mark.inductor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_whose_kernels_are_special_are_equal_to_eager(dtype):
    """oneDNN's GELU and ATen's own, halves of a tensor, series, one function or another by layout."""

    @ri.region("special", numerics="eager")
    def f(x, low, high):
        turned = x.t()[:, ::2]
        return (
            *(F.gelu(x), F.gelu(turned), F.glu(x, -1), F.glu(x[:36], 0)),
            *(torch.special.i1(x), torch.polygamma(1, x), torch.sinc(x)),
            *(torch.logit(x), torch.logit(turned, 0.1), torch.ldexp(x, low[:1])),
            *(torch.clamp(x, low, high), torch.clamp(x, min=low), F.threshold(x, 0.1, 2.0)),
        )

    x, low, high = (awkward(37, 66, dtype=dtype, seed=seed) for seed in range(3))
    compiled = ri.compile(f)
    for number, (a, b) in enumerate(zip(compiled(x, low, high), f(x, low, high), strict=True)):
        assert not unequal_bits(a, b).any(), number
    (region,) = compiled.report.regions
    assert region.status == "compiled"
    assert not [f for f in compiled.report.findings if f.kind == "fallback"]


@pytest.mark.inductor
def test_gradients_of_gelu_and_glu_are_equal_to_eager():
    def run(function):
        x = awkward(37, 66).nan_to_num(0.5, 2.0, -2.0).requires_grad_()
        h = function(x)
        h.backward(torch.linspace(-2, 2, h.numel()).view(h.shape))
        return h.detach(), x.grad

    def f(x):
        turned = F.gelu(x[:, ::2].t()).t() + F.gelu(x.t()[::2]).t()
        return F.gelu(F.glu(x) * 1.5) - turned

    compiled = ri.compile(ri.region("gates", numerics="eager")(f))
    for a, b in zip(run(compiled), run(f), strict=True):
        assert not unequal_bits(a, b).any()
    assert {region.status for region in compiled.report.regions} == {"compiled"}


@pytest.mark.inductor
def test_threads_that_never_asked_aten_for_their_number_compute_what_eager_does():
    """Where eager's chunks end depends on the number of threads; new workers used to see one.

    In a process of its own, where a region is the first thing that the workers run.
    """
    many = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 4
    telling = many[_by_vector(many) != _by_scalar(many)][0].item()
    script = f"""
import torch
import regional_inductor as ri
from regional_inductor.exactness import unequal_bits
from regional_inductor.stages import compile

compile.check_equal_to_eager = lambda *_, **__: None
x = torch.full((3 * 32_768 + 50,), {telling!r})
compiled = ri.compile(ri.region("threads", numerics="eager")(torch.sigmoid))
print(int(unequal_bits(compiled(x), torch.sigmoid(x)).sum()), compiled.report.regions[0].status)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "REGIONAL_INDUCTOR_CACHE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["0", "compiled"]


@pytest.mark.inductor
def test_symbolic_sizes_are_tried_at_the_sizes_of_the_capture():
    @ri.region("dynamic", numerics="eager")
    def f(x):
        return x.sin() * 2

    compiled = ri.compile(f, dynamic=True, on_error="raise")
    for rows in (3, 8):
        x = awkward(rows, 5)
        assert bits_equal(compiled(x), f(x))
    assert compiled.report.regions[0].status == "compiled"


# --- not equal: named, never approximated -----------------------------------------------------------


def test_an_operator_that_is_not_in_the_list_stays_eager_and_is_named():
    @ri.region("mixed", numerics="eager")
    def f(x):
        return (x.sin() + 1).cumsum(0).cos() * 2

    x = awkward(7, 5)
    compiled = ri.compile(f, region_backend="eager")
    assert bits_equal(compiled(x), f(x))
    assert [region.ops for region in compiled.report.regions] == [
        ("aten.sin.default", "aten.add.Tensor"),
        ("aten.cos.default", "aten.mul.Tensor"),
    ]
    (finding,) = [f for f in compiled.report.findings if f.kind == "fallback"]
    assert finding.message == (
        "`aten.cumsum.default` isn't in the list of operators known to be exact: "
        'numerics="eager" leaves it eager'
    )


def test_types_without_proof_stay_eager_and_are_named():
    @ri.region("double", numerics="eager")
    def f(x):
        return x.sin() + 1

    compiled = ri.compile(f, region_backend="eager")
    compiled(torch.ones(3, dtype=torch.float64))
    assert not compiled.report.regions
    assert "works on float64" in compiled.report.findings[0].message


@pytest.mark.inductor
def test_a_region_that_gives_other_bits_on_this_machine_stays_eager(monkeypatch):
    wrong = exact_formulas.Formula("a.exp() + V(1e-7f)")
    monkeypatch.setitem(exact_formulas.MKL_UNARY, "exp", wrong)

    @ri.region("wrong", numerics="eager")
    def f(x):
        return x.exp() * 2

    x = awkward(50)
    compiled = ri.compile(f, on_error="raise")
    with pytest.warns(ri.RegionWarning, match="isn't equal to eager bit for bit on trial inputs"):
        result = compiled(x)
    assert bits_equal(result, f(x))
    (region,) = compiled.report.regions
    assert region.status == "eager"
    assert region.reason.startswith('numerics="eager": ')


@pytest.mark.inductor
def test_a_contradicting_option_is_refused():
    @ri.region("fast", numerics="eager", options={"emulate_precision_casts": False})
    def f(x):
        return x.sin() + 1

    with pytest.raises(Exception, match='numerics="eager" needs emulate_precision_casts=True'):
        ri.compile(f)(torch.ones(3))


def test_an_operator_that_takes_a_symbolic_number_stays_eager_and_is_named():
    """The mean of rows of symbolic length divides by that length."""

    @ri.region("mean", numerics="eager")
    def f(x):
        return x.sin() / x.shape[0]

    compiled = ri.compile(f, region_backend="eager", dynamic=True)
    x = awkward(6, 4)
    assert bits_equal(compiled(x), f(x))
    assert any("isn't known when it is compiled" in n.message for n in compiled.report.findings)


def test_the_numerics_of_a_region_are_in_its_key():
    def key(numerics):
        @ri.region("a", numerics=numerics)
        def f(x):
            return x.sin() + 1

        return ri.explain(f, torch.ones(3)).regions[0].key

    assert key("eager") != key("default")
    assert key("default") == key(None)


def test_random_numbers_of_the_user_are_not_used_up_by_trials():
    @ri.region("a", numerics="eager")
    def f(x):
        return x.sin() + 1

    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        ri.compile(f, region_backend="eager")(torch.ones(3))
    assert torch.equal(before, torch.get_rng_state())
