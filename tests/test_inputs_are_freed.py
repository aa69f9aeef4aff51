"""Regions free what nobody needs after them while they run, so that whole blocks cost no memory."""

from __future__ import annotations

import gc

import pytest
import torch

import regional_inductor as ri

ROWS, COLUMNS = 61, 67  # which no other tensor has
alive: list[int] = []


@torch.library.custom_op("tests::tensors_alive", mutates_args=())
def tensors_alive(x: torch.Tensor) -> torch.Tensor:
    found = [value for value in gc.get_objects() if type(value) is torch.Tensor]
    alive.append(sum(value.shape == (ROWS, COLUMNS) for value in found))
    return x.clone()


@tensors_alive.register_fake
def _(x):
    return torch.empty_like(x)


def plain(x):
    return x.sum(1)


def drawing(x):
    return torch.nn.functional.dropout(x, 0.5).sum(1)


@pytest.mark.inductor
@pytest.mark.parametrize("reduced", [plain, drawing])
def test_an_input_that_nobody_else_needs_is_freed_while_the_region_runs(reduced, monkeypatch):
    # `standalone_compile`'s results take their arguments one by one, and so hold them.
    monkeypatch.delenv("REGIONAL_INDUCTOR_LOWERING", raising=False)

    @ri.region("reduced")
    def region(x):
        return tensors_alive(reduced(x)) * 2

    def f(x):
        return region(x.expand(ROWS, COLUMNS) + 1)

    compiled = ri.compile(f, on_error="raise")
    x = torch.randn(ROWS, 1)
    for _ in range(3):
        compiled(x)
    assert [site.status for site in compiled.report.regions] == ["compiled"]
    assert alive[-2:] == [0, 0]
