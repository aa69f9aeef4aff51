"""`rules=`: what is known to pay is marked in the captured graph; eager is the oracle."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from models.architectures import ARCHITECTURES
from torch import nn

import regional_inductor

TINY = {one.name: one for one in ARCHITECTURES}
LAYERS = 2


def labels(report, *directions):
    return Counter(
        region.name
        for graph in report.graphs
        if graph.direction in directions
        for region in graph.regions
    )


class RMSNorm(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def apply_rotary_pos_emb(q, k):
    return q * q.cos(), k * k.cos()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gate, self.up = RMSNorm(), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        q, k = apply_rotary_pos_emb(x, self.up(x))
        h = self.norm(q + k)
        return x + nn.functional.silu(self.gate(h)) * self.up(h)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, {"norm": 2 * LAYERS + 1, "rope": LAYERS, "gated activation": LAYERS})
            for name in ("llama", "mistral", "qwen2")
        ),
        ("gpt2", {"norm": 2 * LAYERS + 1}),
        ("bert", {"norm": 2 * LAYERS + 1}),
        ("vit", {"norm": 2 * LAYERS + 1}),
    ],
)
def test_the_parts_of_each_layer_become_regions_and_nothing_else_changes(ri, name, expected):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = TINY[name].build().eval()
    inputs = TINY[name].inputs(2, 8)
    keys, modules = list(model.state_dict()), [vars(m).copy() for m in model.modules()]
    with torch.no_grad():
        wanted = model(**inputs)[0]
        compiled = ri.compile(model, rules="transformer", region_backend="eager")
        assert torch.equal(compiled(**inputs)[0], wanted)
    assert labels(compiled.report, "inference") == expected
    assert list(model.state_dict()) == keys
    assert all("forward" not in before for before in modules)
    assert all("forward" not in vars(module) for module in model.modules())


def test_gradients_of_what_rules_mark_equal_eagers(ri):
    torch.manual_seed(0)
    model = Stack()
    x = torch.randn(3, 8, requires_grad=True)
    (wanted,) = torch.autograd.grad(model(x).square().sum(), x)
    compiled = ri.compile(model, rules="transformer", region_backend="eager")
    (found,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(found, wanted)
    parts = {"norm": 2, "rope": 2, "gated activation": 2}
    assert labels(compiled.report, "forward") == parts
    # No operator stands between the gradients of the norm and of the rotary embedding before it.
    backward = labels(compiled.report, "backward")
    assert backward == {"gated activation": 2, "norm+rope": 2}


def test_what_the_user_marked_or_keeps_eager_is_left_as_it_is(ri):
    @ri.eager
    def kept(x):
        return nn.functional.layer_norm(x, (8,))

    marked = ri.region("mine")(lambda x: nn.functional.layer_norm(x, (8,)))
    compiled = ri.compile(
        lambda x: nn.functional.layer_norm(kept(marked(x)) @ x, (8,)),
        rules="norms",
        region_backend="eager",
    )
    compiled(torch.randn(8, 8))
    assert labels(compiled.report, "inference") == {"mine": 1, "norm": 1}


def test_cross_entropy_and_an_optimizers_step_are_found(ri):
    loss = ri.compile(
        lambda x, y: nn.functional.cross_entropy(x @ x, y),
        rules="cross_entropy",
        region_backend="eager",
    )
    loss(torch.randn(4, 4), torch.arange(4))
    assert labels(loss.report, "inference") == {"cross entropy": 1}

    def step(p, g):
        torch._foreach_mul_(p, 0.9)
        torch._foreach_add_(p, g, alpha=-0.1)
        return torch.stack(p).sum()

    values, gradients = [torch.ones(3), torch.ones(3)], [torch.ones(3), torch.ones(3)]
    compiled = ri.compile(step, rules=["optimizer_steps"], region_backend="eager")
    compiled(values, gradients)
    torch.testing.assert_close(values[0], torch.full((3,), 0.8))
    assert labels(compiled.report, "inference")["optimizer step"] >= 1


def test_a_scaled_activation_and_one_that_is_used_twice_are_not_gated(ri):
    def f(x, y):
        h = nn.functional.silu(x)
        return h * y + h, nn.functional.gelu(x) * 2

    compiled = ri.compile(f, rules="gated_activations", region_backend="eager")
    compiled(torch.randn(4), torch.randn(4))
    assert not compiled.report.regions
    (finding,) = [one for one in compiled.report.findings if one.kind == "rules"]
    assert "the rule gated_activations matches nothing" in finding.message


def test_a_rule_that_matches_in_a_later_graph_leaves_no_finding(ri):
    def f(x):
        x = x + 1
        torch._dynamo.graph_break()
        return nn.functional.layer_norm(x, (4,))

    compiled = ri.compile(f, rules=["norms", "rope"], region_backend="eager")
    compiled(torch.randn(2, 4))
    found = [one.message for one in compiled.report.findings if one.kind == "rules"]
    assert found == ["the rule rope matches nothing in the model that is not marked already"]


def test_no_rule_matching_in_a_full_graph_raises(ri):
    compiled = ri.compile(
        lambda x: x + 1, rules=["norms", "rope"], fullgraph=True, region_backend="eager"
    )
    with pytest.raises(Exception, match="no rule matches anything in the model: norms, rope"):
        compiled(torch.ones(2))


def test_a_rule_of_the_users_own(ri):
    def sines(gm):
        return ri.mark_nodes(
            gm, lambda node: regional_inductor.rules.called(node) == "sin", name="sine"
        )

    compiled = ri.compile(lambda x: x.sin() + 1, rules=sines, region_backend="eager")
    compiled(torch.ones(2))
    assert labels(compiled.report, "inference") == {"sine": 1}


def test_the_handle_of_a_rule_takes_its_marks_away():
    gm = torch.fx.symbolic_trace(lambda x: nn.functional.layer_norm(x, (4,)))
    handle = regional_inductor.rules.norms(gm)
    assert any("custom" in node.meta for node in gm.graph.nodes)
    handle.remove()
    assert not any("custom" in node.meta for node in gm.graph.nodes)


@pytest.mark.parametrize(
    ("rules", "message"),
    [("transformers", "did you mean 'transformer'"), (["norm"], "norms"), ([], "rules= is empty")],
)
def test_unknown_rules_raise_at_once_with_near_names(ri, rules, message):
    with pytest.raises(regional_inductor.OptionError, match=message):
        ri.compile(lambda x: x, rules=rules)
