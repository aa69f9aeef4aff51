"""The stitched graph does what the captured one did: results, mutation, aliasing, draws, effects.

Regions run their own graphs eagerly, so equality is of bits.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.oracles import is_marked, may_stay_out
from support.random_graphs import (
    EVERYTHING,
    FUNCTIONAL,
    Program,
    Step,
    arguments,
    build,
    observe,
    programs,
)

import regional_inductor as ri
from regional_inductor import RegionCompileError, RegionWarning
from regional_inductor.stages import compile as compile_stage

MERGES = st.sampled_from(["scope", "all"])


def apply(gm: Any, merge: str, **options: Any) -> Any:
    return ri.regional_inductor(gm, region_backend="eager", merge=merge, **options)


@given(programs(max_steps=25), MERGES)
def test_stitched_equals_eager(program, merge):
    expected = observe(build(program), arguments(program))
    result = apply(build(program), merge)
    assert observe(result, arguments(program)) == expected
    assert observe(result, arguments(program)) == expected  # and the next call too


@given(programs(max_steps=25), MERGES)
def test_stitched_equals_eager_when_inputs_are_one_tensor(program, merge):
    assume(program.inputs > 1)
    expected = observe(build(program), arguments(program, overlapping=True))
    result = apply(build(program), merge)
    assert observe(result, arguments(program, overlapping=True)) == expected


@given(programs(), MERGES)
def test_stitched_equals_eager_where_nothing_recorded_values(program, merge):
    """No fake value tells which nodes share storage then: only the operators do."""
    expected = observe(build(program), arguments(program))
    gm = build(program)
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
        node.meta.pop("example_value", None)
    result = ri.regional_inductor(gm, *arguments(program), region_backend="eager", merge=merge)
    assert observe(result, arguments(program)) == expected


@given(programs(), MERGES)
def test_the_boxed_call_empties_its_list_and_gives_the_same(program, merge):
    expected = observe(build(program), arguments(program))
    result = apply(build(program), merge)
    boxed: list[Any] = []

    def call(*args: Any) -> Any:
        boxed[:] = args
        return result(boxed)

    assert observe(call, arguments(program)) == expected
    assert boxed == []


@given(programs(), MERGES)
def test_the_pass_leaves_its_own_result_alone(program, merge):
    once = apply(build(program), merge)
    before = once.code
    twice = apply(once, merge)
    assert twice is once
    assert twice.code == before
    assert observe(twice, arguments(program)) == observe(build(program), arguments(program))


@given(programs(), MERGES)
def test_the_two_halves_make_the_whole(program, merge):
    """Outlining alone gives a graph that runs; compiling it then gives what the pass gives."""
    expected = observe(build(program), arguments(program))
    gm = ri.outline_regions(build(program), region_backend="eager", merge=merge)
    assert observe(gm, arguments(program)) == expected
    gm = ri.compile_regions(gm, region_backend="eager", merge=merge)
    assert observe(gm, arguments(program)) == expected
    assert gm.code == apply(build(program), merge).code


SEEN_BY_FX = tuple(kind for kind in EVERYTHING if kind != "record")


@given(programs(SEEN_BY_FX), MERGES)
def test_dead_code_elimination_drops_nothing_that_can_be_seen(program, merge):
    """Of `record` FX's elimination knows nothing: that one it drops from any graph."""
    expected = observe(build(program), arguments(program))
    result = apply(build(program), merge)
    result.graph.eliminate_dead_code()
    result.recompile()
    assert observe(result, arguments(program)) == expected


def test_a_region_with_only_an_effect_survives_dead_code_elimination():
    """FX would drop this operator itself; the region that it is in says that it has an effect."""
    program = Program((Step("record", mark=0),), (0,))
    result = apply(build(program), "all")
    result.graph.eliminate_dead_code()
    result.recompile()
    assert len(observe(result, arguments(program)).recorded) == 1


@given(programs(), MERGES)
def test_the_report_accounts_for_every_marked_node(program, merge):
    gm = build(program)
    marked = [n for n in gm.graph.nodes if is_marked(n)]
    apply(gm, merge)
    report = ri.last_report()
    held = sum(region.nodes for region in report.regions)
    assert sum(not may_stay_out(n) for n in marked) <= held <= len(marked)
    assert {region.status for region in report.regions} <= {"compiled", "shared", "memory", "eager"}
    assert all(region.reason for region in report.regions if region.status == "eager")
    assert str(report)


# --- when regions fail -----------------------------------------------------------------------------


class Refused(Exception):
    pass


def refuse(monkeypatch: pytest.MonkeyPatch, failing: Any) -> None:
    """Let the eager region backend fail for the regions whose number `failing` accepts."""
    tried = iter(range(10**9))
    working = compile_stage._BACKENDS["eager"]

    def backend(*args: Any) -> Any:
        if failing(next(tried)):
            raise Refused("no compiler today")
        return working(*args)

    monkeypatch.setitem(compile_stage._BACKENDS, "eager", backend)
    compile_stage.forget_compiled_regions()


def snapshot(gm: torch.fx.GraphModule) -> Any:
    """Everything of a graph module that a pass could change."""
    nodes = [
        (
            id(n),
            n.name,
            n.op,
            n.target,
            repr(n.args),
            repr(n.kwargs),
            sorted((key, id(value)) for key, value in n.meta.items()),
            repr(n.meta.get("custom")),
            [user.name for user in n.users],
        )
        for n in gm.graph.nodes
    ]
    attributes = {name: id(value) for name, value in vars(gm).items() if name != "_code"}
    return (
        id(gm.graph),
        type(gm),
        type(gm.graph._codegen),
        gm.code,
        nodes,
        attributes,
        sorted(name for name, _ in gm.named_modules()),
    )


@given(programs(), MERGES, st.integers(0, 3))
def test_if_a_region_fails_and_that_raises_the_graph_is_as_it_was(program, merge, which):
    gm = build(program)
    before = snapshot(gm)
    with pytest.MonkeyPatch.context() as monkeypatch:
        refuse(monkeypatch, lambda number: number == which)
        error = None
        try:
            apply(gm, merge)
        except RegionCompileError as raised:
            error = raised
    assume(error is not None)  # it has that many regions
    assert "no compiler today" in str(error)
    assert isinstance(error.__cause__, Refused)
    assert snapshot(gm) == before
    assert observe(gm, arguments(program)) == observe(build(program), arguments(program))


@given(programs(), MERGES, st.sets(st.integers(0, 3), min_size=1))
def test_a_region_that_fails_can_stay_eager_and_the_rest_is_compiled(program, merge, which):
    gm = build(program)
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        refuse(monkeypatch, which.__contains__)
        apply(gm, merge, on_error="eager")
    failed = [r for r in ri.last_report().regions if "no compiler today" in r.reason]
    assume(failed)
    assert all(region.status == "eager" for region in failed)
    warned = [w for w in heard if issubclass(w.category, RegionWarning)]
    assert len(warned) == len({region.key for region in failed})  # once for all that share a key
    assert observe(gm, arguments(program)) == observe(build(program), arguments(program))


@given(programs(FUNCTIONAL), MERGES)
def test_applying_the_pass_to_a_copy_leaves_the_original_alone(program, merge):
    from copy import deepcopy

    gm = build(program)
    before = snapshot(gm)
    apply(deepcopy(gm), merge)
    assert snapshot(gm) == before
