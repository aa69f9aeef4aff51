"""Forward and backward graphs of a small two-tower model, as AOTAutograd makes them.

Each node carries, beside its mark, the truth about where it comes from ("tower0.layer1.rope") under
a key of its own, so that tests needn't ask the package how it tells entries apart.
"""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.traceback import annotate
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from .graphs import MARK

aten = torch.ops.aten
TRUTH = "tests_place"
DIM = 8

Marker = Callable[[str], AbstractContextManager[Any]]


def marks_of_ours(name: str) -> AbstractContextManager[Any]:
    import regional_inductor as ri

    return ri.region(name)


def raw_marks(name: str) -> AbstractContextManager[Any]:
    return annotate({MARK: 0})


def no_marks(name: str) -> AbstractContextManager[Any]:
    return nullcontext()


class Norm(nn.Module):
    def __init__(self, place: str, marker: Marker) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))
        self.place, self.marker = place, marker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with annotate({TRUTH: self.place}), self.marker("norm"):
            h = x * 2.0  # used twice, so that its gradients are added inside the region
            return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Layer(nn.Module):
    def __init__(self, place: str, marker: Marker) -> None:
        super().__init__()
        self.place, self.marker = place, marker
        self.before = Norm(f"{place}.before", marker)
        self.after = Norm(f"{place}.after", marker)
        self.q, self.k, self.v, self.o, self.gate, self.up, self.down = (
            nn.Linear(DIM, DIM, bias=False) for _ in range(7)
        )

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        h = self.before(x)
        q, k = self.rope(self.q(h), self.k(h), cos, sin)
        x = x + self.o(torch.softmax(q @ k.transpose(-1, -2), -1) @ self.v(h))
        h = self.after(x)
        return x + self.down(self.swiglu(self.gate(h), self.up(h)))

    def rope(self, q, k, cos, sin):
        """q and k have nothing in common but this call."""
        with annotate({TRUTH: f"{self.place}.rope"}), self.marker("rope"):
            return q * cos + rotated(q) * sin, k * cos + rotated(k) * sin

    def swiglu(self, gate, up):
        with annotate({TRUTH: f"{self.place}.swiglu"}), self.marker("swiglu"):
            return torch.nn.functional.silu(gate) * up


def rotated(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat((-right, left), -1)


class Towers(nn.Module):
    """Two towers of two layers; `saved` names the operators whose results checkpointing keeps."""

    def __init__(self, marker: Marker, saved: tuple[Any, ...] | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.towers = nn.ModuleList(
            nn.ModuleList(Layer(f"tower{t}.layer{i}", marker) for i in range(2)) for t in range(2)
        )
        self.saved = saved

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        results = []
        for tower in self.towers:
            h = x
            for layer in tower:
                if self.saved is None:
                    h = layer(h, cos, sin)
                else:
                    h = checkpoint(
                        layer, h, cos, sin, use_reentrant=False, context_fn=keeping(self.saved)
                    )
            results.append(h)
        return (results[0] * results[1]).sum()


def keeping(saved: tuple[Any, ...]) -> Callable[[], Any]:
    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op in saved:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return functools.partial(create_selective_checkpoint_contexts, policy)


SAVED: dict[str, tuple[Any, ...] | None] = {
    "no checkpointing": None,
    "nothing saved": (),
    "matmuls saved": (aten.mm.default, aten.bmm.default),
    "some pointwise saved": (aten.mul.Tensor, aten._softmax.default),
}
MARKERS: dict[str, Marker] = {"ours": marks_of_ours, "raw": raw_marks}


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, angle = torch.randn(2, 4, DIM, generator=generator), torch.arange(32.0).view(4, DIM)
    return x.requires_grad_(), angle.cos(), angle.sin()


# --- capture ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captured:
    """A graph, and real arguments that it was called with."""

    module: GraphModule
    args: tuple[Any, ...]

    def copy(self) -> GraphModule:
        return deepcopy(self.module)


@functools.cache
def captured(marker: str, saved: str, direction: str) -> Captured:
    """The forward or backward graph of the towers; captured once a run."""
    return _captured(marker, saved)[direction]


@functools.cache
def _captured(marker: str, saved: str) -> dict[str, Captured]:
    from torch._dynamo.backends.common import aot_autograd

    found: dict[str, Captured] = {}

    def taking(direction: str) -> Callable[..., Any]:
        def compiler(gm: GraphModule, example_inputs: Any) -> Any:
            module = deepcopy(gm)

            def call(args: list[Any]) -> Any:
                kept = tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args)
                found[direction] = Captured(module, kept)
                return gm(*args)

            call._boxed_call = True  # type: ignore[attr-defined]
            return call

        return compiler

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=taking("forward"), bw_compiler=taking("backward"))
    model = Towers(MARKERS[marker], SAVED[saved])
    torch.compile(model, backend=backend, fullgraph=True)(*inputs()).backward()
    torch._dynamo.reset()
    return found


