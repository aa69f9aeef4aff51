"""What the drop-in pass and its halves can't do is refused, not taken in silence."""

from __future__ import annotations

import pytest
import torch

import regional_inductor as ri


@pytest.mark.parametrize("apply", [ri.regional_inductor, ri.outline_regions, ri.compile_regions])
@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("backward", "early", "one graph at a time"),
        ("recompute", "regions", "divides a graph into forward and backward"),
        ("cudagraphs", "graph", "records what is called"),
    ],
)
def test_what_needs_more_than_one_graph_is_refused(apply, option, value, why):
    graph = torch.fx.symbolic_trace(lambda a: a.sin())
    code = graph.code
    with pytest.raises(ri.OptionError, match=why) as caught:
        apply(graph, **{option: value})
    assert "regional_inductor.compile" in caught.value.hint
    assert graph.code == code


def test_what_a_pass_does_anyway_may_be_asked_for():
    graph = torch.fx.symbolic_trace(lambda a: a.sin())
    x = torch.ones(3)
    result = ri.regional_inductor(graph, x, backward="late", recompute="off", cudagraphs="off")
    assert torch.equal(result(x), x.sin())
