"""FX graphs of any size, by family, with marks: what the partition benchmark runs on.

All values are float32 of shape [4, 4]. About half of the nodes are marked. With `ordered`, about one
unmarked node in eight mutates, aliases, draws, asserts or communicates; there each node has a fake value
of its own, and views share their base's storage, as a tracer would have made them. Without, nothing asks
which storage a value has, and all nodes share one value.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from benchmarks._peers import fake_tensors, without_code

aten = torch.ops.aten
MARK = "compile_with_inductor"
UNARY = (aten.sin.default, aten.cos.default, aten.tanh.default, aten.sigmoid.default)
BINARY = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor)
OPTIONS: tuple[dict[str, Any], ...] = tuple(
    {"epilogue_fusion": bool(i % 2), "max_fusion_size": 16 + i // 2} for i in range(16)
)


def build(family: str, size: int, *, ordered: bool = False) -> GraphModule:
    """A graph of a family with `size` operators, a few more or less; equal for equal arguments.

    It can't be called before somebody generates its code.
    """
    gc.disable()  # it is half of the time of building a hundred thousand nodes
    try:
        builder = _Builder(size, ordered)
        FAMILIES[family](builder)
        return builder.finish()
    finally:
        gc.enable()


class _Builder:
    def __init__(self, size: int, ordered: bool) -> None:
        self.size, self.ordered = size, ordered
        self.rng = random.Random(size)
        self.graph = Graph()
        self.count = 0
        self.unmarked = 0
        self.fresh = fake_tensors((4, 4), shared=not ordered)
        self.inputs = [self.graph.placeholder(f"x{i}") for i in range(3)]
        for node in self.inputs:
            node.meta["val"] = self.fresh()

    @property
    def full(self) -> bool:
        return self.count >= self.size

    def op(self, mark: Any, *arguments: Node) -> Node:
        """One pointwise operator, marked with a value or, where that is None, not at all."""
        kind = UNARY if len(arguments) == 1 else BINARY
        node = self.call(kind[self.count % len(kind)], *arguments)
        if mark is not None:
            node.meta["custom"] = {MARK: mark}
            return node
        self.unmarked += 1
        return self._hidden_order(node) if self.ordered and self.unmarked % 8 == 0 else node

    def matmul(self, a: Node) -> Node:
        return self.op(None, self.call(aten.mm.default, a, self.inputs[1]))

    def call(self, target: Any, *arguments: Any) -> Node:
        self.count += 1
        node = self.graph.call_function(target, arguments)
        node.meta["val"] = self.fresh()
        return node

    def _hidden_order(self, node: Node) -> Node:
        kind = (self.unmarked // 8) % 5
        if kind == 0:
            node = self.call(aten.add_.Tensor, node, 1.0)
            node.meta["val"] = node.args[0].meta["val"]
        elif kind == 1:
            base = node
            node = self.call(aten.alias.default, base)
            node.meta["val"] = base.meta["val"].detach()
            self.call(aten.mul_.Tensor, node, 2.0).meta["val"] = node.meta["val"]
        elif kind == 2:
            node = self.call(aten.bernoulli.p, node, 0.5)
        elif kind == 3:
            self.call(aten._assert_async.msg, node, "must be").meta["val"] = None
        else:
            c10d = torch.ops._c10d_functional
            node = self.call(c10d.all_reduce.default, node, "sum", "0")
            node = self.call(c10d.wait_tensor.default, node)
        return node

    def finish(self) -> GraphModule:
        # Not all sinks: an output with a thousand arguments is another graph than a model's.
        sinks = [n for n in self.graph.nodes if not n.users and n.op == "call_function"]
        sinks = [n for n in sinks if isinstance(n.meta["val"], torch.Tensor)]
        self.graph.output(tuple(sinks))
        return without_code(self.graph)


def _run(builder: _Builder, x: Node, mark: Any, length: int) -> Node:
    for _ in range(length):
        x = builder.op(mark, x)
    return x


def chain(builder: _Builder) -> None:
    """One path: five marked operators, four unmarked ones, and so on."""
    x = builder.inputs[0]
    while not builder.full:
        x = _run(builder, _run(builder, x, 0, 5), None, 4)


def _block(builder: _Builder, x: Node, mark: Callable[[str], Any]) -> Node:
    """A transformer-like block: norm, projections, rotary embedding of q and k, gated product."""
    norm, rope, gated = mark("norm"), mark("rope"), mark("swiglu")
    h = builder.op(norm, _run(builder, x, norm, 3), x)
    q, k, v = builder.matmul(h), builder.matmul(h), builder.matmul(h)
    q = builder.op(rope, builder.op(rope, q), builder.op(rope, q))
    k = builder.op(rope, builder.op(rope, k), builder.op(rope, k))
    attention = builder.matmul(builder.op(None, builder.op(None, q, k), v))
    x = builder.op(None, x, attention)
    h = builder.op(norm, _run(builder, x, norm, 3), x)
    gate, up = builder.matmul(h), builder.matmul(h)
    product = builder.op(gated, builder.op(gated, builder.op(gated, gate), gate), up)
    return builder.op(None, x, builder.matmul(product))


def blocks(builder: _Builder, mark: Callable[[str], Any] = lambda piece: 0) -> None:
    """Transformer-like blocks, one after another."""
    x = builder.inputs[0]
    while not builder.full:
        x = _block(builder, x, mark)


def skip(builder: _Builder) -> None:
    """Marked and unmarked runs with connections over 1, 4, 16 and 64 of them."""
    x = builder.inputs[0]
    stages = [x]
    while not builder.full:
        x = _run(builder, _run(builder, x, 0, 4), None, 3)
        for distance in (1, 4, 16, 64):
            if len(stages) % distance == 0 and len(stages) >= distance:
                x = builder.op(0 if distance == 4 else None, x, stages[-distance])
        stages.append(x)


def wide(builder: _Builder) -> None:
    """Parallel branches of twelve operators from one input, added up in a tree."""
    ends = []
    while builder.count < builder.size * 12 // 13:
        x = _run(builder, builder.inputs[0], 0, 3)
        x = _run(builder, x, None, 3)
        ends.append(_run(builder, _run(builder, x, 0, 3), None, 3))
    while len(ends) > 1:
        ends = [
            builder.op(None, *ends[i : i + 2]) if i + 1 < len(ends) else ends[i]
            for i in range(0, len(ends), 2)
        ]


def random_dag(builder: _Builder) -> None:
    """Each operator takes one or two values, mostly near ones; half of them are marked."""
    rng = builder.rng
    values = list(builder.inputs)
    while not builder.full:
        near = values[-50:]
        picked = [
            rng.choice(near) if rng.random() < 0.95 else rng.choice(values)
            for _ in range(rng.choice((1, 2, 2)))
        ]
        values.append(builder.op(0 if rng.random() < 0.5 else None, *picked))


def one_id_a_run(builder: _Builder) -> None:
    """Blocks whose every marked piece has an explicit id of its own."""
    number = iter(range(10**9))
    blocks(builder, lambda piece: {"inductor_region": f"{piece} {next(number)}"})


def many_options(builder: _Builder) -> None:
    """Blocks whose pieces take sixteen different sets of options in turn."""
    number = iter(range(10**9))
    blocks(builder, lambda piece: {"inductor_configs": OPTIONS[next(number) % len(OPTIONS)]})


FAMILIES: dict[str, Callable[[_Builder], None]] = {
    "chain": chain,
    "blocks": blocks,
    "skip": skip,
    "wide": wide,
    "random": random_dag,
    "ids": one_id_a_run,
    "options": many_options,
}


def random_ids(seed: int, size: int = 24, ids: int = 2) -> GraphModule:
    """A small random graph whose marked nodes carry random ids: these are often jointly cyclic."""
    rng = random.Random(seed)
    builder = _Builder(size, ordered=False)
    values = list(builder.inputs)
    while not builder.full:
        picked = [
            values[max(0, len(values) - 1 - int(rng.expovariate(0.25)))]
            for _ in range(rng.choice((1, 2)))
        ]
        region: Hashable = rng.randrange(ids)
        marked = rng.random() < 0.6
        values.append(builder.op({"inductor_region": region} if marked else None, *picked))
    return builder.finish()