def place_of(node: Node) -> str | None:
    """Which call of which scope in which layer a node comes from: the truth."""
    return (node.meta.get("custom") or {}).get(TRUTH)


def value_of(node: Node) -> Any:
    return node.meta["val"]


# --- what bucketing passes do -----------------------------------------------------------------------


def interleaved(gm: GraphModule, rng: random.Random) -> GraphModule:
    """The same functional graph in another legal order, nodes of all layers mixed.

    Overlap scheduling and bucketing move whatever their order of collectives asks for; this moves
    at random among what is ready, with runs of neighbours likelier than not.
    """
    nodes = [n for n in gm.graph.nodes if n.op not in ("placeholder", "output")]
    waiting = {n: sum(a.op != "placeholder" for a in n.all_input_nodes) for n in nodes}
    ready = [n for n in nodes if waiting[n] == 0]
    last = next(n for n in reversed(gm.graph.nodes) if n.op == "placeholder")
    while ready:
        node = ready.pop(-1 if rng.random() < 0.5 else rng.randrange(len(ready)))
        last.append(node)
        last = node
        for user in node.users:
            if user.op != "output":
                waiting[user] -= 1
                if waiting[user] == 0:
                    ready.append(user)
    gm.graph.lint()
    gm.recompile()
    return gm


def bucketed(gm: GraphModule, rng: random.Random, *, meta: str = "none") -> GraphModule:
    """Gradients (outputs of equal dtype) of several layers go through one concatenation and back.

    As torch/_inductor/fx_passes/bucketing.py does with the inputs and results of collectives; the
    inserted nodes have no sequence number. With `meta="first"` they take "custom" and module stack
    of the first node of the bucket, as `_populate_node_meta` there does; then only gradients that
    marked nodes computed are bucketed, so that what is inserted is marked.
    """
    output = gm.graph.output_node()
    results = [n for n in output.all_input_nodes if n.op == "call_function"]
    if meta == "first":
        results = [n for n in results if MARK in (n.meta.get("custom") or {})]
    for start in range(2):
        bucket = [n for n in results[start::2] if rng.random() < 0.8]
        if len(bucket) < 2:
            continue
        values = [n.meta["val"] for n in bucket]
        old_users = [list(n.users) for n in bucket]
        new: list[Node] = []

        def call(target: Any, *args: Any, new: list[Node] = new) -> Node:
            node = gm.graph.call_function(target, args)
            node.meta["val"] = target(*torch.fx.map_arg(args, value_of))
            new.append(node)
            return node

        with gm.graph.inserting_before(output), values[0].fake_mode:
            flat = [call(aten.reshape.default, n, [-1]) for n in bucket]
            whole = call(aten.cat.default, flat)
            scaled = call(aten.mul.Tensor, whole, 1.0)  # where the collective would stand
            sizes = [v.numel() for v in values]
            parts = call(aten.split_with_sizes.default, scaled, sizes)
            for i, (node, value) in enumerate(zip(bucket, values, strict=True)):
                part = call(operator.getitem, parts, i)
                back = call(aten.reshape.default, part, list(value.shape))
                for user in old_users[i]:
                    user.replace_input_with(node, back)
        if meta == "first":
            for node in new:
                for key in ("custom", "nn_module_stack", "fwd_nn_module_stack", "stack_trace"):
                    node.meta[key] = bucket[0].meta.get(key, {})
                node.meta["bucketing_custom_sources"] = [n.meta.get("custom", {}) for n in bucket]
    gm.graph.lint()
    gm.recompile()
    return gm
