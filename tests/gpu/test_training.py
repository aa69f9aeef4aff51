"""Training steps on the device: equal to eager's, each distinct region compiled once."""

from __future__ import annotations

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # makes `benchmarks` importable

from benchmarks.gpu._llama import Marks, Shape, build, training_step

SHAPE = Shape(3, dim=256, heads=4, ffn=512, batch=2, sequence=128)


def trained(model, x):
    loss = training_step(model, list(model.parameters()), x)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters()}


def close(actual, expected):
    """Within what bfloat16 can tell apart: relative distance of whole tensors."""
    return float((actual.float() - expected.float()).norm() / expected.float().norm()) < 2e-2


@pytest.mark.parametrize("what", ["parts", "blocks"])
def test_a_training_step_of_a_marked_llama_equals_eagers(ri, what):
    plain, x = build(SHAPE, Marks())
    marked, _ = build(SHAPE, Marks(what))
    expected_loss, expected = trained(plain, x)
    compiled = ri.compile(marked)
    loss, gradients = trained(compiled, x)
    assert close(loss, expected_loss)
    assert [name for name in expected if not close(gradients[name], expected[name])] == []
    regions = compiled.report.regions
    assert [f"{r.name}: {r.reason}" for r in regions if r.status == "eager"] == []
    assert {r.direction for r in regions} == {"forward", "backward"}


@pytest.mark.parametrize("what", ["parts", "blocks"])
@pytest.mark.parametrize("capture", ["blocks", "model"])
def test_a_compiled_step_never_waits_for_the_device(ri, what, capture):
    """Where the host waits, nothing is launched meanwhile: communication that could overlap doesn't."""
    marked, x = build(SHAPE, Marks(what))
    parameters = list(marked.parameters())
    compiled = ri.compile(marked, capture=capture)
    for _ in range(3):
        training_step(compiled, parameters, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(compiled, parameters, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_layers_share_their_compiled_regions(ri):
    marked, x = build(SHAPE, Marks("parts"))
    compiled = ri.compile(marked, capture="model")
    trained(compiled, x)
    calls: dict[str, int] = {}
    for region in compiled.report.regions:
        calls[region.key] = calls.get(region.key, 0) + 1
    assert sum(r.status == "compiled" for r in compiled.report.regions) <= len(calls)
    assert max(calls.values()) >= SHAPE.layers


def test_a_region_of_float32_runs_on_another_device_than_the_first_as_well(ri):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")

    @ri.region
    def tail(x):
        return (x.sin() + 0.5).tanh()

    compiled = ri.compile(lambda x: tail(x * 2))
    for device in ("cuda:0", "cuda:1"):
        x = torch.randn(64, device=device)
        torch.testing.assert_close(compiled(x), ((x * 2).sin() + 0.5).tanh())


def test_models_with_checkpoints_in_two_threads_compute_what_eager_does(ri, cuda):
    """Backward passes of both run in one thread, the device's, in which nothing says whose node it is."""

    @ri.region
    def joined(a, b):  # eager saves two tensors as well, and others
        return (a.sin() * b.exp()).cos()

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.left(x), self.right(x)

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Halves() for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(joined, *layer(x), use_reentrant=False)
            return x

    def gradients_of(model):
        model.zero_grad()
        barrier.wait()
        loss = model(x).sum()
        barrier.wait()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    torch.manual_seed(0)
    plain = Joined().to(cuda)
    x = torch.randn(32, 64, device=cuda)
    barrier = threading.Barrier(1)
    expected = gradients_of(plain)
    models = [ri.compile(copy.deepcopy(plain), capture="blocks") for _ in range(2)]
    for _ in range(3):
        barrier = threading.Barrier(2)
        with ThreadPoolExecutor(2) as threads:
            for actual in threads.map(gradients_of, models):
                torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_an_optimizer_step_is_one_region_and_equals_eagers(ri, cuda):
    def adamw(params, grads, means, squares, step):
        torch._foreach_lerp_(means, grads, 0.1)
        torch._foreach_mul_(squares, 0.999)
        torch._foreach_addcmul_(squares, grads, grads, 0.001)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, 1e-8)
        torch._foreach_addcdiv_(params, means, denominators, -1e-3 * step)

    def state():
        torch.manual_seed(0)
        return [[torch.rand(129, 7, device=cuda) for _ in range(5)] for _ in range(4)]

    expected, actual = state(), state()
    adamw(*expected, 1.0)
    compiled = ri.compile(ri.region(adamw))
    compiled(*actual, 1.0)
    torch.testing.assert_close(actual, expected)
    assert [r.status for r in compiled.report.regions] == ["compiled"]
