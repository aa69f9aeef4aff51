"""The guarantees on AOTAutograd's graphs, under selective checkpointing and after bucketing.

Entries are told apart here by an annotation of the tests' own, which names the place that each node
comes from; how the package tells them apart is not asked.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.aot_graphs import (
    MARKERS,
    SAVED,
    Towers,
    bucketed,
    captured,
    inputs,
    interleaved,
    no_marks,
    place_of,
)
from support.oracles import (
    data_edges,
    fewest_pieces,
    is_acyclic,
    is_marked,
    places,
    raw_mark,
    schedule_of,
    unit_edges,
)

import regional_inductor as ri
from regional_inductor.pipeline import run
from regional_inductor.regions import Settings

CHANGES = {
    "as it came": lambda gm, rng: gm,
    "interleaved": interleaved,
    "bucketed": bucketed,
    "bucketed, then interleaved": lambda gm, rng: interleaved(bucketed(gm, rng), rng),
}


@st.composite
def aot_graphs(draw, directions=("forward", "backward", "backward")):
    """A captured graph as it came or changed, with real arguments for it."""
    where = draw(st.sampled_from(directions))
    found = captured(
        draw(st.sampled_from(sorted(MARKERS))), draw(st.sampled_from(sorted(SAVED))), where
    )
    change = draw(st.sampled_from(sorted(CHANGES))) if where == "backward" else "interleaved"
    gm = CHANGES[change](found.copy(), random.Random(draw(st.integers(0, 999))))
    return gm, found.args


def partitioned(gm: Any, merge: str) -> Any:
    settings = Settings(merge=merge, region_backend="eager", on_error="raise")
    (graph,) = run(gm, (), settings, stop_after="partition").graphs
    return graph


MERGES = st.sampled_from(["scope", "all"])
few = settings(max_examples=10)


@few
@given(aot_graphs(), MERGES)
def test_1_contracting_all_regions_at_once_leaves_the_graph_acyclic(graph, merge):
    gm, _ = graph
    unit: dict[Any, Any] = {node: node for node in gm.graph.nodes}
    for region in partitioned(gm, merge).regions:
        unit.update(dict.fromkeys(region.nodes, region.name))
    assert is_acyclic(unit_edges(data_edges(gm.graph.nodes), unit))


@few
@given(aot_graphs(), MERGES)
def test_2_all_nodes_of_a_region_carry_the_same_mark_and_none_is_left_out(graph, merge):
    gm, _ = graph
    regions = partitioned(gm, merge).regions
    inside = [n for region in regions for n in region.nodes]
    assert len(inside) == len(set(inside))
    assert {n for n in gm.graph.nodes if is_marked(n)} <= set(inside)
    for region in regions:
        marks = {raw_mark(n) for n in region.nodes if not n.meta.get("is_gradient_acc")}
        assert len(marks - {None}) == 1


@few
@given(aot_graphs(), MERGES)
def test_3_every_node_runs_after_its_inputs(graph, merge):
    """These graphs are functional: data edges are all the order there is."""
    gm, _ = graph
    place = places(partitioned(gm, merge))
    assert set(place) == set(gm.graph.nodes)
    for earlier, later in data_edges(gm.graph.nodes):
        assert place[earlier] <= place[later]


@few
@given(aot_graphs())
def test_4_unmarked_nodes_keep_their_order(graph):
    gm, _ = graph
    result = partitioned(gm, "scope")
    inside = {n for region in result.regions for n in region.nodes}
    outside = [item for item in result.schedule if hasattr(item, "op")]
    assert outside == [n for n in gm.graph.nodes if n not in inside]


@few
@given(aot_graphs())
def test_5_a_region_comes_from_one_entry_only(graph):
    """Not from two layers, not from two towers, not from rope and the norm before it."""
    gm, _ = graph
    for region in partitioned(gm, "scope").regions:
        came_from = {place_of(n) for n in region.nodes if not n.meta.get("is_gradient_acc")}
        assert len(came_from) == 1


@few
@given(aot_graphs())
def test_5_an_entry_is_cut_no_more_often_than_order_demands(graph):
    """q and k of one call are one region; recomputed and backward parts too where they can be.

    Alone, an entry needs the fewest convex pieces that there can be. Where all entries stay whole
    together, each is one region; the sum is held to what entries need alone, plus a tenth.
    """
    gm, _ = graph
    result = partitioned(gm, "scope")
    nodes = list(gm.graph.nodes)
    inside = {n for region in result.regions for n in region.nodes}
    plain = [n for n in nodes if n.op not in ("placeholder", "get_attr") and n not in inside]
    edges = data_edges(nodes) + list(itertools.pairwise(plain))
    members: dict[Any, set[Any]] = {}
    for region in result.regions:
        members.setdefault(place_of(region.nodes[0]), set()).update(region.nodes)
    fewest = {place: fewest_pieces(own, nodes, edges) for place, own in members.items()}
    unit: dict[Any, Any] = {n: n for n in nodes}
    for place, own in members.items():
        unit.update(dict.fromkeys(own, place))
    if is_acyclic(unit_edges(edges, unit)):
        assert len(result.regions) == len(members)
    assert sum(fewest.values()) <= len(result.regions) <= 1.1 * sum(fewest.values())


@pytest.mark.parametrize("marker", sorted(MARKERS))
@pytest.mark.parametrize("saved", sorted(SAVED))
def test_5_each_of_sixteen_entries_is_one_region_in_the_forward_graph(marker, saved):
    """Two towers of two layers with two norms, a rope and a swiglu each; rope's q and k together."""
    regions = partitioned(captured(marker, saved, "forward").copy(), "scope").regions
    assert len(regions) == len({place_of(region.nodes[0]) for region in regions}) == 16


