"""FSDP2, tensor parallelism and DDP on two ranks: regions change neither gradients nor communication."""

from __future__ import annotations

import pytest
import torch
from support.ranks import Ranks
from support.sharded_models import LAYERS, compare
from support.under_test import AGAINST

pytestmark = [
    pytest.mark.skipif(AGAINST != "ours", reason="about this library's own surface"),
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="no gloo",
    ),
]


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2) as both:
        yield both


WAYS = ["fsdp", "tensor parallel", "ddp"]


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    return request.param


@pytest.fixture(scope="module")
def outcome(way, ranks):
    """What each rank saw; one run for all tests of it."""
    return ranks.run(compare, way, {"region_backend": "eager"})


def test_gradients_equal_those_without_regions(outcome):
    for rank in outcome:
        assert rank["gradients"] == 9 * LAYERS + 2
        assert rank["error"] == 0.0


def test_marks_by_module_name_pull_no_collective_into_a_region(outcome):
    for rank in outcome:
        assert any("silu" in op for op in rank["in regions"])
        assert {direction for _, direction in rank["regions"]} == {"forward", "backward"}
        assert [op for op in rank["in regions"] if "c10d" in op] == []


def test_collectives_and_eager_operators_keep_their_order(way, outcome):
    for rank in outcome:
        assert rank["graphs"]
        names = [name for before, _ in rank["graphs"] for name in before]
        # FSDP2 and DDP communicate from hooks, between the graphs.
        assert any("all_reduce" in name for name in names) == (way == "tensor parallel")
        for before, after in rank["graphs"]:
            assert after == before


def test_each_distinct_region_is_compiled_once_a_process(outcome):
    for rank in outcome:
        assert rank["compiles"] == rank["keys"] < len(rank["regions"])


def test_collectives_join_regions_where_asked_for(ranks):
    options = {"region_backend": "eager", "collectives": "include"}
    for rank in ranks.run(compare, "tensor parallel", options):
        assert rank["error"] == 0.0
        assert "_c10d_functional.all_reduce.default" in rank["in regions"]
        assert "_c10d_functional.wait_tensor.default" in rank["in regions"]


@pytest.mark.inductor
@pytest.mark.parametrize("collectives", ["exclude", "include"])
def test_truly_compiled_regions_give_the_same_gradients(ranks, collectives):
    for rank in ranks.run(compare, "tensor parallel", {"collectives": collectives}):
        assert rank["error"] < 1e-6
        assert rank["compiles"] == rank["keys"] < len(rank["regions"])


def test_blocks_captured_by_themselves_give_the_same_gradients(way, ranks):
    for rank in ranks.run(compare, way, {"region_backend": "eager", "capture": "blocks"}):
        assert rank["error"] == 0.0
        assert rank["gradients"] == 9 * LAYERS + 2
        assert {direction for _, direction in rank["regions"]} == {"forward", "backward"}
        assert any("silu" in op for op in rank["in regions"])
