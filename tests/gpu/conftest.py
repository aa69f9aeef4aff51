"""Tests that need a CUDA device: `make test-gpu`. Elsewhere they are skipped with that reason."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    absent = pytest.mark.skip(reason="needs a CUDA device, and torch sees none here")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            # torch looks at the attribute of every tensor that Dynamo guards on, leaf or not.
            item.add_marker(pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor"))
            # Inductor's manager of CUDA graphs makes its pool of memory by recording nothing.
            item.add_marker(pytest.mark.filterwarnings(r"ignore:The CUDA Graph is empty"))
            # torch.cuda.set_sync_debug_mode says so of itself, each time that a test asks for it.
            item.add_marker(pytest.mark.filterwarnings(r"ignore:Synchronization debug mode is a"))
            # Inductor's advice about TF32 and about too few multiprocessors is no fault of ours.
            item.add_marker(pytest.mark.filterwarnings(r"ignore:TensorFloat32 tensor cores"))
            item.add_marker(pytest.mark.filterwarnings(r"ignore:flex_attention called without"))
            if not torch.cuda.is_available():
                item.add_marker(absent)


@pytest.fixture(autouse=True)
def empty_device():
    """Tests of memory start without another test's garbage."""
    yield
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def cuda():
    return torch.device("cuda", torch.cuda.current_device())