@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_5_and_in_the_backward_graph(marker):
    gm = captured(marker, "no checkpointing", "backward").copy()
    regions = partitioned(gm, "scope").regions
    assert len(regions) == len({place_of(region.nodes[0]) for region in regions}) == 16


@few
@given(aot_graphs(directions=("backward",)))
def test_5_nodes_that_bucketing_inserted_with_a_layers_mark_join_no_layers(graph):
    """Bucketing passes copy "custom" of the first node of a bucket onto what they insert."""
    gm, _ = graph
    assume(not any(str(n.target).startswith("aten.split_with_sizes") for n in gm.graph.nodes))
    gm = bucketed(gm, random.Random(0), meta="first")
    inserted = {n for n in gm.graph.nodes if "bucketing_custom_sources" in n.meta}
    for region in partitioned(gm, "scope").regions:
        assert len({place_of(n) for n in region.nodes if n not in inserted} - {None}) <= 1


@few
@given(aot_graphs(), MERGES)
def test_6_the_same_graph_is_always_partitioned_in_the_same_way(graph, merge):
    gm, _ = graph
    assert schedule_of(partitioned(gm, merge)) == schedule_of(partitioned(gm, merge))


@few
@given(st.data())
def test_6_bucketing_changes_no_forward_entry_and_joins_nothing_new(data):
    """Whatever order a pass left the nodes in, which entries there are is the same."""
    marker, saved = (
        data.draw(st.sampled_from(sorted(MARKERS))),
        data.draw(st.sampled_from(sorted(SAVED))),
    )
    found = captured(marker, saved, "backward")
    moved = interleaved(found.copy(), random.Random(data.draw(st.integers(0, 999))))
    still, then = (partitioned(gm, "scope") for gm in (found.copy(), moved))
    assert {place_of(r.nodes[0]) for r in still.regions} == {
        place_of(r.nodes[0]) for r in then.regions
    }


@few
@given(aot_graphs(), MERGES)
def test_stitched_equals_eager(graph, merge):
    gm, args = graph
    torch.manual_seed(0)
    expected = gm(*args) if not is_boxed(gm) else gm(list(args))
    result = ri.regional_inductor(gm, region_backend="eager", merge=merge)
    torch.manual_seed(0)
    actual = result(*args)
    assert len(ri.last_report().regions) > 0
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if isinstance(e, torch.Tensor):
            assert torch.equal(a, e)
            assert a.stride() == e.stride()


def is_boxed(gm: Any) -> bool:
    return "Boxed" in type(gm.graph._codegen).__name__


@pytest.mark.parametrize("saved", ["no checkpointing", "matmuls saved"])
@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_training_through_torch_compile_equals_eager(marker, saved):
    """The whole path: marks through Dynamo, checkpointing and AOTAutograd into both graphs."""
    expected, actual = Towers(no_marks, SAVED[saved]), Towers(MARKERS[marker], SAVED[saved])
    compiled = torch.compile(
        actual, backend="regional_inductor", fullgraph=True, options={"region_backend": "eager"}
    )
    x, y = inputs(), inputs()
    expected_loss, loss = expected(*x), compiled(*y)
    expected_loss.backward()
    loss.backward()
    assert torch.equal(loss, expected_loss)
    torch.testing.assert_close(y[0].grad, x[0].grad)
    for a, e in zip(actual.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad)
    assert {region.direction for region in ri.last_report().regions} == {"forward", "backward"}
