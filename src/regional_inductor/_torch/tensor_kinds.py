"""Whether tensors are of the kinds that earlier ones had: one call of C, the one that Dynamo's guards made.

Checked on torch 2.13: `torch._C._dynamo.guards.TensorGuards`, whose `check` compares class, dtype, device, sizes,
`requires_grad` whatever the grad mode, and dispatch keys as they are under the modes of the moment: autocast of that
device, inference mode, transforms. Tensors that are one object fail it. What matters of it is tried once in each
process; where it is missing or says something else, nothing is of an earlier kind. `is_functorch_wrapped_tensor`;
`torch.autograd.forward_ad._current_level`, below 0 outside of forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.autograd import forward_ad as forward_ad

Sizes = tuple[int | None, ...]


# Regions whose arguments are of equal kinds share one check: a model has one a layer, and memory that is not
# touched need not be fetched.
_known: dict[tuple[Sizes, ...], list[Callable[..., bool]]] = {}
_KNOWN_SIZES = 1000


def never(*tensors: torch.Tensor) -> bool:
    """What stands for a check as long as nothing has been learnt."""
    return False


def same_kinds(tensors: Sequence[torch.Tensor], sizes: Sequence[Sizes]) -> Callable[..., bool]:
    """A function that says of as many tensors whether they are of the same kinds, under the same modes.

    The grad mode is not among them.

    Args:
        tensors: What others are compared with; they are not kept.
        sizes: The sizes that must be equal, None for any.
    """
    if not tensors:
        return lambda: True
    if not _tells_kinds_apart():
        return never
    if len(_known) > _KNOWN_SIZES:
        _known.clear()
    known = _known.setdefault(tuple(sizes), [])
    for check in known:
        if check(*tensors):
            return check
    check = _same_kinds(tensors, sizes)
    if not check(*tensors):  # one tensor twice, for one
        return never
    known.append(check)
    return check


def _same_kinds(tensors: Sequence[torch.Tensor], sizes: Sequence[Sizes]) -> Callable[..., bool]:
    guards: Any = torch._C._dynamo.guards
    check: Callable[..., bool] = guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=[list(size) for size in sizes],
        dynamic_dims_strides=[[None] * len(size) for size in sizes],
    ).check
    return check


@cache
def _tells_kinds_apart() -> bool:
    if not hasattr(torch._C._dynamo.guards, "TensorGuards"):
        return False

    def made(*size: int, **kind: Any) -> torch.Tensor:
        return torch.empty(size, **{"device": "cpu", "dtype": torch.float32, **kind})

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        check = _same_kinds([made(2, 3)], [(2, None)])
        others = (
            made(3, 3),
            made(2),
            made(2, 3, dtype=torch.float64),
            made(2, 3, device="meta"),
            made(2, 3, requires_grad=True),
            torch.nn.Parameter(made(2, 3), requires_grad=False),
        )
        with torch.autocast("cpu"):
            in_autocast = check(made(2, 3))
        return check(made(2, 4)) and not in_autocast and not any(map(check, others))


def is_transformed(value: torch.Tensor) -> bool:
    """Whether `vmap`, `grad` or another transform of `torch.func` made this tensor: it has no memory."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)


def in_forward_mode() -> bool:
    """Whether tangents may be with tensors, which the check says nothing of."""
    return forward_ad._current_level >= 0
