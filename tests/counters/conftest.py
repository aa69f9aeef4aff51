"""The benchmarks' model is what is counted on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # makes `benchmarks` importable


@pytest.fixture
def empty_cache() -> Iterator[None]:
    """Neither Inductor's folder nor our memory holds a compiled region; the compiler was probed."""
    from torch._inductor.utils import fresh_cache

    from regional_inductor.stages.compile import forget_compiled_regions

    with fresh_cache():
        torch.compile(lambda x: x.tan().erf())(torch.ones(5))
        forget_compiled_regions()
        yield
    forget_compiled_regions()
