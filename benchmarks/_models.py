"""A Llama-like decoder with three marked pieces a block, written out so that nothing else is needed.

float32, hidden width 128, 4 heads of 32, sequence 64, batch 2, MLP width 352. Marked with PyTorch's own
annotation, the same for every way: RMSNorm before attention (five pointwise operators and one reduction),
the rotary embedding of q and k, and SwiGLU; and the norm after the last block. Not marked, and run
eagerly by a regional pass: seven matmuls, scaled_dot_product_attention, the residual additions and
the norm before the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.traceback import annotate

MARK = "compile_with_inductor"


@dataclass(frozen=True)
class Shape:
    """Widths in elements; `distinct` gives each block an MLP of another width."""

    layers: int
    distinct: bool = False
    hidden: int = 128
    heads: int = 4
    mlp: int = 352
    sequence: int = 64
    batch: int = 2


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotated(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat((-right, left), -1)


class Block(nn.Module):
    """Takes and returns [batch, sequence, hidden]; cos and sin are [sequence, hidden // heads]."""

    def __init__(self, shape: Shape, mlp: int) -> None:
        super().__init__()
        self.heads = shape.heads
        self.before, self.after = Norm(shape.hidden), Norm(shape.hidden)
        self.q, self.k, self.v, self.o = (
            nn.Linear(shape.hidden, shape.hidden, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(shape.hidden, mlp, bias=False) for _ in range(2))
        self.down = nn.Linear(mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        with annotate({MARK: "norm"}):
            h = self.before(x)
        q, k, v = (self.split(p(h)) for p in (self.q, self.k, self.v))
        with annotate({MARK: "rope"}):
            q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        h = self.after(x)
        gate, up = self.gate(h), self.up(h)
        with annotate({MARK: "swiglu"}):
            product = nn.functional.silu(gate) * up
        return x + self.down(product)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Llama(nn.Module):
    """With `mark_blocks` the blocks are marked as wholes, whatever lies in them."""

    def __init__(self, shape: Shape, *, mark_blocks: bool = False) -> None:
        super().__init__()
        self.mark_blocks = mark_blocks
        torch.manual_seed(0)
        widths = [shape.mlp + 32 * i * shape.distinct for i in range(shape.layers)]
        self.layers = nn.ModuleList(Block(shape, width) for width in widths)
        self.norm = Norm(shape.hidden)
        angles = torch.arange(shape.sequence)[:, None] / 10000 ** (
            torch.arange(0, shape.hidden // shape.heads, 2) / (shape.hidden // shape.heads)
        )
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            with annotate({MARK: "block"}) if self.mark_blocks else nullcontext():
                x = layer(x, self.cos, self.sin)
        with annotate({MARK: "norm"}):
            return self.norm(x)


def inputs(shape: Shape, train: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape.batch, shape.sequence, shape.hidden, generator=generator)
    return x.requires_grad_(train)


def run_once(model: Callable[..., Any], x: Tensor, train: bool) -> Tensor:
    """One call, with its backward pass in training; returns what can be compared."""
    if not train:
        with torch.no_grad():
            return model(x)
    x.grad = None
    # Not the mean square: that of a normed output is 1, and its gradient nothing but rounding.
    out = model(x)
    (out * torch.linspace(-1, 1, out.shape[-1])).mean().backward()
    assert x.grad is not None
    return x.grad


def unrelated(x: Tensor) -> Tensor:
    """What warm-up compiles: none of the model's kernels."""
    with annotate({MARK: "warm-up"}):
        y = torch.erf(x.tan())
    return y @ y.t()
