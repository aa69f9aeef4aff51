"""FlexAttention compiled, everything else eager: never the dense fallback, forward or backward."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

LAYERS, BATCH, HEADS, LENGTH, WIDTH = 2, 1, 4, 512, 64


def causal(b, h, q, k):
    return q >= k


def save_attention(ctx, op, *args, **kwargs):
    if op is torch.ops.higher_order.flex_attention:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def recompute_all(ctx, op, *args, **kwargs):
    return CheckpointPolicy.PREFER_RECOMPUTE


CONTEXTS = {
    "attention saved": functools.partial(create_selective_checkpoint_contexts, save_attention),
    "all recomputed": functools.partial(create_selective_checkpoint_contexts, recompute_all),
}


class Stack(torch.nn.Module):
    """Layers of attention; `mark` is what flex_attention runs under."""

    def __init__(self, mark, *, bias=False, groups=1, checkpointed=""):
        super().__init__()
        self.mark, self.groups, self.checkpointed = mark, groups, checkpointed
        self.slopes = torch.nn.Parameter(torch.linspace(0.1, 1, HEADS)) if bias else None
        self.scales = torch.nn.Parameter(torch.ones(LAYERS, WIDTH))

    def attend(self, x, keys, mask):
        slopes = self.slopes

        def alibi(score, b, h, q, k):
            return score + slopes[h] * (k - q)

        with self.mark():
            return flex_attention(
                x,
                keys,
                keys,
                score_mod=alibi if slopes is not None else None,
                block_mask=mask,
                enable_gqa=self.groups > 1,
            )

    def layer(self, x, keys, scale, mask):
        return x + self.attend(torch.nn.functional.rms_norm(x, (WIDTH,)) * scale, keys, mask)

    def forward(self, x, keys, mask):
        for scale in self.scales:
            if self.checkpointed:
                x = checkpoint(
                    self.layer,
                    x,
                    keys,
                    scale,
                    mask,
                    use_reentrant=False,
                    context_fn=CONTEXTS[self.checkpointed],
                )
            else:
                x = self.layer(x, keys, scale, mask)
        return x


def inputs(dtype=torch.float32, groups=1, length=LENGTH):
    torch.manual_seed(0)
    x = torch.randn(BATCH, HEADS, length, WIDTH, device="cuda", dtype=dtype)
    keys = torch.randn(BATCH, HEADS // groups, length, WIDTH, device="cuda", dtype=dtype)
    mask = create_block_mask(causal, None, None, length, length, device="cuda")
    return x.requires_grad_(), keys.requires_grad_(), mask


def trained(model, x, keys, mask):
    """Output and gradients of a loss that no symmetry hides."""
    for leaf in (x, keys, *model.parameters()):
        leaf.grad = None
    out = model(x, keys, mask)
    out.float().square().mean().backward()
    return [out.detach(), *(leaf.grad.clone() for leaf in (x, keys, *model.parameters()))]


CASES = {
    "mask": {},
    "captured bias": {"bias": True},
    "grouped queries": {"groups": 2},
    "attention saved": {"checkpointed": "attention saved"},
    "all recomputed": {"checkpointed": "all recomputed", "bias": True},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_eagers_and_all_layers_share_one_compile(ri, case):
    import contextlib

    groups = CASES[case].get("groups", 1)
    x, keys, mask = inputs(groups=groups)
    # Without checkpoints, which change no number: torch 2.11 can't recompute flex_attention eagerly.
    plain = {name: value for name, value in CASES[case].items() if name != "checkpointed"}
    expected = trained(Stack(contextlib.nullcontext, **plain).cuda(), x, keys, mask)
    compiled = ri.compile(
        Stack(lambda: ri.region("attention"), **CASES[case]).cuda(), capture="model"
    )
    actual = trained(compiled, x, keys, mask)
    for found, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=2e-2, atol=2e-3)
    regions = compiled.report.regions
    assert [f"{r.name}: {r.reason}" for r in regions if r.status == "eager"] == []
    for direction in ("forward", "backward"):
        keys_of = {r.key for r in regions if r.direction == direction and "attention" in r.name}
        assert len(keys_of) == 1, direction


def test_neither_pass_materialises_the_scores(ri):
    """Counts kernels and memory: the dense path runs batched matmuls over length x length scores."""
    length = 4096
    x, keys, mask = inputs(torch.bfloat16, length=length)
    model = ri.compile(Stack(lambda: ri.region("attention")).cuda().to(torch.bfloat16))
    trained(model, x, keys, mask)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        trained(model, x, keys, mask)
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    scores = BATCH * HEADS * length * length * 2  # bytes of one bfloat16 matrix of all scores
    assert peak < scores, f"{peak / 2**20:.0f} MiB, one matrix of scores is {scores / 2**20:.0f}"
    kernels = {event.key: event.count for event in profile.key_averages()}
    flex = {name: n for name, n in kernels.items() if "flex_attention" in name and "triton" in name}
    assert sum(n for name, n in flex.items() if "backward" not in name) >= LAYERS, kernels
    assert sum(n for name, n in flex.items() if "backward" in name) >= LAYERS, kernels
    dense = [n for n in kernels if "softmax" in n or "bmm" in n or "gemm" in n]
    assert dense == []


def test_attention_has_options_of_its_own(ri):
    x, keys, mask = inputs()
    options = {"max_autotune_flex_search_space": "DEFAULT", "triton.unique_kernel_names": True}
    model = ri.compile(Stack(lambda: ri.region("attention", options=options)).cuda())
    trained(model, x, keys, mask)
    regions = [r for r in model.report.regions if r.name.startswith("attention")]
    assert regions
    assert all(dict(r.options) == options for r in regions)
    assert [r.reason for r in regions if r.status == "eager"] == []


def test_a_new_mask_of_the_same_shape_is_used(ri):
    """The mask's tensors are inputs of the region, no constants of it."""
    x, keys, mask = inputs()
    model = ri.compile(Stack(lambda: ri.region("attention")).cuda())
    first = trained(model, x, keys, mask)[0]
    document = torch.arange(LENGTH, device="cuda") // 128

    def same_document(b, h, q, k):
        return (q >= k) & (document[q] == document[k])

    other = create_block_mask(same_document, None, None, LENGTH, LENGTH, device="cuda")
    actual = trained(model, x, keys, other)[0]
    import contextlib

    eager = Stack(contextlib.nullcontext).cuda()
    expected = trained(eager, x, keys, other)[0]
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-3)
    assert not torch.allclose(actual, first, atol=1e-2)
