"""Strides read off affine indices are those that Inductor computes."""

from __future__ import annotations

import random
import re

import pytest
import sympy
import torch
from torch._inductor import sizevars
from torch.torch_version import TorchVersion

from regional_inductor._torch.affine_strides import factors_of, quick_strides

FACTORS = (1, 2, 3, 4, 7, 16, 32, 128, 8192, -1, -2, -128)
X, Y = sympy.symbols("d0 d1", integer=True, nonnegative=True)


# There Inductor computes strides in methods of `SizeVarAllocator`, and `quick_strides` changes nothing.
where_strides_are_read_off = pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 13) and not hasattr(sizevars, "stride_at"),
    reason="torch 2.11 has no sizevars.stride_at; 2.12 is untried",
)


@pytest.fixture(autouse=True)
def nothing_computed_before():
    for name in ("stride_at", "simplify_index_in_vec_range", "stride_at_vec_range"):
        if hasattr(sizevars, name):
            getattr(sizevars, name).cache_clear()


def affine_indices(count: int) -> list[sympy.Expr]:
    draws = random.Random(0)
    variables = sympy.symbols("d:4 x:4", integer=True, nonnegative=True) + sympy.symbols("i j")
    found = []
    for _ in range(count):
        chosen = draws.sample(variables, draws.randint(0, 5))
        factors = [draws.choice((*FACTORS, draws.randint(-1000, 1000))) for _ in chosen]
        offset = draws.choice((0, 0, 1, 16, -1, -4096))
        found.append(
            sympy.Add(*(f * v for f, v in zip(factors, chosen, strict=True)), sympy.Integer(offset))
        )
    return found


@where_strides_are_read_off
def test_affine_indices_have_the_same_form_and_strides_as_without():
    simplify, stride = sizevars.simplify_index_in_vec_range, sizevars.stride_at
    for index in affine_indices(60):
        variables = sorted(index.free_symbols, key=str) or [X]
        with quick_strides():
            form = sizevars.simplify_index_in_vec_range(index, variables[0], 16)
            strides = [sizevars.stride_at(index, v) for v in (*variables, Y)]
        assert form == simplify(index, variables[0], 16)
        assert strides == [stride(index, v) for v in (*variables, Y)]
        assert {type(s) for s in strides} == {type(stride(index, v)) for v in (*variables, Y)}


@pytest.mark.parametrize(
    "index",
    [
        X * Y,
        X**2,
        X / 2,
        X * sympy.Symbol("s0", integer=True, positive=True) + Y,
        3 * sympy.floor(X / 4) + Y,
        sympy.Eq(X, Y),
        sympy.Float(2.0) * X,
    ],
    ids=str,
)
def test_other_indices_are_not_taken_for_affine(index):
    assert factors_of(index) is None


@where_strides_are_read_off
def test_other_indices_get_inductors_answer():
    from torch.utils._sympy.functions import FloorDiv, ModularIndexing

    def strides():
        return [
            sizevars.stride_at_vec_range(index, X, 16)
            for index in (FloorDiv(X, 32) + Y, ModularIndexing(X, 1, 32) + 4 * Y, X * Y)
        ]

    with quick_strides():
        quick = strides()
    sizevars.stride_at_vec_range.cache_clear()
    assert quick == strides()


@where_strides_are_read_off
def test_what_somebody_has_patched_stays_patched(monkeypatch):
    def patched(index, var):
        return sympy.Integer(5)

    monkeypatch.setattr(sizevars, "stride_at", patched)
    with quick_strides():
        assert sizevars.stride_at_vec_range(3 * X, X, None) == 5
    assert sizevars.stride_at is patched


@pytest.mark.parametrize("absent", ["stride_at", "simplify_index_in_vec_range"])
def test_nothing_is_changed_where_a_function_is_missing(monkeypatch, absent):
    monkeypatch.delattr(sizevars, absent, raising=False)
    before = dict(vars(sizevars))
    with quick_strides():
        assert vars(sizevars) == before
    assert vars(sizevars) == before


@where_strides_are_read_off
def test_inductors_own_functions_are_back_afterwards():
    before = sizevars.stride_at, sizevars.simplify_index_in_vec_range
    with quick_strides():
        assert sizevars.stride_at is not before[0]
    assert (sizevars.stride_at, sizevars.simplify_index_in_vec_range) == before


@where_strides_are_read_off
@pytest.mark.inductor
def test_a_rotary_embedding_is_compiled_without_simplifying_and_to_the_same_code(monkeypatch):
    import regional_inductor as ri
    from regional_inductor.cache import memory
    from regional_inductor.stages import compile as stage

    @ri.region("rope")
    def rotate(x, cos, sin):
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    arguments = torch.rand(2, 4, 8, 6).transpose(1, 2), torch.rand(4, 6), torch.rand(4, 6)
    simplified = []
    simplify = sympy.simplify
    monkeypatch.setattr(sympy, "simplify", lambda e, *a: simplified.append(e) or simplify(e, *a))

    def code() -> dict[str, str]:
        memory.clear()
        torch._dynamo.reset()
        nothing_computed_before.__wrapped__()
        with torch._inductor.config.patch(fx_graph_cache=False):
            torch.compile(rotate, backend="regional_inductor", fullgraph=True)(*arguments)
        report = ri.last_report()
        assert report is not None
        # The number of the graph in this process is in it where AOTAutograd ran for the region.
        return {key: re.sub("AOT ID: .*", "", text) for key, text in report.code.items()}

    quick = code()
    assert simplified == []
    monkeypatch.setattr(stage, "quick_strides", lambda: torch.no_grad())
    assert list(code().values()) == list(quick.values())
    assert simplified
