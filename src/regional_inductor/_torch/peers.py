"""Other ways to compile the same marked model, for comparisons in the demo and the benchmarks.

Checked on torch 2.11.0 and 2.13.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def pytorch_regional_backend() -> Callable[..., Any]:
    """PyTorch's own regional pass as a torch.compile backend, put together as its tests do it."""
    from torch._dynamo.backends.common import aot_autograd
    from torch.fx.passes.regional_inductor import regional_inductor

    backend: Callable[..., Any] = aot_autograd(
        fw_compiler=regional_inductor, bw_compiler=regional_inductor
    )
    return backend
