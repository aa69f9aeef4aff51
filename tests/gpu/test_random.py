"""Random draws inside regions: the generator's state moves on, and checkpointing repeats the draws."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint


@pytest.fixture
def dropping(ri):
    @ri.region("drop")
    def drop(x):
        return dropout(x, 0.5, training=True) * 1.0

    return drop


def test_each_call_draws_anew_and_a_seed_repeats_them(ri, dropping, cuda):
    compiled = ri.compile(lambda x: dropping(x + 1))
    x = torch.zeros(4096, device=cuda)
    torch.manual_seed(5)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(compiled(x), first)
    assert torch.equal(compiled(x), second)
    assert compiled.report.regions[0].status == "compiled"


def test_two_calls_of_one_region_in_a_graph_draw_differently(ri, dropping, cuda):
    compiled = ri.compile(lambda x: (dropping(x + 1), dropping(x + 1)))
    one, other = compiled(torch.zeros(4096, device=cuda))
    assert not torch.equal(one, other)


def test_the_backward_pass_uses_the_forward_s_draws(ri, dropping, cuda):
    compiled = ri.compile(lambda x: dropping(x * 1.0))
    x = torch.ones(4096, device=cuda, requires_grad=True)
    out = compiled(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())  # ones: what was kept is scaled by 2 in both


@pytest.mark.parametrize("preserve", [True, False])
def test_recomputed_draws_are_the_forward_s(ri, dropping, cuda, preserve):
    def f(x):
        return checkpoint(
            lambda y: dropping(y * 1.0).sin(),
            x,
            use_reentrant=False,
            preserve_rng_state=preserve,
        )

    compiled = ri.compile(f)
    x = torch.ones(4096, device=cuda, requires_grad=True)
    out = compiled(x)
    out.sum().backward()
    kept = out.detach() != 0
    assert torch.equal(x.grad != 0, kept)
    assert 0.4 < kept.float().mean() < 0.6


def test_eager_draws_between_regions_keep_their_place(ri, cuda):
    """An unmarked draw after a region that draws nothing is bit-equal to eager's."""

    def f(x):
        with ri.region("quiet"):
            y = x.sin() + 0.5
        return dropout(y, 0.5, training=True)

    def plain(x):
        return dropout(x.sin() + 0.5, 0.5, training=True)

    x = torch.randn(4096, device=cuda)
    compiled = ri.compile(f)
    torch.manual_seed(3)
    actual = compiled(x)
    torch.manual_seed(3)
    expected = plain(x)
    assert torch.equal(actual == 0, expected == 0)
    torch.testing.assert_close(actual, expected)
