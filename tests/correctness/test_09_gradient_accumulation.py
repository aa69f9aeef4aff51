"""Point 9: gradient accumulation doesn't fragment regions.

Where a value has several users, backward adds their gradients in nodes that carry no mark. In
PyTorch's pass each of them splits the marked code around it: two layers give one compile for
forward and ten for backward.
"""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_trains_like_eager
from support.graphs import marked, with_options
from torch.utils.checkpoint import checkpoint


def layer(x, w):
    """Norm, gate and residual: every intermediate has two or three users."""
    h = x * x.pow(2).mean(-1, keepdim=True).add(1e-5).rsqrt()
    h = (h @ w).tanh() * h.sigmoid() + h
    return x + h


def two_marked_layers(x, w1, w2):
    with marked():
        x = layer(x, w1)
    with marked():
        x = layer(x, w2)
    return x


def marked_layers_apart(x, w1, w2):
    """Between them an unmarked product, through which all of backward has to pass."""
    with marked():
        x = layer(x, w1)
    x = (x @ w2).cos()
    with marked():
        x = layer(x, w1)
    return x


def marked_norm_beside_an_unmarked_user(x, w1, w2):
    x = x.exp()
    with marked():
        a = layer(x, w1)
    return a + (x @ w2).cos()


def one_weight_in_both_layers(x, w1, w2):
    with marked():
        x = layer(x, w1)
    x = x.cos()
    with marked():
        x = layer(x, w1)
    return x @ w2


def layers_of_different_options(x, w1, w2):
    with with_options(max_fusion_size=7):
        x = layer(x, w1)
    with with_options(max_fusion_size=9):
        x = layer(x, w2)
    return x


def checkpointed_layers(x, w1, w2):
    with marked():
        x = checkpoint(layer, x, w1, use_reentrant=False)
        return checkpoint(layer, x, w2, use_reentrant=False)


def unmarked_fan_out(x, w1, w2):
    y = x.exp()
    z = (y @ w1).sin() + y.cos() + y
    with marked():
        z = (z @ w2).tanh()
    return z


FUNCTIONS = [
    two_marked_layers,
    marked_layers_apart,
    marked_norm_beside_an_unmarked_user,
    one_weight_in_both_layers,
    layers_of_different_options,
    checkpointed_layers,
    unmarked_fan_out,
]
by_name = pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)


def arguments():
    return [torch.randn(3, 4, requires_grad=True)] + [
        torch.randn(4, 4, requires_grad=True) for _ in range(2)
    ]


def regions_of_a_step(under_test, fn, **options):
    """All regions of one forward and backward."""
    with under_test.watch() as seen:
        under_test.compile(fn, **options)(*arguments()).sum().backward()
    return seen


@by_name
def test_gradients(under_test, fn):
    assert_trains_like_eager(under_test.compile(fn), fn, *arguments())


@by_name
def test_gradients_where_all_that_can_merge_merges(under_test, ri, fn):
    assert_trains_like_eager(under_test.compile(fn, merge="all"), fn, *arguments())


@pytest.mark.parametrize(
    ("fn", "forward", "backward"),
    [
        (two_marked_layers, 1, 1),
        (marked_layers_apart, 2, 2),
        (marked_norm_beside_an_unmarked_user, 1, 1),
        (one_weight_in_both_layers, 2, 2),
        (layers_of_different_options, 2, 2),
        (checkpointed_layers, 1, 1),
        (unmarked_fan_out, 1, 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_backward_has_no_more_regions_than_forward(under_test, fn, forward, backward):
    assert len(regions_of_a_step(under_test, fn)) == forward + backward


def test_directions_in_the_report(under_test, ri):
    seen = regions_of_a_step(under_test, marked_layers_apart)
    assert sorted(region.direction for region in seen) == ["backward"] * 2 + ["forward"] * 2


@pytest.mark.parametrize("merge", ["all", "scope"])
def test_two_layers_are_one_region_forward_and_one_backward(under_test, ri, merge):
    seen = regions_of_a_step(under_test, two_marked_layers, merge=merge)
    assert [region.direction for region in seen] == ["forward", "backward"]


def test_accumulation_of_unmarked_code_stays_eager(under_test):
    seen = regions_of_a_step(under_test, unmarked_fan_out)
    assert not any(region.has("add") for region in seen)


def test_marked_layers_by_ri_region(under_test, ri):
    """One entry of a scope is one region forward and one backward, layer by layer."""
    marked_layer = ri.region("layer")(layer)

    def fn(x, w1, w2):
        x = marked_layer(x, w1)
        x = (x @ w2).cos()
        return marked_layer(x, w1)

    args = arguments()
    assert_trains_like_eager(under_test.compile(fn), fn, *args)
    regions = ri.last_report().regions
    assert sorted(r.direction for r in regions) == ["backward"] * 2 + ["forward"] * 2
    assert {r.name for r in regions} == {"layer"}


def test_many_layers_give_one_backward_region_each(under_test, ri):
    def fn(x, w1, w2):
        for _ in range(5):
            with marked():
                x = layer(x, w1)
            x = (x @ w2).cos()
        return x

    seen = regions_of_a_step(under_test, fn)
    assert len([r for r in seen if r.direction == "forward"]) == 5
    assert len([r for r in seen if r.direction == "backward"]) == 5


@pytest.mark.inductor
@pytest.mark.parametrize("fn", [two_marked_layers, marked_layers_apart], ids=lambda fn: fn.__name__)
def test_compiled_by_inductor(under_test, fn):
    with under_test.watch() as seen:
        assert_trains_like_eager(under_test.compile(fn), fn, *arguments())
    assert len(seen) <= (2 if fn is two_marked_layers else 4)
