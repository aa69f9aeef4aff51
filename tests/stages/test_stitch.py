"""stitch: the caller's module calls compiled regions; and where a run can be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expecttest import assert_expected_inline
from support.graphs import capture
from support.stages import after, graph_text

import regional_inductor as ri
from regional_inductor import pipeline
from regional_inductor.regions import (
    Collected,
    Compiled,
    Outlined,
    Partitioned,
    Settings,
    Stitched,
)


@ri.region("norm")
def norm(x):
    return x * x.pow(2).mean().rsqrt()


def fn(x):
    return norm(norm(x).exp()).exp()


def test_equal_regions_are_called_at_each_place():
    gm = capture(fn, torch.ones(4))
    stitched = after("stitch", gm)
    assert stitched.modules == (gm,)
    assert_expected_inline(
        graph_text(gm.graph),
        """\
x_1: input
norm = call norm(x_1)
mul = getitem(norm, 0)
exp = aten.exp.default(mul)
norm_1 = call norm_1(exp)
mul_1 = getitem(norm_1, 0)
exp_1 = aten.exp.default(mul_1)
return exp_1""",
    )


def test_the_two_calls_share_one_compiled_region():
    gm = capture(fn, torch.ones(4))
    ri.regional_inductor(gm, region_backend="eager", merge="scope")
    first, second = ri.last_report().regions
    assert first.key == second.key
    assert second.status == "shared"
    x = torch.randn(4)
    assert torch.equal(gm(x), fn(x))


def test_a_region_that_stays_eager_carries_no_mark_that_another_pass_would_take_up(monkeypatch):
    from regional_inductor.stages import compile as stage

    def fails(module, options, call, settings):
        raise ValueError("no luck")

    stage.forget_compiled_regions()
    monkeypatch.setitem(stage._BACKENDS, "eager", fails)
    gm = capture(fn, torch.ones(4))
    with pytest.warns(ri.RegionWarning, match="no luck"):
        ri.regional_inductor(gm, region_backend="eager", on_error="eager")
    assert {region.status for region in ri.last_report().regions} == {"eager"}
    assert not [n for n in gm.graph.nodes if "compile_with_inductor" in n.meta.get("custom", {})]
    ri.regional_inductor(gm, region_backend="eager")
    assert not ri.last_report().regions
    stage.forget_compiled_regions()


STOPS = {
    "collect": Collected,
    "partition": Partitioned,
    "outline": Outlined,
    "compile": Compiled,
    "stitch": Stitched,
}


@pytest.mark.parametrize("stage", STOPS)
def test_a_run_can_stop_after_each_stage(stage):
    gm = capture(fn, torch.ones(4))
    before = graph_text(gm.graph)
    seen: list[str] = []
    product = pipeline.run(
        gm,
        (),
        Settings(region_backend="eager"),
        stop_after=stage,
        observer=lambda name, *_: seen.append(name),
    )
    assert isinstance(product, STOPS[stage])
    assert seen == list(STOPS)[: list(STOPS).index(stage) + 1]
    assert (graph_text(gm.graph) == before) == (stage != "stitch")


def test_the_stages_are_the_files_in_their_folder():
    names = [stage.__name__ for stage in pipeline.STAGES]
    folder = Path(pipeline.__file__).parent / "stages"
    assert names == list(STOPS)
    assert set(names) == {path.stem for path in folder.glob("[!_]*.py")}
