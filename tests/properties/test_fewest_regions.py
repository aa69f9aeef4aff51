"""`merge="all"` makes no more regions than PyTorch's pass, wherever that succeeds."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import random_graph
from support.random_graphs import FUNCTIONAL, Program, build, entries, programs, raw_ids
from torch.fx.passes import regional_inductor as theirs

from regional_inductor.pipeline import run
from regional_inductor.regions import Settings

PREFIX = "__marked_inductor_submod"
THEIRS_KNOWS_IDS = "inductor_region" in inspect.getsource(theirs)
NO_IDS = "PyTorch's pass of this version puts all ids into one region"  # 2.11


def our_regions(gm: Any) -> int:
    settings = Settings(merge="all", region_backend="eager", on_error="raise")
    product = run(gm, (), settings, stop_after="partition")
    return sum(len(graph.regions) for graph in product.graphs)


def their_regions(gm: Any) -> int | None:
    """How many regions PyTorch's pass makes, or None where it fails."""
    try:
        result = theirs._create_inductor_marked_regions(gm)
    except (AssertionError, RuntimeError):
        return None
    return sum(n.op == "call_module" and PREFIX in str(n.target) for n in result.graph.nodes)


def one_options(program: Program) -> Program:
    """The same with empty options: PyTorch's pass tells ids apart, but no options."""
    marks = tuple(
        {key: value for key, value in mark.items() if key != "inductor_configs"}
        for mark in program.marks
    )
    return replace(program, marks=marks)


@pytest.mark.parametrize("ids", [1, 2, 4, 8])
@given(data=st.data())
def test_no_more_regions_than_pytorch(data, ids):
    if ids > 1 and not THEIRS_KNOWS_IDS:
        pytest.skip(NO_IDS)
    program = one_options(
        data.draw(programs(FUNCTIONAL, tables=(raw_ids(ids),), max_steps=25, spelt=(False,)))
    )
    theirs = their_regions(build(program))
    if theirs is not None:
        assert our_regions(build(program)) <= theirs


@given(programs(FUNCTIONAL, tables=(entries(1, 3),), spelt=(False,)))
def test_marks_without_an_id_count_as_one_id_as_there(program):
    program = one_options(program)
    theirs = their_regions(build(program))
    if theirs is not None:
        assert our_regions(build(program)) <= theirs


def compare(graphs: int, *, size: int, ids: int, share: float = 0.6) -> Counter:
    outcome: Counter = Counter()
    for seed in range(graphs):
        ours = our_regions(random_graph(seed, size=size, ids=ids, marked_share=share))
        other = their_regions(random_graph(seed, size=size, ids=ids, marked_share=share))
        if other is None:
            outcome["they fail"] += 1
        else:
            outcome["equal" if ours == other else "fewer" if ours < other else "more"] += 1
    return outcome


@pytest.mark.parametrize(
    ("size", "ids"), [(12, 1), (30, 1), (12, 2), (20, 3), (30, 2), (30, 6), (40, 12)]
)
def test_statistics_over_random_graphs(size, ids):
    """PyTorch's pass fails on many of them; where it doesn't, ours never makes more regions."""
    if ids > 1 and not THEIRS_KNOWS_IDS:
        pytest.skip(NO_IDS)
    outcome = compare(40, size=size, ids=ids)
    assert outcome["more"] == 0, outcome
    if ids == 1:
        assert outcome["they fail"] == 0
