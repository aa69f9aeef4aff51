"""The trial of a region with `numerics="eager"`, before anybody uses it."""

from __future__ import annotations

import pytest
import torch
from support.graphs import capture
from torch.fx import GraphModule

from regional_inductor.exactness import NotEqualToEagerError, check_equal_to_eager


def off_by_a_bit(region: GraphModule, share: float):
    """What a compiler may make of a region: its values, but for the last bit of some of them."""

    def compiled(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (value,) = region(*inputs)
        # By the value alone, as a formula's rounding errors are.
        wrong = value.view(torch.int32) % round(1 / share) == 0
        return (torch.where(wrong, (value.view(torch.int32) ^ 1).view(torch.float32), value),)

    return compiled


@pytest.mark.parametrize("shape", [(), (1,), (3,), (64, 64)])
def test_a_region_that_is_wrong_for_few_values_is_found_whatever_its_size(shape):
    region = capture(lambda x: (x * 2,), torch.randn(shape), mode="fake")
    check_equal_to_eager(region, region, boxed=False)
    with pytest.raises(NotEqualToEagerError, match="bit for bit"):
        check_equal_to_eager(region, off_by_a_bit(region, 1 / 61), boxed=False)
