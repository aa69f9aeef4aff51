"""Two regions with one key give the same bits, each compiled alone: a compiled region may stand for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.graphs import capture, mark_nodes
from torch.fx import GraphModule

from regional_inductor.options import Mark
from regional_inductor.pipeline import run
from regional_inductor.region_backends import BACKENDS
from regional_inductor.region_key import environment_key, region_key
from regional_inductor.regions import RegionCall, Settings

aten = torch.ops.aten

# A step is (operator, operand, operand); operands count back from the latest value. The space is small,
# so that two programs drawn apart often are one: only such a pair can show a key that is too loose.
OPERATORS: dict[str, Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]] = {
    "sin": lambda x, y, constant: x.sin(),
    "mul": lambda x, y, constant: x * y,
    "sub": lambda x, y, constant: x - y,
    "scale": lambda x, y, constant: x * constant,
    "shift": lambda x, y, constant: x + constant,
    "half": lambda x, y, constant: x / 3,
    "sum": lambda x, y, constant: x - x.sum(-1, keepdim=True),
    "double": lambda x, y, constant: x.to(torch.float64).cos().to(torch.float32),
}
STEP = st.tuples(st.sampled_from(sorted(OPERATORS)), st.integers(1, 2), st.integers(1, 2))
PROGRAM = st.tuples(
    st.lists(STEP, min_size=1, max_size=2),
    st.sampled_from([2, 2.0, True]),  # a constant: three that compare equal or nearly so
    st.sampled_from([(4, 6), (6, 4)]),
    st.booleans(),  # whether the second input is transposed
)
Program = Any


def outlined(program: Program, *, respelled: bool = False) -> GraphModule:
    """The program as a region: respelled, its inputs come in the other order and its nodes are renamed."""
    steps, constant, (rows, columns), transposed = program
    second = torch.ones(columns, rows).t() if transposed else torch.ones(rows, columns)

    def fn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        values = [a, b]
        for name, i, j in steps:
            values.append(OPERATORS[name](values[-i], values[-j], constant))
        return values[-1] + a * 0.5 - b

    inputs = (torch.ones(rows, columns), second)
    if respelled:
        gm = capture(lambda b, a: fn(a, b), *reversed(inputs))
        for node in gm.graph.nodes:
            node.name = f"other_{node.name}"
        gm.recompile()
    else:
        gm = capture(fn, *inputs)
    chosen = Settings(merge="all", region_backend="eager", on_error="raise")
    (graph,) = run(mark_nodes(gm, 0), (), chosen, stop_after="outline").graphs
    (region,) = graph.submodules.values()
    assert isinstance(region, GraphModule)
    return region


def key_of(region: GraphModule) -> str:
    return region_key(region, {}, backend="inductor", environment=environment_key())


def inputs_of(region: GraphModule) -> list[torch.Tensor]:
    """The same values for equal metadata, in the order in which the region takes them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for node in region.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        found.append(
            torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype).copy_(
                torch.randn(tuple(value.shape), generator=generator)
            )
        )
    return found


def bits(outputs: Any) -> list[tuple[Any, ...]]:
    return [
        (x.dtype, x.stride(), x.contiguous().view(torch.uint8).tolist())
        for x in (outputs if isinstance(outputs, (tuple, list)) else [outputs])
    ]


SAME: Program = ([("mul", 1, 2), ("sum", 1, 1)], 2.0, (4, 6), True)


def test_regions_with_one_key_compute_the_same_bits():
    found: list[bool] = []

    @given(PROGRAM, PROGRAM, st.booleans())
    @example(SAME, SAME, True)
    @example(([("scale", 1, 1)], 2, (4, 6), False), ([("scale", 1, 1)], 2.0, (4, 6), False), False)
    @settings(max_examples=100)
    def check(one, other, respelled):
        first, second = outlined(one), outlined(other, respelled=respelled)
        found.append(key_of(first) == key_of(second))
        if found[-1]:
            assert bits(first(*inputs_of(first))) == bits(second(*inputs_of(second)))

    check()
    # Otherwise the pairs drawn would say nothing.
    assert found.count(True) >= 5
    assert found.count(False) >= 20


def compiled_bits(region: GraphModule) -> list[tuple[Any, ...]]:
    import torch._inductor.config as inductor_config

    call = RegionCall("r", "r", Mark(), "inference", len(region.graph.nodes), (), "", "")
    chosen = Settings(guarded=False, on_error="raise")
    # Alone: no cache may hand out what another region compiled to.
    with inductor_config.patch(force_disable_caches=True):
        return bits(BACKENDS["inductor"](region, {}, call, chosen)(inputs_of(region)))


@pytest.mark.inductor
@given(PROGRAM)
@example(SAME)
@settings(max_examples=2)
def test_regions_with_one_key_compiled_alone_give_the_same_bits(program):
    first, second = outlined(program), outlined(program, respelled=True)
    if key_of(first) == key_of(second):
        assert compiled_bits(first) == compiled_bits(second)
