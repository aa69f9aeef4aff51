"""Stitched graphs with symbolic sizes, run at sizes other than the one they were captured with."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import capture, marked
from support.random_graphs import Program, programs

import regional_inductor as ri

KINDS = ("unary", "binary", "half", "cat", "split")


def interpret(program: Program, *inputs: torch.Tensor) -> list[Any]:
    """The program on vectors of any length: `half` drops one number, `cat` and `split` derive sizes.

    Operands of a binary operator must have one length: `length` spells how each came about.
    """
    values = [(x, "n") for x in inputs]
    sizes: list[Any] = []
    for step in program.steps:
        value, length = values[-1 - step.a % len(values)]
        alike = [v for v, known in values if known == length]
        other = alike[-1 - step.b % len(alike)]
        mark = None if step.mark is None else program.marks[step.mark]
        with contextlib.nullcontext() if mark is None else marked(mark):
            if step.kind == "unary":
                values.append((value.sin() if step.b % 2 else value * 2, length))
            elif step.kind == "binary":
                values.append((value + other, length))
            elif step.kind == "half":
                values.append(
                    (value[1:], f"cut {length}") if length == "n" else (value.flip(0), length)
                )
            elif step.kind == "cat":
                values.append((torch.cat([value, other]) + 1, f"twice {length}"))
            else:
                sizes.append(value.shape[0] * 2 + 1)
                values.append((value * value.shape[0], length))
    return [value for value, _ in values] + sizes


@settings(max_examples=40)
@given(programs(KINDS, max_steps=10), st.sampled_from(["scope", "all"]))
def test_stitched_equals_eager_at_sizes_not_seen_before(program, merge):
    def fn(*inputs):
        return interpret(program, *inputs)

    inputs = [torch.randn(6) for _ in range(program.inputs)]
    gm = capture(fn, *inputs, mode="symbolic")
    result = ri.regional_inductor(gm, region_backend="eager", merge=merge)
    for size in (6, 4, 11):
        args = [torch.randn(size) for _ in range(program.inputs)]
        for actual, expected in zip(result(*args), fn(*args), strict=True):
            if isinstance(expected, torch.Tensor):
                assert torch.equal(actual, expected)
            else:
                assert actual == expected
