"""Partition and outline do work in proportion to the graph, counted in Python calls and nodes made."""

from __future__ import annotations

import pytest
import torch
import torch.fx
from support.counting import calls_of, python_calls

import regional_inductor as ri
from benchmarks import _graphs

SMALL, LARGE = 400, 1600
GROWTH = 1.03
# What was counted last, rounded up; lower them when the code does better.
CALLS_A_NODE = 210 if torch.__version__.startswith("2.13.") else 640  # Python's and C functions
NODES_MADE = 2.0  # in the stitching graph and in the regions, placeholders and selections


@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "hidden order"])
@pytest.mark.parametrize("family", list(_graphs.FAMILIES))
def test_calls_grow_no_faster_than_the_graph(family, ordered):
    ri.outline_regions(_graphs.build(family, 50), region_backend="eager")

    def calls(size):
        gm = _graphs.build(family, size, ordered=ordered)
        nodes = len(gm.graph.nodes)
        found = python_calls(lambda: ri.outline_regions(gm, region_backend="eager"))
        return sum(found.values()) / nodes

    small, large = calls(SMALL), calls(LARGE)
    assert large <= GROWTH * small, f"{small:.0f} calls a node, then {large:.0f}"
    assert large <= CALLS_A_NODE


@pytest.mark.parametrize("family", list(_graphs.FAMILIES))
def test_each_node_is_made_few_times(family):
    gm = _graphs.build(family, SMALL)
    nodes = len(gm.graph.nodes)
    with calls_of(torch.fx.Node, "__init__") as made:
        ri.outline_regions(gm, region_backend="eager")
    assert len(made) <= NODES_MADE * nodes, len(made) / nodes
