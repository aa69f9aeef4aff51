"""A small Llama in the ways in which people spread one over ranks, and what its regions did there.

Everything here runs on every rank of a job (`support.ranks`).
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import regional_inductor as ri

DIM, HEADS, HIDDEN, LAYERS = 16, 2, 32, 2


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, HIDDEN, bias=False)
        self.up = nn.Linear(DIM, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))

    def forward(self, x):
        batch, length, _ = x.shape
        heads = (
            p(x).view(batch, length, -1, DIM // HEADS).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = Norm(), Attention(), Norm(), Mlp()

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()
        self.head = nn.Linear(DIM, 8, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def spread(model: Llama, way: str) -> nn.Module:
    """The model as FSDP2, tensor parallelism or DDP has it on this rank."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    if way == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    if way == "tensor parallel":
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        across, along = ColwiseParallel, RowwiseParallel
        plan = {f"attention.{name}": across() for name in "qkv"} | {"attention.o": along()}
        plan |= {"mlp.gate": across(), "mlp.up": across(), "mlp.down": along()}
        for layer in model.layers:
            parallelize_module(layer, mesh, plan)
        return model
    assert way == "ddp"
    return nn.parallel.DistributedDataParallel(model)


def train(model: nn.Module, way: str, steps: int = 2) -> list[torch.Tensor]:
    """The gradients of the last of some steps, whole ones also where each rank has a shard."""
    # Tensor parallel ranks share their inputs, data parallel ones don't.
    torch.manual_seed(0 if way == "tensor parallel" else torch.distributed.get_rank())
    x = torch.randn(2, 5, DIM)
    for _ in range(steps):
        model.zero_grad()
        model(x).square().mean().backward()
    return [
        (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()
        for p in model.parameters()
    ]


def compare(way: str, options: dict[str, Any]) -> dict[str, Any]:
    """One model with regions next to the same without: gradients, regions, order of operators."""
    from regional_inductor.stages.compile import forget_compiled_regions

    forget_compiled_regions()
    torch.manual_seed(0)
    plain = Llama()
    marked = copy.deepcopy(plain)
    without = train(spread(plain, way), way)
    model = spread(marked, way)
    ri.mark(marked, "layers.*.mlp", "layers.*.norm1", "layers.*.norm2")
    graphs: list[tuple[list[str], list[str]]] = []
    with _order_taken_down(graphs):
        gradients = train(ri.compile(model, on_error="raise", **options), way)
    report = ri.last_report()
    assert report is not None
    regions = [region for region in report.regions if region.status != "eager"]
    return {
        "error": max((a - b).abs().max().item() for a, b in zip(without, gradients, strict=True)),
        "gradients": len(gradients),
        "regions": [(region.name, region.direction) for region in regions],
        "in regions": sorted({op for region in regions for op in region.ops}),
        "compiles": report.compiles,
        "keys": len({region.key for region in regions}),
        "graphs": graphs,
    }


@contextlib.contextmanager
def _order_taken_down(graphs: list[tuple[list[str], list[str]]]) -> Iterator[None]:
    """Takes down what stays eager in each graph, in the order that it had and the one that it gets."""
    from regional_inductor import invariants
    from regional_inductor.regions import Partitioned

    original = invariants.check

    def check(product: Any, settings: Any) -> None:
        original(product, settings)
        for graph in product.graphs if isinstance(product, Partitioned) else ():
            inside = {node for region in graph.regions for node in region.nodes}
            nodes = graph.marked.module.graph.nodes
            before = [str(node) for node in nodes if node not in inside]
            after = [str(item) for item in graph.schedule if isinstance(item, torch.fx.Node)]
            graphs.append((before, after))

    invariants.check = check
    os.environ["REGIONAL_INDUCTOR_CHECK"] = "1"
    try:
        yield
    finally:
        invariants.check = original
