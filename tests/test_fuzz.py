"""The fuzzer itself: `make fuzz` runs thousands of programs, here a few, and that it notices."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from tests.fuzz import comparing
from tests.fuzz.comparing import Difference, EagerFails, check, difference, load, run
from tests.fuzz.programs import KINDS, Block, Program, Statement, programs, source

import regional_inductor as ri

_TWO = Block((Statement("sin"), Statement("mul", 0, 1)), scope="region")


@settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs_equal_eager(program):
    with contextlib.suppress(EagerFails):
        check(program, "eager")


@pytest.mark.parametrize("through", ["drop-in", "halves"])
def test_random_programs_through_the_drop_in_pass_equal_eager(through):
    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(programs(through=through))
    def attempt(program):
        with contextlib.suppress(EagerFails):
            check(program, "eager")

    attempt()


@pytest.mark.parametrize(
    ("through", "entry"),
    [("compile", "compile"), ("drop-in", "regional_inductor"), ("halves", "compile_regions")],
)
def test_a_program_goes_through_the_entry_point_that_was_asked_for(monkeypatch, through, entry):
    calls = []
    for name in ("compile", "regional_inductor", "compile_regions"):
        usual = getattr(ri, name)

        def noted(*args, name=name, usual=usual, **options):
            calls.append(name)
            return usual(*args, **options)

        monkeypatch.setattr(ri, name, noted)
    assert check(Program((_TWO,), through=through), "eager") == "eager"
    assert set(calls) == {entry}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_statement_makes_a_program_that_runs(kind, tmp_path):
    program = Program((Statement("sin"), Statement(kind)))
    with comparing._modules(), comparing._quiet():
        outputs = run(load(source(program), tmp_path).program, program, 3, 1)
    assert all(out.shape[0] == 3 for out in outputs[:1])


def test_a_swapped_output_is_a_difference_that_shows_the_program(monkeypatch):
    def swapped(program, text, folder, region_backend):
        compiled = ours(program, text, folder, region_backend)
        return lambda *args: compiled(*args)[::-1]

    ours = comparing._ours
    monkeypatch.setattr(comparing, "_ours", swapped)
    program = Program((_TWO, Statement("add", 0, 1)), outputs=3)
    with pytest.raises(Difference, match=r"with ri\.region") as caught:
        check(program, "eager")
    assert "batch 3: value 0: off by" in str(caught.value)


def test_what_stock_aot_eager_does_otherwise_is_compared_with_it():
    """AOTAutograd drops a draw that nobody uses; ours has to do as the same capture without us does."""
    unused_draw = Program(
        (Statement("dropout"), Block((Statement("sin", 1),), "region")), outputs=1
    )
    assert check(unused_draw, "eager") == "aot_eager"
    assert check(Program((_TWO,)), "eager") == "eager"


def test_values_differ_by_kind_by_place_of_nan_and_by_bits():
    one = torch.ones(3)
    assert difference([one], [one], exact=True) == ""
    assert "float64" in difference([one.double()], [one], exact=False)
    assert "NaN" in difference([one / 0 * 0], [one], exact=False)
    assert "off by" in difference([one + 1e-6], [one], exact=True)
    assert difference([one + 1e-6], [one], exact=False) == ""
    assert "None" in difference([None], [one], exact=False)
