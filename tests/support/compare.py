"""Comparison with eager: the oracle of all these tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map


def fresh(args: Any) -> Any:
    """Copies that share nothing with the originals and ask for gradients where those do."""

    def copy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    return tree_map(copy, args)


def assert_same(actual: Any, expected: Any, *, bitwise: bool = False) -> None:
    """Equal in values, dtype, device, stride and structure."""
    tolerance = {"rtol": 0.0, "atol": 0.0} if bitwise else {}
    assert_close(actual, expected, equal_nan=True, **tolerance)
    for a, e in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        if isinstance(e, torch.Tensor):
            assert visible_strides(a) == visible_strides(e)


def visible_strides(tensor: torch.Tensor) -> list[int]:
    """The strides that can be observed: not those of dimensions of size one or of nothing."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return []
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in dims if size > 1]


def assert_like_eager(compiled: Callable[..., Any], eager: Callable[..., Any], *args: Any) -> None:
    """One call each on copies of the arguments: same results, same effect on the arguments."""
    expected_args, actual_args = fresh(args), fresh(args)
    torch.manual_seed(1)
    expected = eager(*expected_args)
    torch.manual_seed(1)
    actual = compiled(*actual_args)
    assert_same(actual, expected)
    assert_same(actual_args, expected_args)


def assert_trains_like_eager(
    compiled: Callable[..., Any],
    eager: Callable[..., Any],
    *args: Any,
    parameters: tuple[torch.Tensor, ...] = (),
) -> None:
    """Forward and backward: same results and same gradients of arguments and parameters."""

    def step(fn: Callable[..., Any]) -> tuple[Any, list[Any]]:
        call_args = fresh(args)
        leaves = [a for a in call_args if isinstance(a, torch.Tensor) and a.requires_grad]
        leaves += list(parameters)
        torch.manual_seed(1)
        out = fn(*call_args)
        outs = out if isinstance(out, (tuple, list)) else (out,)
        loss = sum((o.float() ** 2).sum() for o in outs if o.requires_grad)
        return out, list(torch.autograd.grad(loss, leaves, allow_unused=True))

    expected, actual = step(eager), step(compiled)
    assert_same(actual[0], expected[0])
    for a, e in zip(actual[1], expected[1], strict=True):
        if e is None:
            assert a is None
        else:
            assert_close(a, e)
