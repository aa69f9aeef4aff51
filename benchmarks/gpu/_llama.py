"""The yardstick's model: a stack of Llama blocks without embedding, and what is marked in it.

`marks="parts"` marks both norms of each block, the rotary embedding of q and k, SwiGLU, and the last norm;
`marks="blocks"` marks whole blocks and the last norm. The marks are PyTorch's own annotation, so that its
regional pass and this library compile the same nodes.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.traceback import annotate

KEY = "compile_with_inductor"


@dataclass(frozen=True)
class Shape:
    """Widths in elements. Block i's MLP is `ffn + 128 * (i % distinct)` wide."""

    layers: int
    dim: int = 2048
    heads: int = 16
    ffn: int = 5632
    batch: int = 4
    sequence: int = 2048
    distinct: int = 1


@dataclass(frozen=True)
class Marks:
    """What is marked (`"parts"`, `"blocks"` or nothing) and the options of each mark."""

    what: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> AbstractContextManager[Any]:
        return self._mark(name) if self.what == "parts" else contextlib.nullcontext()

    def block(self) -> AbstractContextManager[Any]:
        return self._mark("block") if self.what == "blocks" else contextlib.nullcontext()

    def last(self) -> AbstractContextManager[Any]:
        return self._mark("norm") if self.what else contextlib.nullcontext()

    def _mark(self, name: str) -> AbstractContextManager[Any]:
        value: Any = {"inductor_configs": self.options} if self.options else name
        marked: AbstractContextManager[Any] = annotate({KEY: value})
        return marked


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed.to(x.dtype) * self.weight


def rotated(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat((-right, left), -1)


class Block(nn.Module):
    """Takes and returns [batch, sequence, dim]; cos and sin are [sequence, dim // heads]."""

    def __init__(self, shape: Shape, ffn: int, marks: Marks) -> None:
        super().__init__()
        self.heads, self.marks = shape.heads, marks
        self.attention_norm, self.mlp_norm = Norm(shape.dim), Norm(shape.dim)
        self.q, self.k, self.v, self.o = (
            nn.Linear(shape.dim, shape.dim, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(shape.dim, ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(ffn, shape.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        with self.marks.part("norm"):
            h = self.attention_norm(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.qkv())
        with self.marks.part("rope"):
            q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        with self.marks.part("norm"):
            h = self.mlp_norm(x)
        gate, up = self.gate(h), self.up(h)
        with self.marks.part("swiglu"):
            product = nn.functional.silu(gate) * up
        return x + self.down(product)

    def qkv(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q, self.k, self.v


class Llama(nn.Module):
    def __init__(self, shape: Shape, marks: Marks) -> None:
        super().__init__()
        self.marks = marks
        widths = (shape.ffn + 128 * (i % shape.distinct) for i in range(shape.layers))
        self.layers = nn.ModuleList(Block(shape, width, marks) for width in widths)
        self.norm = Norm(shape.dim)
        head = shape.dim // shape.heads
        angles = torch.arange(shape.sequence)[:, None] / 10000 ** (torch.arange(0, head, 2) / head)
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            with self.marks.block():
                x = layer(x, self.cos, self.sin)
        with self.marks.last():
            return self.norm(x)


def build(shape: Shape, marks: Marks, device: str = "cuda") -> tuple[Llama, Tensor]:
    """A bfloat16 model and an input [batch, sequence, dim], the same whenever the shape is.

    Weights are drawn on the device: 24 layers of the yardstick take minutes on a CPU.
    """
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Llama(shape, marks)
            x = torch.randn(shape.batch, shape.sequence, shape.dim)
    finally:
        torch.set_default_dtype(before)
    return model, x


def training_step(model: Any, parameters: Any, x: Tensor) -> Tensor:
    """Forward and backward, without an optimizer; returns the loss.

    The loss weighs channels differently: the mean square of what a norm returns would be constant, and
    its gradients nothing but rounding.
    """
    for parameter in parameters:
        parameter.grad = None
    weights = torch.linspace(-1, 1, x.shape[-1], device=x.device)
    loss: Tensor = (model(x).float() * weights).sum(-1).mean()
    loss.backward()
    return loss.detach()
