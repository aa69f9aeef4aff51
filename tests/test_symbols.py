"""Symbolic sizes of a stored region: what its compile assumed holds in another capture, or the region isn't taken."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from regional_inductor._torch.symbols import (
    UnstatedError,
    facts_of,
    guards_hold,
    guards_on,
    sizes_of,
)


def captured(*sizes):
    """The input of a capture that took sizes for symbols; equal sizes get one symbol."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK] * len(sizes))
    return mode.from_tensor(torch.empty(sizes), symbolic_context=context)


def sizes_in(tensor):
    return sizes_of([tensor], [tensor])


def test_a_guard_that_compiling_added_is_checked_and_added_elsewhere():
    first = captured(64)
    sizes = sizes_in(first)
    assert first.shape[0] % 8 == 0  # what a lowering that asks does
    guards = guards_on(sizes)
    second = captured(16)
    assert guards_hold(guards, sizes_in(second))
    assert "Mod" in str(second.shape[0].node.shape_env.guards[-1].expr)


def test_sizes_for_which_a_guard_does_not_hold_are_refused_and_stay_free():
    first = captured(64)
    sizes = sizes_in(first)
    assert first.shape[0] % 8 == 0
    second = captured(12)
    environment = second.shape[0].node.shape_env
    before = list(environment.guards)
    assert not guards_hold(guards_on(sizes), sizes_in(second))
    assert environment.guards == before


def test_the_order_of_two_sizes_is_theirs():
    first = captured(64, 32)
    sizes = sizes_in(first)
    assert first.shape[0] > first.shape[1]
    assert guards_hold(guards_on(sizes), sizes_in(captured(6, 5)))
    assert not guards_hold(guards_on(sizes), sizes_in(captured(5, 6)))


def test_a_size_that_compiling_settled_is_not_stated():
    tensor = captured(64)
    sizes = sizes_in(tensor)
    assert int(tensor.shape[0]) == 64  # makes the symbol a number for good
    with pytest.raises(UnstatedError, match=r"settled that s\d+ is 64"):
        guards_on(sizes)


def test_two_sizes_that_compiling_made_one_are_not_stated():
    tensor = captured(64, 32)
    sizes = sizes_in(tensor)
    assert tensor.shape[0] == 2 * tensor.shape[1]
    with pytest.raises(UnstatedError, match="compiling it settled"):
        guards_on(sizes)


def test_facts_are_equal_for_equal_captures_and_tell_sizes_and_ranges():
    assert facts_of(sizes_in(captured(64))) == facts_of(sizes_in(captured(64)))
    assert facts_of(sizes_in(captured(64))) != facts_of(sizes_in(captured(65)))
    narrowed = captured(64)
    torch._check(narrowed.shape[0] < 100)
    assert facts_of(sizes_in(narrowed)) != facts_of(sizes_in(captured(64)))


def test_a_symbol_that_no_input_is_can_not_be_stated():
    tensor = captured(64)
    with pytest.raises(UnstatedError, match="is no size of an input"):
        sizes_of([tensor.shape[0] * 2], [tensor])


def test_a_number_that_only_running_tells_can_not_be_stated():
    number = ShapeEnv().create_unbacked_symint()
    with pytest.raises(UnstatedError, match="known only when the region runs"):
        sizes_of([number], [number])
